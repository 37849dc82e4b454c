"""One simulated caller: joins, dispatches the agent, speaks, listens, and marks every step."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import numpy.typing as npt
from google.protobuf import json_format
from livekit import api, rtc
from livekit.protocol.agent_pb import agent_session as session_pb
from pydantic import SecretStr

from labvoice.caller import microphone
from labvoice.caller.clock import ClockOffset, measure_offset
from labvoice.caller.connection import connect_room
from labvoice.caller.ear import SAMPLE_RATE_HZ
from labvoice.caller.recorder import Recorder
from labvoice.caller.tracks import Ear
from labvoice.caller.transcription import Transcription
from labvoice.caller.turns import Item, Turn, Turns, turn_notices
from labvoice.dispatch import Dispatch, Dispatcher, StrategyName, rooms
from labvoice.dispatch.dispatcher import DISPATCH_TIMEOUT_S
from labvoice.dispatch.strategies import strategy_of
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import (
    AgentLostError,
    LabvoiceError,
    NoReplyError,
    StageTimeoutError,
)
from labvoice.protocol.metadata import ATTRIBUTE_DISPATCH_ID, Metadata, check_name
from labvoice.protocol.model_errors import refusal_hint
from labvoice.protocol.vocabulary import (
    AGENT_TURN_STAGES,
    RPC_MARKS,
    WORKER_CONNECTION_MARKS,
    Mark,
)
from labvoice.show import Facts, call_facts
from labvoice.speech.utterances import Utterance

if TYPE_CHECKING:
    from livekit.agents.voice.remote_session import RemoteSession

SESSION_MODULE = "livekit.agents.voice.remote_session"
"""Imported by the lab while its worker starts, because it takes 2.4 s."""

_JOIN_TIMEOUT_S = 10.0
SESSION_EVENTS = tuple(
    name
    for name in session_pb.AgentSessionEvent.DESCRIPTOR.fields_by_name
    if name not in ("created_at", "debug_message")
)
"""All events of `AgentSessionEvent` but the SDK's own debugging."""
_FOREIGN_READY_TIMEOUT_S = 30.0
"""Agents that are not labvoice's often load their models after they have joined."""
_OTHER_SIGN_S = 3.0
"""Once an agent is audible, how long it may take to tell its state, and the other way round."""
_GREETING_TIMEOUT_S = 8.0
"""How long an agent that may or may not greet is waited for, the first time."""
_TEXT_TIMEOUT_S = 3.0
"""How long the words of a reply that was heard to its end may take without session events."""
_REPLY_TIMEOUT_S = 15.0
_REST_TIMEOUT_S = 5.0
_LONGEST_SPEECH_S = 60.0  # a small model may ramble; its reply started in time
_POLL_S = 0.1
_ENDING_TIMEOUT_S = 1.0
_CLOSE_TIMEOUT_S = 5.0
_FAREWELL_S = 0.3  # below the time after which a supervisor counts an agent as lost
_STATE_ATTRIBUTE = "lk.agent.state"  # livekit.agents.types.ATTRIBUTE_AGENT_STATE
_LISTENING_STATES = ("listening", "thinking", "speaking")  # an early greeting may skip the first


