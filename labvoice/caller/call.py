"""One simulated caller: joins, dispatches the agent, speaks, listens, and marks every step."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
from livekit import api, rtc
from pydantic import SecretStr

from labvoice.caller.agent import NO_VOICE_HINT, REPLY_TIMEOUT_S, RoomAgent
from labvoice.caller.clock import ClockOffset
from labvoice.caller.connection import both, connect_room
from labvoice.caller.ear import SAMPLE_RATE_HZ, Voice
from labvoice.caller.interruption import Interruption, check_at, interruption
from labvoice.caller.listening import call_player, heard_audio
from labvoice.caller.marks import ConnectionMarks, instants
from labvoice.caller.media import Media, OpenLink
from labvoice.caller.microphone import SAMPLE_RATE_HZ as MICROPHONE_RATE_HZ
from labvoice.caller.microphone import Microphone
from labvoice.caller.recorder import Recorder
from labvoice.caller.reports import AgentReports
from labvoice.caller.turns import Turn, Turns, turn_notices
from labvoice.dispatch import Dispatch, Dispatcher, StrategyName, rooms
from labvoice.dispatch.dispatcher import DISPATCH_TIMEOUT_S
from labvoice.dispatch.strategies import strategy_of
from labvoice.dispatch.tokens import caller_token
from labvoice.errors import (
    AgentLostError,
    LabvoiceError,
    NoReplyError,
    StageTimeoutError,
    UsageError,
)
from labvoice.link.client import Link
from labvoice.protocol.metadata import JobMetadata, Metadata, check_name
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.players import Player
from labvoice.show import Facts, call_facts
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import Utterance

_JOIN_TIMEOUT_S = 10.0
GREETING_TIMEOUT_S = 8.0
"""How long an agent that may or may not greet is waited for, the first time."""
_TEXT_TIMEOUT_S = 3.0
"""How long the words of a reply that was heard to its end may take without session events."""
_REST_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_FAREWELL_S = 0.3  # below the time after which a supervisor counts an agent as lost
_SERVER_ERRORS = (LabvoiceError, api.TwirpError, aiohttp.ClientError, TimeoutError)


BringBot = Callable[
    [str, str, float, Callable[[Mark], None]], AbstractAsyncContextManager[Dispatch]
]
"""Brings a bot that joins by itself: of a room, the caller's identity, a time-out in seconds and
who is told the marks. The bot stays until the block is left."""


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
        strategy: As given.
        room_name: Name of the room.
        agent_name: As given.
        identity: As given.
        connection_marks: Marks of the connection by name; failover marks are those of the last
            failover.
        dispatch: The confirmed dispatch; None before.
        agent: The agent in the room, and its voice.
        reports: What the agent reports.
        session_events: What the agent's session reports, oldest first: `event`, `heard_s`
            (monotonic), `agent_wall_s` (the agent's clock) and the fields of LiveKit's
            `AgentSessionEvent`; none of an agent that hosts no session events.
        on_turn_mark: Called with each mark of a turn as it is set.
        recorder: Keeps the sound of both sides.
        conditions: How the caller sounds; None where :meth:`sound_like` was not called.
        recording_path: Where the recording is written when the call ends, `.ogg` or `.wav`; None:
            nowhere.
        media: The caller's media connection.
        greets: As given; of an agent that was not known, what was found out.
        ready_by: The mark that shows the agent to be ready: `agent_listening`, its state, or for
            one that reports no state `agent_audio_subscribed`; empty before.
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
        self.strategy = strategy
        self.room_name = check_name(room)
        self.agent_name = agent_name
        self.identity = identity
        self.dispatch: Dispatch | None = None
        self.greets, self._apologises = greets, apologises
        self._greeting_timeout_s = greeting_timeout_s
        self.ready_by = ""
        self.notice = self.failure = ""
        self.on_turn_mark: Callable[[Turn, Mark], None] | None = None
        self.conditions: Conditions | None = None
        self._ready = False
        self.recorder = Recorder(MICROPHONE_RATE_HZ, SAMPLE_RATE_HZ)
        self._url, self._key, self._secret = url, api_key, api_secret
        self._dispatcher = dispatcher
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._bring = bring
        self._attributes, self._room_metadata = attributes, room_metadata
        self._bot = AsyncExitStack()
        self._room = rtc.Room()
        self._microphone = Microphone(self.recorder.sent)
        self.media = Media(self._room, self._microphone, open_link, tap)
        self._marks = ConnectionMarks(on_mark)
        self.connection_marks = self._marks.by_name
        self._turns = Turns()
        self.agent = RoomAgent(
            self._room,
            identity,
            self._marks,
            self._turns,
            self._heard,
            dispatcher.why_ended,
            is_bot=bring is not None,
        )
        self.reports = AgentReports(self._room, identity, self.agent, self._marks, self._turns)
        self.session_events = self.reports.session_events
        self._foreign = False
        self._ending: asyncio.Task[None] | None = None
        self.recording_path: Path | None = None

    @property
    def traceparent(self) -> str | None:
        """W3C `traceparent` of the call's span, under which the agent's are; None if untraced."""
        return self._metadata.traceparent if isinstance(self._metadata, JobMetadata) else None

    @property
    def marks(self) -> dict[str, float]:
        """Instants of the connection by name, in seconds on the caller's monotonic clock."""
        return instants(self.connection_marks)

    @property
    def offset(self) -> ClockOffset | None:
        """Offset of the agent's clock; None before it was measured."""
        return self.reports.offset

    @property
    def worker(self) -> dict[str, Any]:
        """The agent's job: job_id, worker_id, pid."""
        return self.reports.worker

    @property
    def memory(self) -> dict[str, Any]:
        """Status of the agent's memory.

        Its keys are state, error, updates, memory_load_s, waiting_turns, oldest_turn_age_s,
        lost_turns, lost_error.
        """
        return self.reports.memory

    @property
    def turns(self) -> list[Turn]:
        """All turns, oldest first."""
        return self._turns.all

    @property
    def link(self) -> Link:
        """The call's link: `await call.link.set("loss=10%")`, `await call.link.clear()`.

        Raises:
            UsageError: The call has none, or is not connected yet.
        """
        if self.media.link is None:
            raise UsageError(
                "the call has no link that could be changed",
                'connect it with one: `lab.call(link="none")` lets everything pass at first',
            )
        return self.media.link

    @property
    def notices(self) -> list[str]:
        """What is worth knowing of the connection and of the agent's tracks, a sentence each."""
        missing = self.reports.missing if self._foreign else ""
        return [*filter(None, [self.notice, missing]), *self.agent.ear.notices]

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
            await both(self._join(token), self.dispatch_ahead())
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
        present = functools.partial(self.connection_marks.__contains__, mark)
        await self.agent.until(present, mark, timeout_s)

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

    def _heard(self, track: str, samples: npt.NDArray[np.int16], at_s: float) -> None:
        self.recorder.heard(track, samples, at_s)
        self._microphone.hear(track, samples, SAMPLE_RATE_HZ)

    def _report(self, turn: Turn, name: str) -> None:
        if self.on_turn_mark is not None:
            self.on_turn_mark(turn, Mark(name, turn.marks[name]))

    # -- talking ------------------------------------------------------------------------

    def sound_like(
        self, conditions: Conditions, background: npt.NDArray[np.int16], *, ready: bool = False
    ) -> None:
        """Sets how the caller sounds during the whole call, and what is around it.

        Args:
            conditions: How it sounds.
            background: Sent all the time, repeated from its end; 48 kHz, mono; empty: silence. See
                :meth:`labvoice.speech.conditions.Conditions.around`.
            ready: Whether the utterances of :meth:`say` have been through the microphone and the
                line already.
        """
        self.conditions, self._ready = conditions, ready
        self._microphone.background = background
        echo_db = conditions.echo_db
        self._microphone.echo_gain = 0.0 if echo_db is None else 10 ** (-echo_db / 20)

    async def hear_greeting(self, timeout_s: float | None = None) -> str:
        """Waits for the end of the agent's greeting; returns its text.

        An agent that is known to wait for the user is not waited for: the text is empty. One
        that is not known is waited for once, and :attr:`greets` then tells.

        Args:
            timeout_s: How long to wait for its beginning, in seconds; when not given 15, or what
                the call was made with for an agent that is not known.

        Raises:
            StageTimeoutError: No voice was heard in time.
            AgentLostError: The agent left.
        """
        unknown = self.greets is None
        if self.greets is not False:
            wait_s = self._greeting_timeout_s if unknown else REPLY_TIMEOUT_S
            wait_s = wait_s if timeout_s is None else timeout_s
            try:
                onset_s = await self.agent.until_onset(0.0, "greeting_heard", wait_s)
            except StageTimeoutError:
                if not unknown:
                    raise
                self.greets = False
                waited = f"the agent does not greet (waited {wait_s:g} s)"
                self.notice = "; ".join(filter(None, (self.notice, waited)))
            else:
                self.greets = True
                self._marks.set("greeting_heard", onset_s)
                await self.hear_end()
        await self.reports.fetch()
        return self.greeting

    async def wait_for_replacement(self, timeout_s: float = 30.0) -> None:
        """Waits until a replacement agent listens, and was heard if it speaks first.

        It replaces the agent that the caller last spoke with, which :attr:`worker` names: once this
        has returned, the next call of it waits for the loss of that replacement.

        Raises:
            StageTimeoutError: None joined, or it was not heard, in time.
            AgentLostError: It joined and left.
        """
        stage, before = "replacement_listening", self.reports.last_agent
        await self.agent.until(
            lambda: stage in self.marks and self.agent.identity != before,
            stage,
            timeout_s,
            or_lost=True,
        )
        since_s = self.marks["replacement_visible"]
        if self._apologises and (self.greets or not self._foreign):
            onset_s = await self.agent.until_onset(since_s, "apology_heard", timeout_s)
            self._marks.set("apology_heard", onset_s)
            await self.hear_end()
        await self.reports.fetch()

    async def say(self, utterance: Utterance, *, at: float | None = None) -> Turn:
        """Sends an utterance in real time; returns when the last sample was sent, before the reply.

        Args:
            utterance: See :mod:`labvoice.speech.utterances`.
            at: When the first voiced sample leaves, in seconds after the onset of the reply that
                is heard or, where none is heard yet, of the next one: so the caller interrupts, or
                says "mm-hm" while the agent speaks. Before the first turn it is the greeting.
                A reply that is over by then is not waited for; the turn's notice says so. None:
                at once. See :meth:`interruption`.

        Raises:
            UsageError: `at` is negative or no number.
            NoReplyError: No reply was heard in time.
            AgentLostError: The agent left before it was heard.
        """
        if self.conditions is not None and not self._ready:
            utterance = await asyncio.to_thread(self.conditions.spoken, utterance)
        speech = await asyncio.to_thread(lambda: utterance.speech)
        if at is not None:
            await self.agent.until_into_reply(check_at(at) - speech.first / utterance.sample_rate)
        turn = self._turns.begin(utterance.text, utterance.notice)
        if at is not None and not turn.over_agent:
            turn.add_notice(f"the reply was over {at:g} s after its onset: nothing was interrupted")
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
        self._report(turn, "user_speech_start")
        self._report(turn, "user_speech_end")
        await self.media.said()
        return turn

    def interruption(self, turn: Turn) -> Interruption:
        """Returns what the agent's voice has done so far since the caller spoke over it.

        Args:
            turn: What the caller said, to its end.
        """
        told = any(each.user_messages for each in self.turns)
        return interruption(turn, self.voices, time.monotonic(), words_told=told)

    @property
    def voices(self) -> list[Voice]:
        """All segments of the agent's voice so far, oldest first."""
        return list(self.agent.ear.voices)

    async def hear(self, timeout_s: float = REPLY_TIMEOUT_S) -> Turn:
        """Waits for the end of the reply to the last utterance.

        Returns:
            The turn, with its marks, LiveKit's figures, the transcript and the reply.

        Raises:
            LabvoiceError: Nothing was said yet.
            NoReplyError: No voice was heard in time; the turn's outcome is `no_reply`.
            AgentLostError: The agent left; the turn's outcome is `agent_lost`.
            MediaPathError: The caller's media did not take its link; the outcome is `error`.
        """
        if not self.turns:
            raise LabvoiceError("nothing was said yet", "`await call.say(…)` first")
        turn = self.turns[-1]
        try:
            await self.agent.until(
                lambda: "reply_heard" in turn.marks, "reply_heard", timeout_s, NO_VOICE_HINT
            )
            # A reply that began during the utterance has none; one to the rest may follow.
            if turn.voice_to_voice_s is None:
                with contextlib.suppress(NoReplyError):
                    await self.agent.until(
                        lambda: turn.voice_to_voice_s is not None, "reply_heard", _REST_TIMEOUT_S
                    )
            self._report(turn, "reply_heard")
            await self.hear_end()
            voice = self.agent.ear.voice_since(turn.marks["reply_heard"])
            if voice is not None and voice.doubt:
                turn.uncertain_s = voice.uncertainty_s
                turn.add_notice(
                    f"the reply's beginning is uncertain by {turn.uncertain_s * 1000:.0f} ms: "
                    f"{voice.doubt}"
                )
            await self.take_media(turn)
            await self._until_text(turn, timeout_s)
            await self.hear_end()  # what follows a filler
            if (end_s := self.agent.ear.end_since(turn.marks["reply_heard"])) is not None:
                turn.marks["reply_end"] = end_s
                self._report(turn, "reply_end")
            if "answer_heard" in turn.marks:
                self._report(turn, "answer_heard")
            await self.reports.fetch()
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

    async def take_media(self, turn: Turn) -> None:
        """Takes what is known of the media of a turn that was heard; :meth:`hear` does so itself.

        Raises:
            MediaPathError: Some of it did not take the link.
        """
        before = set(turn.marks)
        await self.media.heard(turn)
        for name in turn.marks.keys() - before:
            self._report(turn, name)

    async def _why_no_reply(self, error: NoReplyError) -> NoReplyError:
        """The same error, with its cause: the link, or what the agent's model answered."""
        if cut := self.media.cut():
            hint = "`await call.link.clear()` lets packets pass again"
            return NoReplyError(error.stage, error.timeout_s, cut, hint)
        return await self.reports.why_no_reply(error)

    async def _until_text(self, turn: Turn, timeout_s: float) -> None:
        """Waits for the reply's text; an agent that publishes none leaves the turn without."""
        # What was told so far may be a filler, or the words of a speech-to-speech model.
        told = self.reports.hosts_session and not turn.reply
        early = self._early_messages(turn)

        def is_there() -> bool:
            if turn.voice_to_voice_s is None:
                return turn.replied or bool(turn.reply)
            return turn.replied and turn.user_messages > early

        try:
            await self.agent.until(
                is_there, "the reply's text", timeout_s if told else _TEXT_TIMEOUT_S
            )
        except StageTimeoutError:
            if told and not turn.reply:
                raise
            if not turn.reply:
                turn.add_notice("the agent published no text of its reply")

    def _early_messages(self, turn: Turn) -> int:
        """How many messages an agent made of what was said before a pause in the utterance."""
        start_s, end_s = turn.marks["user_speech_start"], turn.marks["user_speech_end"]
        return sum(
            start_s < event["heard_s"] < end_s
            and event.get("item", {}).get("message", {}).get("role") == "USER"
            for event in self.session_events
        )

    async def hear_onset(self, timeout_s: float = REPLY_TIMEOUT_S) -> float:
        """Waits until the reply begins, for a caller that interrupts it.

        Returns:
            When its first voiced sample was heard, in monotonic seconds.

        Raises:
            NoReplyError: No voice was heard in time.
            AgentLostError: The agent left.
        """
        since_s = self.turns[-1].marks["user_speech_end"]
        return await self.agent.until_onset(since_s, "reply_heard", timeout_s)

    async def hear_end(self) -> None:
        """Waits until the agent listens again and its voice has ended.

        Of an agent that reports no state, 2 s of silence end its speech.

        Raises:
            StageTimeoutError: It still speaks after a minute.
            AgentLostError: The agent left.
        """
        await self.agent.until_silent()

    async def until_memory(self, state: str = "ready", timeout_s: float = 30.0) -> None:
        """Waits until the agent's memory is in a state, such as `ready`.

        Raises:
            StageTimeoutError: It is not in time.
            AgentLostError: The agent left.
        """
        await self.reports.until(
            lambda: self.memory.get("state") == state, f"memory {state}", timeout_s
        )

    async def until_synced(self, timeout_s: float = 30.0) -> None:
        """Waits until every turn of this call is in Letta; the turns then have `memory_sync`.

        Raises:
            StageTimeoutError: It is not in time.
            AgentLostError: The agent left.
        """
        await self.reports.until(
            lambda: all("memory_sync" in turn.metrics for turn in self.turns),
            "memory_sync",
            timeout_s,
        )

    def heard_audio(self, turn: Turn | None = None) -> tuple[npt.NDArray[np.int16], int]:
        """Returns what the caller heard, and its sample rate in Hz.

        Args:
            turn: Only from this turn's start to the next one's; None: the whole call.
        """
        return heard_audio(self.recorder.recording(), self.turns, turn), SAMPLE_RATE_HZ

    def listen(self) -> Player:
        """Returns the player of the call so far: both sides, marks and words on one time axis.

        Raises:
            LabvoiceError: Nothing was sent or heard yet.
        """
        sound = self.recorder.recording()
        return call_player(f"Call {self.room_name}", sound, self.marks, self.greeting, self.turns)

    # -- leaving ------------------------------------------------------------------------

    @property
    def agent_identity(self) -> str:
        """Identity of the agent while it is in the room; otherwise empty."""
        return self.agent.identity if self.agent.participant is not None else ""

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
        sound = self.recorder.recording()
        if self.recording_path is None or sound is None:
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
                *turn_notices(self.turns),
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
