"""One simulated caller: joins, dispatches the agent, talks, hangs up, and marks every step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import aiohttp
from livekit import api
from pydantic import SecretStr

from labvoice.caller.connection import connect_room
from labvoice.caller.conversation import GREETING_TIMEOUT_S, Conversation
from labvoice.caller.media import OpenLink
from labvoice.concurrency import together
from labvoice.dispatch import Dispatch, Dispatcher, StrategyName, rooms
from labvoice.dispatch.dispatcher import DISPATCH_TIMEOUT_S
from labvoice.dispatch.strategies import strategy_of
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import LabvoiceError
from labvoice.link.client import Link
from labvoice.protocol.metadata import JobMetadata, Metadata
from labvoice.protocol.vocabulary import Mark
from labvoice.show import Facts, call_facts

_JOIN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0
_FAREWELL_S = 0.3  # below the time after which a supervisor counts an agent as lost
_SERVER_ERRORS = (LabvoiceError, api.TwirpError, aiohttp.ClientError, TimeoutError)


BringBot = Callable[
    [str, str, float, Callable[[Mark], None]], AbstractAsyncContextManager[Dispatch]
]
"""Brings a bot that joins by itself: of a room, the caller's identity, a time-out in seconds and
who is told the marks. The bot stays until the block is left."""


class Call(Conversation):
    """A caller in a room with an agent; its attributes are those of a conversation too.

    Args:
        url: Address of the LiveKit server, with its key and its secret.
        dispatcher: Dispatches the agent.
        room: Name of the room.
        agent_name: Name of the agent to dispatch.
        identity: The caller's own.
        metadata: Metadata of the dispatch.
        strategy: When the agent is dispatched.
        timeout_s: How long to wait for the agent, in seconds.
        greets: Whether the agent speaks first: nobody waits for the greeting of one that does
            not. None where it is not known.
        greeting_timeout_s: How long an agent of which it is not known is waited for, in seconds.
        apologises: Whether a replacement agent speaks first.
        on_mark: Called with each connection mark as it is set.
        on_end: Called when the call has ended.
        bring: Brings a bot that joins by itself; the agent is dispatched by name when not given.
        attributes: The caller's attributes as a participant.
        room_metadata: Metadata of the room, where the caller makes it.
        open_link: Opens the link of the caller's media; None for a direct connection.
        tap: The relay before the agent, where the lab dates packets.

    Attributes:
        dispatch: The confirmed dispatch; None before.
        recording_path: Where the recording is written when the call ends, `.ogg` or `.wav`; None:
            nowhere.
        ready_by: The mark that shows the agent to be ready: `agent_listening`, its state, or for
            one that reports no state `agent_audio_subscribed`; empty before.
        failure: Why the last connection failed; empty if none failed.
    """

    def __init__(
        self,
        *,
        url: str,
        api_key: str,
        api_secret: SecretStr,
        dispatcher: Dispatcher,
        room: str,
        agent_name: str,
        identity: str = "caller",
        metadata: Metadata = None,
        strategy: StrategyName = "sequential",
        timeout_s: float = DISPATCH_TIMEOUT_S,
        greets: bool | None = True,
        greeting_timeout_s: float = GREETING_TIMEOUT_S,
        apologises: bool = True,
        on_mark: Callable[[Mark], None] | None = None,
        on_end: Callable[[Call], None] = lambda _: None,
        bring: BringBot | None = None,
        attributes: Mapping[str, str] | None = None,
        room_metadata: str = "",
        open_link: OpenLink | None = None,
        tap: Link | None = None,
    ) -> None:
        super().__init__(
            room,
            identity,
            dispatcher.why_ended,
            is_bot=bring is not None,
            greets=greets,
            greeting_timeout_s=greeting_timeout_s,
            apologises=apologises,
            on_mark=on_mark,
            open_link=open_link,
            tap=tap,
        )
        self.strategy = strategy
        self.agent_name = agent_name
        self.dispatch: Dispatch | None = None
        self.ready_by = self.failure = ""
        self._url, self._key, self._secret = url, api_key, api_secret
        self._dispatcher = dispatcher
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._bring = bring
        self._attributes, self._room_metadata = attributes, room_metadata
        self._bot = AsyncExitStack()
        self._ending: asyncio.Task[None] | None = None
        self.recording_path: Path | None = None

    @property
    def traceparent(self) -> str | None:
        """W3C `traceparent` of the call's span, under which the agent's are; None if untraced."""
        return self._metadata.traceparent if isinstance(self._metadata, JobMetadata) else None

    # -- connecting ---------------------------------------------------------------------

    async def dispatch_ahead(self) -> None:
        """Dispatches the agent before the click; otherwise :meth:`connect` does.

        Raises:
            DispatchError: The agent did not join; the class names the cause.
        """
        if self._bring is not None:
            self.dispatch = await self._bot.enter_async_context(
                self._bring(self.room_name, self.identity, self._timeout_s, self._marks.add)
            )
            return
        self.dispatch = await self._dispatcher.dispatch(
            self.room_name,
            self.agent_name,
            metadata=self._metadata,
            timeout_s=self._timeout_s,
            on_mark=self._marks.add,
        )

    async def connect(self) -> Call:
        """Joins, publishes the microphone, dispatches the agent and waits until it listens.

        Raises:
            ServerUnreachableError: The server does not answer.
            CredentialsError: It refuses the token.
            MediaBlockedError: It answers, but media cannot pass.
            DispatchError: The agent did not join; the class names the cause.
            StageTimeoutError: A later step did not happen in time; `stage` names it.
            MediaPathError: The caller's media did not take its link.
        """
        try:
            await self.media.open()
            await self._connect()
            await self.media.check_path()
        except LabvoiceError as error:
            self.failure = error.observed
            raise
        return self

    async def _connect(self) -> None:
        strategy = strategy_of(self.strategy)
        if strategy.when == "ahead" and self.dispatch is None:
            await self.dispatch_ahead()
        self._marks.set("click")
        token = caller_token(
            self._key,
            self._secret,
            self.room_name,
            self.identity,
            strategy=self.strategy,
            agent_name=self.agent_name,
            metadata=self._metadata,
            attributes=self._attributes,
            room_metadata=self._room_metadata,
        )
        self._marks.set("token_issued")
        if strategy.by_server:
            self._marks.set("dispatch_requested")  # by connecting
        if strategy.when == "during":
            await together(self._join(token), self.dispatch_ahead())
        else:
            await self._join(token)
        if self.dispatch is None:
            await self.dispatch_ahead()
        if strategy.by_server and not (self.dispatch and self.dispatch.found):
            self.notice = strategy.missed.format(room=self.room_name)
        await self._until_mark("agent_visible", _JOIN_TIMEOUT_S)
        if self.agent.is_labvoices:
            for mark in ("agent_audio_subscribed", "agent_listening"):
                await self._until_mark(mark, _JOIN_TIMEOUT_S)
            self.ready_by = "agent_listening"
        else:
            self._foreign = True
            self.ready_by = await self.agent.until_ready()

    async def _until_mark(self, mark: str, timeout_s: float) -> None:
        await self.agent.until(lambda: mark in self.connection_marks, mark, timeout_s)

    async def _join(self, token: str) -> None:
        self.agent.follow()
        await self.reports.start()
        url = self._url if self.media.link is None else self.media.link.url
        await connect_room(self._room, url, token)
        self._marks.set("room_connected")
        for participant in self._room.remote_participants.values():
            self.agent.on_participant(participant)
        await self._microphone.publish(self._room)
        self._marks.set("mic_published")

    # -- leaving ------------------------------------------------------------------------

    async def hang_up(self) -> None:
        """Leaves the room and stops sending; safe to call twice.

        The agent stays until the server notices; :meth:`end` ends it at once.
        """
        self.agent.caller_left = True
        for close in (
            self.reports.aclose,
            self._microphone.aclose,
            self.agent.ear.aclose,
            self._room.disconnect,
            self.media.aclose,
        ):
            # One that fails or hangs must not block the others.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await close()
        self.agent.unfollow()

    async def end(self) -> None:
        """Hangs up, and removes agent and room unless another human is in the room.

        Then the call leaves the agent to the other one. Whether it stays is the agent's choice:
        labvoice's own ends with the participant that it listens to, as livekit-agents' sessions do.

        Safe to call twice, and at once: whoever calls waits until the call has ended. The agent
        goes first: of a room that its user leaves before the others, the SDK frees nothing, half
        a MiB a call (livekit 1.1.21, https://github.com/livekit/rust-sdks/pull/1435).
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="labvoice-end-call")
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self.agent.caller_left = True
        alone = await self._is_alone()
        try:
            await self._bot.aclose()
            if alone and self.agent_identity:
                with contextlib.suppress(*_SERVER_ERRORS):
                    server = self._dispatcher.api
                    await rooms.remove_agent(server, self.room_name, self.agent_identity)
                    await self.agent.until_left(_FAREWELL_S)
            await self.hang_up()
            if not alone:
                return
            with contextlib.suppress(*_SERVER_ERRORS):
                await rooms.clear(
                    self._dispatcher.api,
                    self.room_name,
                    agent_name=self.agent_name,
                    gone={self.identity, self.agent.identity},
                )
        finally:
            await self._write_recording()
            self._on_end(self)

    async def _write_recording(self) -> None:
        if self.recording_path is None or (sound := self.recorder.recording()) is None:
            return
        try:
            await asyncio.to_thread(sound.write, self.recording_path)
        except LabvoiceError as error:
            self.notice = "; ".join(filter(None, (self.notice, error.observed)))

    async def _is_alone(self) -> bool:
        """Whether no other human is in the room; the server also lists those not announced yet."""
        try:
            there = await rooms.participants(self._dispatcher.api, self.room_name)
        except _SERVER_ERRORS:
            return not self.agent.other_callers
        ours = (self.identity, self.agent.identity)
        return not any(rooms.is_human(p) and p.identity not in ours for p in there)

    async def __aenter__(self) -> Call:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    def _facts(self) -> Facts:
        if self.agent.caller_left:
            state = "ended"
        elif "click" not in self.marks:
            state = "not connected yet"
        else:
            state = f"the agent is {self.agent.state}" if self.agent.state else "connecting"
        return call_facts(
            "Call",
            self.room_name,
            state,
            strategy=self.strategy,
            marks=self.marks,
            greeting=self.greeting,
            turns=self.turns,
            troubles=[
                self.failure,
                *self.notices,
                *(f"turn {each.number + 1}: {each.notice}" for each in self.turns if each.notice),
            ],
        )

    def __repr__(self) -> str:
        return self._facts().text()

    def _repr_html_(self) -> str:
        facts = self._facts().html()
        if not self.agent.caller_left:  # drawing takes time, which a call under way has not
            return facts
        with contextlib.suppress(LabvoiceError):
            facts += self.listen()._repr_html_()
        return facts