async def _both(*work: Coroutine[Any, Any, None]) -> None:
    """Runs both concurrently; if one fails, cancels the other and raises the error."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_DISCONNECT_REASONS = {
    rtc.DisconnectReason.DUPLICATE_IDENTITY: (
        "another participant joined the room under the same identity, {identity!r}, and the "
        "server removed this one"
    ),
    rtc.DisconnectReason.PARTICIPANT_REMOVED: "the server was asked to remove the caller",
    rtc.DisconnectReason.ROOM_DELETED: "the room was deleted",
    rtc.DisconnectReason.ROOM_CLOSED: "the room was closed",
    rtc.DisconnectReason.SERVER_SHUTDOWN: "the server shut down",
}
_NO_VOICE_HINT = "the worker's log tells whether it recognised speech and what its model said"
_MODEL_HINT = "`labvoice doctor` asks the model what a call asks it"
_REPLACEMENT_MARKS = ("replacement_visible", "replacement_listening", "apology_heard")


def _is_agent(participant: rtc.Participant) -> bool:
    kind = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
    return participant.kind == kind and not participant.attributes.get(rooms.ATTRIBUTE_ON_BEHALF)


BringBot = Callable[
    [str, str, float, Callable[[Mark], None]], AbstractAsyncContextManager[Dispatch]
]
"""Brings a bot that joins by itself: of a room, the caller's identity, a time-out in seconds and
who is told the marks. The bot stays until the block is left."""


class PendingCall:
    """A call being connected: `call = await pending`, or `async with pending as call:`.

    Leaving `async with` ends the call, its agent and its room.
    """

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, Call]]) -> None:
        self._connect = connect
        self._call: Call | None = None

    def __await__(self) -> Generator[Any, None, Call]:
        return self._connect().__await__()

    async def __aenter__(self) -> Call:
        self._call = await self._connect()
        return self._call

    async def __aexit__(self, *_: object) -> None:
        assert self._call is not None
        await self._call.end()


@dataclass(frozen=True)
class PastCall:
    """The figures of a call without its connections and what it heard; both grow together.

    Attributes:
        room_name: Name of the room.
        connection_marks: As :attr:`Call.connection_marks`.
        turns: As :attr:`Call.turns`.
    """

    room_name: str
    connection_marks: dict[str, Mark]
    turns: list[Turn]

    @property
    def marks(self) -> dict[str, float]:
        """As :attr:`Call.marks`."""
        return _instants(self.connection_marks)


def _instants(marks: Mapping[str, Mark]) -> dict[str, float]:
    return {name: mark.at_s for name, mark in marks.items()}


class Call:
    """A caller in a room with an agent.

    Args:
        url: Address of the LiveKit server.
        api_key: Its key.
        api_secret: Its secret.
        dispatcher: Dispatches the agent.
        room: Name of the room.
        agent_name: Name of the agent to dispatch.
        identity: The caller's own.
        metadata: Metadata of the dispatch.
        strategy: When the agent is dispatched.
        timeout_s: How long to wait for the agent, in seconds.
        greets: Whether the agent speaks first: nobody waits for the greeting of one that does
            not, and of one that may or may not, nobody waits long. None where it is not known.
        apologises: Whether a replacement agent speaks first.
        on_mark: Called with each connection mark as it is set.
        on_end: Called when the call has ended.
        bring: Brings a bot that joins by itself; the agent is dispatched by name when not given.
        attributes: The caller's attributes as a participant.
        room_metadata: Metadata of the room, where the caller makes it.

    Attributes:
        strategy: As given.
        room_name: Name of the room.
        agent_name: As given.
        identity: As given.
        connection_marks: Marks of the connection by name; failover marks are those of the last
            failover.
        dispatch: The confirmed dispatch; None before.
        offset: Offset of the agent's clock; None before it was measured.
        worker: The agent's job: job_id, worker_id, pid.
        memory: Status of the agent's memory: state, error, updates, memory_load_s,
            waiting_turns, oldest_turn_age_s, lost_turns, lost_error.
        on_turn_mark: Called with each mark of a turn as it is set.
        recorder: Keeps the sound of both sides.
        session_events: What the agent's session told, oldest first: `event`, `heard_s` (monotonic),
            `agent_wall_s` (the agent's clock) and the fields of LiveKit's `AgentSessionEvent`; none
            of an agent that hosts no session events.
        greets: As given; of an agent that was not known, what was found out.
        ready_by: The mark that shows the agent to be ready: `agent_listening`, its state, or for
            one that tells no state `agent_audio_subscribed`; `agent_listening` is then its instant.
        notice: What did not work as the strategy expects; empty if all did.
        failure: Why the last connection or reply failed; empty if none failed.
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
        apologises: bool = True,
        on_mark: Callable[[Mark], None] | None = None,
        on_end: Callable[[Call], None] = lambda _: None,
        bring: BringBot | None = None,
        attributes: Mapping[str, str] | None = None,
        room_metadata: str = "",
    ) -> None:
        self.strategy = strategy
        self.room_name = check_name(room)
        self.agent_name = agent_name
        self.connection_marks: dict[str, Mark] = {}
        self.dispatch: Dispatch | None = None
        self.offset: ClockOffset | None = None
        self.worker: dict[str, Any] = {}
        self.memory: dict[str, Any] = {}
        self.notice = ""
        self.failure = ""
        self._url, self._key, self._secret = url, api_key, api_secret
        self._dispatcher = dispatcher
        self.identity = identity
        self._timeout_s = timeout_s
        self.greets, self._apologises = greets, apologises
        self.ready_by = "agent_listening"
        self._metadata = metadata
        self._on_mark = on_mark
        self._on_end = on_end
        self._bring = bring
        self._attributes, self._room_metadata = attributes, room_metadata
        self._bot = AsyncExitStack()
        self.on_turn_mark: Callable[[Turn, Mark], None] | None = None
        self._room = rtc.Room()
        self.recorder = Recorder(microphone.SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
        self._microphone = microphone.Microphone(self.recorder.sent)
        self._listener = Ear(self._on_sound, self.recorder.heard)
        self._transcription = Transcription(self._room, self.identity, self._on_text)
        self.session_events: list[dict[str, Any]] = []
        self._turns = Turns()
        self._voices_heard = 0
        self._agent_identity = ""
        self._agent_state = ""
        self._hosts_session = self._foreign = False
        self._agent_gone = ""
        self._agent_dispatch = ""
        self._model_error = ""
        self._ended = False
        self._ending: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        remote_session = importlib.import_module(SESSION_MODULE)
        self._session: RemoteSession = remote_session.RemoteSession(
            remote_session.RoomSessionTransport(self._room)
        )

    @property
    def marks(self) -> dict[str, float]:
        """Instants of the connection by name, in seconds on the caller's monotonic clock."""
        return _instants(self.connection_marks)

    @property
    def turns(self) -> list[Turn]:
        """All turns, oldest first."""
        return self._turns.all

    @property
    def notices(self) -> list[str]:
        """What is worth knowing of the connection and of the agent's tracks, a sentence each."""
        return [*filter(None, [self.notice, self._not_told]), *self._listener.notices]

    @property
    def _not_told(self) -> str:
        """Why figures are missing that an agent of labvoice's has; empty for one of those."""
        if not self._foreign:
            return ""
        words = "the agent is not labvoice's: its worker's marks are not known"
        if not self._hosts_session:
            words += ", nor LiveKit's figures of its turns, for it hosts no session events"
        return words

    @property
    def greeting(self) -> str:
        """Text of the agent's greeting."""
        return self._turns.greeting

    # -- connecting ---------------------------------------------------------------------

    async def dispatch_ahead(self) -> None:
        """Dispatches the agent before the click; otherwise :meth:`connect` does.

        Raises:
            DispatchError: The agent did not join; the class names the cause.
        """
        await self._dispatch()

    async def connect(self, *, click_s: float | None = None) -> Call:
        """Joins, publishes the microphone, dispatches the agent and waits until it listens.

        Args:
            click_s: The intended start, in monotonic seconds; None: now.

        Raises:
            ServerUnreachableError: The server does not answer.
            CredentialsError: It refuses the token.
            MediaBlockedError: It answers, but media cannot pass.
            DispatchError: The agent did not join; the class names the cause.
            StageTimeoutError: A later step did not happen in time; `stage` names it.
        """
        with self._failures():
            await self._connect(click_s)
        return self

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except LabvoiceError as error:
            self.failure = error.observed
            raise

    async def _connect(self, click_s: float | None) -> None:
        strategy = strategy_of(self.strategy)
        if strategy.when == "ahead" and self.dispatch is None:
            await self.dispatch_ahead()
        self._mark("click", click_s if click_s is not None else time.monotonic())
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
        self._mark("token_issued")
        if strategy.by_server:
            self._mark("dispatch_requested")  # by connecting
        if strategy.when == "during":
            await _both(self._join(token), self._dispatch())
        else:
            await self._join(token)
        if self.dispatch is None:
            await self._dispatch()
        if strategy.by_server and not self._was_dispatched():
            self.notice = strategy.missed.format(room=self.room_name)
        await self._until_mark("agent_visible", _JOIN_TIMEOUT_S)
        if self._is_ours:
            for mark in ("agent_audio_subscribed", "agent_listening"):
                await self._until_mark(mark, _JOIN_TIMEOUT_S)
        else:
            self._foreign = True
            await self._until_ready()

    async def _until_mark(self, mark: str, timeout_s: float) -> None:
        present = functools.partial(self.connection_marks.__contains__, mark)
        await self._until(present, mark, timeout_s)

    @property
    def _is_ours(self) -> bool:
        """Whether the agent is labvoice's own, which tells its state and answers questions."""
        agent = self._room.remote_participants.get(self._agent_identity)
        return agent is not None and ATTRIBUTE_DISPATCH_ID in agent.attributes

    async def _until_ready(self) -> None:
        """Waits for another's agent: it may load its models, tell no state, or publish late."""
        signs = ("agent_listening", "agent_audio_subscribed")
        await self._until(
            lambda: any(sign in self.marks for sign in signs), signs[0], _FOREIGN_READY_TIMEOUT_S
        )
        with contextlib.suppress(StageTimeoutError):
            await self._until(
                lambda: all(sign in self.marks for sign in signs), signs[0], _OTHER_SIGN_S
            )
        if "agent_listening" not in self.marks:
            self.ready_by = "agent_audio_subscribed"
            self._mark("agent_listening", self.marks["agent_audio_subscribed"])

    async def _dispatch(self) -> None:
        if self._bring is not None:
            self.dispatch = await self._bot.enter_async_context(
                self._bring(self.room_name, self.identity, self._timeout_s, self._set_mark)
            )
            return
        self.dispatch = await self._dispatcher.dispatch(
            self.room_name,
            self.agent_name,
            metadata=self._metadata,
            timeout_s=self._timeout_s,
            on_mark=self._set_mark,
        )

    def _was_dispatched(self) -> bool:
        return self.dispatch is not None and self.dispatch.found

    async def _join(self, token: str) -> None:
        self._watch_room()
        await self._session.start()
        await connect_room(self._room, self._url, token)
        self._mark("room_connected")
        for participant in self._room.remote_participants.values():
            self._on_participant(participant)
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await self._microphone.publish(self._room)
        except TimeoutError:
            raise StageTimeoutError(
                "mic_published", _JOIN_TIMEOUT_S, "the server did not accept the caller's track"
            ) from None
        self._mark("mic_published")

    def _mark(self, name: str, at_s: float | None = None) -> None:
        self._set_mark(Mark(name, time.monotonic() if at_s is None else at_s))

    def _set_mark(self, mark: Mark) -> None:
        if mark.name in self.connection_marks:
            return
        self.connection_marks[mark.name] = mark
        if self._on_mark is not None:
            self._on_mark(mark)
        self._changed.set()

    def _tell_mark(self, turn: Turn, name: str) -> None:
        if self.on_turn_mark is not None:
            self.on_turn_mark(turn, Mark(name, turn.marks[name]))

    def _on_sound(self) -> None:
        for voice in self._listener.voices[self._voices_heard :]:
            self._turns.agent_starts(voice.start_s)
        self._voices_heard = len(self._listener.voices)
        if self._listener.silent:
            self._turns.agent_ends()
        self._changed.set()

    def _watch_room(self) -> None:
        room = self._room

        def on_left(participant: rtc.RemoteParticipant) -> None:
            if participant.identity == self._agent_identity:
                self._agent_gone = "the agent left the room"
                if not self._ended:
                    self._turns.agent_lost()
                    for mark in _REPLACEMENT_MARKS:  # of the failover before
                        self.connection_marks.pop(mark, None)
                self._agent_dispatch = participant.attributes.get(ATTRIBUTE_DISPATCH_ID, "")
                self._changed.set()

        def on_attributes(changed: Mapping[str, str], participant: rtc.Participant) -> None:
            # Heartbeats do not carry the agent's state, which the session's events report sooner.
            if participant.identity == self._agent_identity and _STATE_ATTRIBUTE in changed:
                self._on_agent_state(participant.attributes.get(_STATE_ATTRIBUTE, ""))

        def on_track(
            _: rtc.Track, __: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
        ) -> None:
            self._on_participant(participant)
            self._listen_to(participant)

        def on_track_gone(
            track: rtc.Track, _: rtc.RemoteTrackPublication, __: rtc.RemoteParticipant
        ) -> None:
            self._listener.end(track.sid)

        def on_disconnected(reason: Any) -> None:
            words = _DISCONNECT_REASONS.get(reason, "").format(identity=self.identity)
            ended = "the caller's connection to the server ended"
            self._agent_gone = f"{ended}: {words}" if words else self._agent_gone or ended
            self._changed.set()

        room.on("participant_connected", self._on_participant)
        room.on("participant_disconnected", on_left)
        room.on("participant_attributes_changed", on_attributes)
        room.on("track_subscribed", on_track)
        room.on("track_unsubscribed", on_track_gone)
        room.on("disconnected", on_disconnected)
        self._session.on("agent_state_changed", self._on_state_event)
        self._session.on("conversation_item_added", self._on_item)
        for name in SESSION_EVENTS:
            # its type names the events of version 1.8 only
            self._session.on(name, functools.partial(self._on_session_event, name))  # type: ignore[arg-type]

    def _counts(self, participant: rtc.RemoteParticipant) -> bool:
        """Whether it may be the agent: a bot with a token of its own joins as anybody does."""
        return _is_agent(participant) or self._bring is not None

    def _on_participant(self, participant: rtc.RemoteParticipant) -> None:
        if self._counts(participant) and (not self._agent_identity or self._agent_gone):
            replaced = bool(self._agent_identity)
            self._agent_identity = participant.identity
            self._agent_gone = self._agent_state = ""
            self.offset = None
            self._mark("replacement_visible" if replaced else "agent_visible")
            self._on_agent_state(participant.attributes.get(_STATE_ATTRIBUTE, ""))
            for other in list(self._room.remote_participants.values()):
                self._listen_to(other)  # what was subscribed before anybody knew whose it is

    def _listen_to(self, participant: rtc.RemoteParticipant) -> None:
        """Listens to all audio of the agent, and of whoever publishes on its behalf."""
        on_behalf_of = participant.attributes.get(rooms.ATTRIBUTE_ON_BEHALF)
        if not self._agent_identity or self._agent_identity not in (
            participant.identity,
            on_behalf_of,
        ):
            return
        for publication in participant.track_publications.values():
            track = publication.track
            if track is not None and track.kind == rtc.TrackKind.KIND_AUDIO:
                self._mark("agent_audio_subscribed")
                self._listener.listen(track, name=publication.name, publisher=participant.identity)

    def _on_agent_state(self, state: str) -> None:
        if state:
            self._agent_state = state
        if state in _LISTENING_STATES:
            replaced = "replacement_visible" in self.marks
            self._mark("replacement_listening" if replaced else "agent_listening")
        self._changed.set()

    def _on_text(self, item: Item) -> None:
        if not self._hosts_session:  # else the same words come with LiveKit's figures
            self._turns.item(item)
            self._changed.set()

    def _on_session_event(self, name: str, event: session_pb.AgentSessionEvent) -> None:
        self._hosts_session = True
        told = json_format.MessageToDict(getattr(event, name), preserving_proto_field_name=True)
        at_s = event.created_at.ToNanoseconds() / 1e9
        self.session_events.append(
            {"event": name, "heard_s": time.monotonic(), "agent_wall_s": at_s, **told}
        )

    def _on_state_event(self, event: session_pb.AgentSessionEvent) -> None:
        number = event.agent_state_changed.new_state
        self._on_agent_state(session_pb.AgentState.Name(number).removeprefix("AS_").lower())

    def _on_item(self, event: session_pb.AgentSessionEvent) -> None:
        message = event.conversation_item_added.item.message
        roles = {session_pb.ChatRole.USER: "user", session_pb.ChatRole.ASSISTANT: "assistant"}
        known = message.metrics.DESCRIPTOR.fields_by_name
        self._turns.item(
            Item(
                message.id,
                roles.get(message.role, ""),
                " ".join(part.text for part in message.content if part.text),
                message.interrupted,
                {
                    name: getattr(message.metrics, name)
                    for name in AGENT_TURN_STAGES
                    if name in known and message.metrics.HasField(name)
                },
            )
        )
        self._changed.set()

    async def _until(
        self,
        condition: Callable[[], bool],
        stage: str,
        timeout_s: float,
        hint: str = "",
        *,
        agent_lost: bool = False,
    ) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            if self._agent_gone and not agent_lost:
                why = await self._why_gone()
                raise AgentLostError(
                    f"{self._agent_gone} while the caller waited for {stage}{why and f': {why}'}",
                    "the worker's log tells how the job ended",
                )
            self._changed.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                error = NoReplyError if stage == "reply_heard" else StageTimeoutError
                last = f"the agent's last state is {self._agent_state!r}"
                raise error(stage, timeout_s, last + self._whom_it_hears(), hint) from None

    @property
    def _other_callers(self) -> list[str]:
        humans = (
            rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD,
            rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
        )
        return [
            one.identity
            for one in self._others.values()
            if one.kind in humans
            and one.identity != self._agent_identity
            and not one.attributes.get(rooms.ATTRIBUTE_ON_BEHALF)
        ]

    def _whom_it_hears(self) -> str:
        """Returns a note if others are in the room: an agent listens to one participant only."""
        if not self._other_callers:
            return ""
        names = ", ".join(map(repr, self._other_callers))
        return (
            f"; {names} is in the room as well, and an agent listens to one participant only: "
            f"it may be the other one, not {self.identity!r}"
        )

    async def _why_gone(self) -> str:
        """Returns the worker's reason for the end of the lost agent's job; it may arrive late."""
        if not self._agent_identity:
            return ""
        until = time.monotonic() + _ENDING_TIMEOUT_S
        while True:
            why = await self._dispatcher.why_ended(self._agent_dispatch, self._agent_identity)
            if why or time.monotonic() > until:
                return why
            await asyncio.sleep(_POLL_S)

    # -- talking ------------------------------------------------------------------------

    def surround(self, samples: npt.NDArray[np.int16]) -> None:
        """Sends this sound, 48 kHz and mono, all the time, repeated from its end; empty: none."""
        self._microphone.background = samples

    async def hear_greeting(self, timeout_s: float = _REPLY_TIMEOUT_S) -> str:
        """Waits for the end of the agent's greeting; returns its text.

        An agent that is known to wait for the user is not waited for: the text is empty. One
        that is not known is waited for once, not longer than 8 s, and :attr:`greets` then tells.

        Raises:
            StageTimeoutError: No voice was heard in time.
            AgentLostError: The agent left.
        """
        unknown = self.greets is None
        if self.greets is not False:
            wait_s = min(timeout_s, _GREETING_TIMEOUT_S) if unknown else timeout_s
            try:
                onset_s = await self._onset_since(0.0, "greeting_heard", wait_s)
            except StageTimeoutError:
                if not unknown:
                    raise
                self.greets = False
                waited = f"the agent does not greet (waited {wait_s:g} s)"
                self.notice = "; ".join(filter(None, (self.notice, waited)))
            else:
                self.greets = True
                self._mark("greeting_heard", onset_s)
                await self.hear_end()
        await self._fetch_worker()
        return self.greeting

    async def wait_for_replacement(self, timeout_s: float = 30.0) -> None:
        """Waits until a replacement agent listens, and was heard if it speaks first.

        Raises:
            StageTimeoutError: None joined, or it was not heard, in time.
            AgentLostError: It joined and left.
        """
        stage = "replacement_listening"
        await self._until(lambda: stage in self.marks, stage, timeout_s, agent_lost=True)
        since_s = self.marks["replacement_visible"]
        if self._apologises:
            onset_s = await self._onset_since(since_s, "apology_heard", timeout_s)
            self._mark("apology_heard", onset_s)
            await self.hear_end()
        await self._fetch_worker()

    async def say(self, utterance: Utterance) -> Turn:
        """Sends an utterance in real time; returns when the last sample was sent, before the reply.

        Args:
            utterance: See :mod:`labvoice.speech.utterances`.
        """
        speech = await asyncio.to_thread(lambda: utterance.speech)
        turn = self._turns.begin(utterance.text, utterance.notice)
        if speech.doubt:
            turn.add_notice(f"the end of speech is uncertain: {speech.doubt}")
        before = self._microphone.gaps
        start_s, end_s = await self._microphone.play(utterance.samples, speech.first, speech.last)
        if gaps := self._microphone.gaps - before:
            turn.add_notice(
                f"the caller's speech was broken in {gaps} places: this machine was too busy to "
                "send it in time"
            )
        self._turns.spoken(turn, start_s, end_s)
        self._tell_mark(turn, "user_speech_start")
        self._tell_mark(turn, "user_speech_end")
        return turn

    async def hear(self, timeout_s: float = _REPLY_TIMEOUT_S) -> Turn:
        """Waits for the end of the reply to the last utterance.

        Returns:
            The turn, with its marks, LiveKit's figures, the transcript and the reply.

        Raises:
            LabvoiceError: Nothing was said yet.
            NoReplyError: No voice was heard in time; the turn's outcome is `no_reply`.
            AgentLostError: The agent left; the turn's outcome is `agent_lost`.
        """
        if not self.turns:
            raise LabvoiceError("nothing was said yet", "`await call.say(…)` first")
        turn = self.turns[-1]
        try:
            await self._until(
                lambda: "reply_heard" in turn.marks, "reply_heard", timeout_s, _NO_VOICE_HINT
            )
            if (
                turn.voice_to_voice_s is None
            ):  # it began during the utterance; the rest may have its own
                with contextlib.suppress(NoReplyError):
                    await self._until(
                        lambda: turn.voice_to_voice_s is not None, "reply_heard", _REST_TIMEOUT_S
                    )
            self._tell_mark(turn, "reply_heard")
            await self.hear_end()
            voice = self._listener.voice_since(turn.marks["reply_heard"])
            if voice is not None and voice.doubt:
                turn.add_notice(f"the reply's beginning is uncertain: {voice.doubt}")
            await self._until_text(turn, timeout_s)
            await self._fetch_worker()
        except NoReplyError as error:
            turn.finish("no_reply")
            raise await self._why_no_reply(error) from None
        except AgentLostError:
            turn.finish("agent_lost")
            raise
        except LabvoiceError:
            turn.finish("error")
            raise
        return turn

    async def _why_no_reply(self, error: NoReplyError) -> NoReplyError:
        """The same error, with the cause and its hint where the agent's model gave one."""
        with contextlib.suppress(LabvoiceError):
            await self._fetch_worker()
            if self._model_error:
                return NoReplyError(
                    error.stage,
                    error.timeout_s,
                    self._model_error,
                    refusal_hint(self._model_error, _MODEL_HINT),
                )
        return error

    async def _until_text(self, turn: Turn, timeout_s: float) -> None:
        """Waits for the reply's words; of an agent that tells none, the turn is whole without."""
        told = self._hosts_session
        try:
            await self._until(
                lambda: turn.replied or (turn.voice_to_voice_s is None and bool(turn.reply)),
                "the reply's text",
                timeout_s if told else _TEXT_TIMEOUT_S,
            )
        except StageTimeoutError:
            if told:
                raise
            turn.add_notice("the agent published no text of its reply")

    async def hear_onset(self, timeout_s: float = _REPLY_TIMEOUT_S) -> float:
        """Waits until the reply begins, for a caller that interrupts it.

        Returns:
            When its first voiced sample was heard, in monotonic seconds.

        Raises:
            NoReplyError: No voice was heard in time.
            AgentLostError: The agent left.
        """
        since_s = self.turns[-1].marks["user_speech_end"]
        return await self._onset_since(since_s, "reply_heard", timeout_s)

    async def _onset_since(self, since_s: float, stage: str, timeout_s: float) -> float:
        await self._until(
            lambda: self._listener.onset_since(since_s) is not None,
            stage,
            timeout_s,
            _NO_VOICE_HINT,
        )
        onset = self._listener.onset_since(since_s)
        assert onset is not None
        return onset

    async def hear_end(self) -> None:
        """Waits until the agent listens again and its voice has ended.

        Raises:
            StageTimeoutError: It still speaks after a minute.
            AgentLostError: The agent left.
        """
        await self._until(
            lambda: self._agent_state in ("listening", "") and self._listener.silent,
            "the end of the agent's speech",
            _LONGEST_SPEECH_S,
        )

    async def _fetch_worker(self) -> None:
        """Fetches the worker's marks, and figures missing in the session's events."""
        agent = self._room.remote_participants.get(self._agent_identity)
        if agent is None or ATTRIBUTE_DISPATCH_ID not in agent.attributes:
            return  # not labvoice's agent: it has no such RPC
        try:
            if self.offset is None:
                self.offset = await measure_offset(self._room, self._agent_identity)
            answer = await self._room.local_participant.perform_rpc(
                destination_identity=self._agent_identity, method=RPC_MARKS, payload=""
            )
        except rtc.RpcError as error:
            sentence = f"the agent did not answer when it was asked for its marks: {error.message}"
            hint = "the worker's log tells whether its job ended"
            if self._agent_gone:
                raise AgentLostError(sentence, hint) from None
            # The agent is in its room: the instrument's request failed.
            raise LabvoiceError(sentence, hint) from None
        self.worker = json.loads(answer)
        marks = self.worker.pop("marks")
        for name in WORKER_CONNECTION_MARKS:
            if marks.get(name):
                self._set_mark(self.offset.to_caller(name, marks[name]))
        figures = self.worker.pop("figures")
        self.memory = self.worker.pop("memory")
        self._refusal = self.worker.pop("refusal", "")
        self._refusal = self.worker.pop("refusal", "")
        self._model_error = self.worker.pop("model_error", "")
        self._turns.figures(figures)

    async def until_memory(self, state: str = "ready", timeout_s: float = 30.0) -> None:
        """Waits until the agent's memory is in a state, such as `ready`.

        Raises:
            StageTimeoutError: It is not in time.
            AgentLostError: The agent left.
        """
        await self._poll(lambda: self.memory.get("state") == state, f"memory {state}", timeout_s)

    async def until_synced(self, timeout_s: float = 30.0) -> None:
        """Waits until every turn of this call is in Letta; the turns then have `memory_sync`.

        Raises:
            StageTimeoutError: It is not in time.
            AgentLostError: The agent left.
        """
        await self._poll(
            lambda: all("memory_sync" in turn.metrics for turn in self.turns),
            "memory_sync",
            timeout_s,
        )

    async def _poll(self, condition: Callable[[], bool], stage: str, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while True:
            await self._fetch_worker()
            if condition():
                return
            if time.monotonic() > until:
                raise StageTimeoutError(stage, timeout_s, f"the agent says: {self.memory}")
            await asyncio.sleep(_POLL_S)

    def heard_audio(self, turn: Turn | None = None) -> tuple[npt.NDArray[np.int16], int]:
        """Returns what the caller heard, and its sample rate in Hz.

        Args:
            turn: Only from this turn's start to the next one's; None: the whole call.
        """
        recording = self.recorder.recording()
        if recording is None:
            return np.zeros(0, np.int16), SAMPLE_RATE_HZ
        start_s, end_s = recording.start_s, recording.end_s
        if turn is not None:
            start_s = turn.marks.get("user_speech_start", start_s)
            for following in self.turns[turn.number + 1 : turn.number + 2]:
                end_s = following.marks.get("user_speech_start", end_s)
        return recording.heard(start_s, end_s), SAMPLE_RATE_HZ

    # -- leaving ------------------------------------------------------------------------

    @property
    def agent_identity(self) -> str:
        """Identity of the agent while it is in the room; otherwise empty."""
        return self._agent_identity if self._agent_identity in self._others else ""

    @property
    def _others(self) -> Mapping[str, rtc.RemoteParticipant]:
        return self._room.remote_participants if self._room.isconnected() else {}

    async def _until_agent_left(self, timeout_s: float = _FAREWELL_S) -> None:
        """Waits briefly until the agent has left.

        Raises:
            TimeoutError: It is still in the room.
        """
        async with asyncio.timeout(timeout_s):
            while self.agent_identity:
                self._changed.clear()
                await self._changed.wait()

    async def hang_up(self) -> None:
        """Leaves the room and stops sending; safe to call twice.

        The agent stays until the server notices; :meth:`end` ends it at once.
        """
        self._ended = True
        for close in (
            self._session.aclose,
            self._transcription.aclose,
            self._microphone.aclose,
            self._listener.aclose,
            self._room.disconnect,
        ):
            # One that fails or hangs must not block the others.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await close()

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
        self._ended = True
        gone = (LabvoiceError, api.TwirpError, aiohttp.ClientError, TimeoutError)
        alone = await self._is_alone()
        try:
            await self._bot.aclose()
            if alone and self.agent_identity:
                with contextlib.suppress(*gone):
                    server = self._dispatcher.api
                    await rooms.remove_agent(server, self.room_name, self.agent_identity)
                    await self._until_agent_left()
            await self.hang_up()
            if not alone:
                return
            with contextlib.suppress(*gone):
                await rooms.clear(
                    self._dispatcher.api,
                    self.room_name,
                    agent_name=self.agent_name,
                    gone={self.identity, self._agent_identity},
                )
        finally:
            self._on_end(self)

    async def _is_alone(self) -> bool:
        """Whether no other human is in the room; the server also lists those not announced yet."""
        try:
            there = await rooms.participants(self._dispatcher.api, self.room_name)
        except (LabvoiceError, api.TwirpError, aiohttp.ClientError, TimeoutError):
            return not self._other_callers
        ours = (self.identity, self._agent_identity)
        return not any(rooms.is_human(p) and p.identity not in ours for p in there)

    async def __aenter__(self) -> Call:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    def _facts(self) -> Facts:
        if self._ended:
            state = "ended"
        elif "click" not in self.marks:
            state = "not connected yet"
        else:
            state = f"the agent is {self._agent_state}" if self._agent_state else "connecting"
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
                *turn_notices(self.turns),
            ],
        )

    def __repr__(self) -> str:
        return self._facts().text()

    def _repr_html_(self) -> str:
        return self._facts().html()
