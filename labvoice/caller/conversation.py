"""What a caller does in a call: it speaks, hears the agent, and waits for what the agent does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from labvoice.agent._livekit import new_room
from labvoice.caller.agent import NO_VOICE_HINT, REPLY_TIMEOUT_S, RoomAgent
from labvoice.caller.clock import ClockOffset
from labvoice.caller.ear import SAMPLE_RATE_HZ, Voice
from labvoice.caller.interruption import Interruption, check_at, interruption
from labvoice.caller.listening import call_player
from labvoice.caller.marks import ConnectionMarks, instants
from labvoice.caller.media import Media, OpenLink
from labvoice.caller.microphone import SAMPLE_RATE_HZ as MICROPHONE_RATE_HZ
from labvoice.caller.microphone import Microphone
from labvoice.caller.recorder import Recorder
from labvoice.caller.reports import AgentReports
from labvoice.caller.turns import Turn, Turns
from labvoice.errors import (
    AgentLostError,
    LabvoiceError,
    NoReplyError,
    StageTimeoutError,
    UsageError,
)
from labvoice.link.client import Link
from labvoice.protocol.metadata import check_name
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.players import Player
from labvoice.speech.conditions import Conditions
from labvoice.speech.utterances import Utterance

GREETING_TIMEOUT_S: Final = 8.0
"""How long an agent that may or may not greet is waited for, the first time."""
_TEXT_TIMEOUT_S: Final = 3.0
"""How long the words of a reply that was heard to its end may take without session events."""
_REST_TIMEOUT_S: Final = 5.0


class Conversation:
    """A caller's side of a conversation in a room; :class:`labvoice.caller.call.Call` connects it.

    It takes what the call takes, and these.

    Args:
        why_ended: Returns why a job ended, from the dispatch's id and the agent's identity.
        is_bot: Whether the agent is a bot that joins by itself.

    Attributes:
        connection_marks: Marks of the connection by name; failover marks are those of the last
            failover.
        agent: The agent in the room, and its voice.
        reports: What the agent reports.
        session_events: What the agent's session reports, oldest first: `event`, `heard_s`
            (monotonic), `agent_wall_s` (the agent's clock) and the fields of LiveKit's
            `AgentSessionEvent`; none of an agent that hosts no session events.
        on_turn_mark: Called with each mark of a turn as it is set.
        recorder: Keeps the sound of both sides.
        conditions: How the caller sounds; None where :meth:`sound_like` was not called.
        media: The caller's media connection.
        greets: As given; of an agent that was not known, what was found out.
        notice: What did not work as the strategy expects; empty if all did.
    """

    def __init__(
        self,
        room: str,
        identity: str,
        why_ended: Callable[[str, str], Awaitable[str]],
        *,
        is_bot: bool,
        greets: bool | None,
        greeting_timeout_s: float,
        apologises: bool,
        on_mark: Callable[[Mark], None] | None,
        open_link: OpenLink | None,
        tap: Link | None,
    ) -> None:
        self.room_name = check_name(room)
        self.identity = identity
        self.greets, self._apologises = greets, apologises
        self._greeting_timeout_s = greeting_timeout_s
        self.notice = ""
        self.on_turn_mark: Callable[[Turn, Mark], None] | None = None
        self.conditions: Conditions | None = None
        self._ready = False
        self.recorder = recorder = Recorder(MICROPHONE_RATE_HZ, SAMPLE_RATE_HZ)
        self._room = new_room()
        self._microphone = microphone = Microphone(recorder.sent)
        self.media = Media(self._room, self._microphone, open_link, tap)
        self._marks = ConnectionMarks(on_mark)
        self.connection_marks = self._marks.by_name
        self._turns = Turns()

        def heard(track: str, samples: npt.NDArray[np.int16], at_s: float) -> None:
            # No method: who is called by what it owns is freed by the garbage collector only.
            recorder.heard(track, samples, at_s)
            microphone.hear(track, samples, SAMPLE_RATE_HZ)

        self.agent = RoomAgent(
            self._room, identity, self._marks, self._turns, heard, why_ended, is_bot=is_bot
        )
        self.reports = AgentReports(self._room, identity, self.agent, self._marks, self._turns)
        self.session_events = self.reports.session_events
        self._foreign = False

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
    def agent_identity(self) -> str:
        """Identity of the agent while it is in the room; otherwise empty."""
        return self.agent.identity if self.agent.participant is not None else ""

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

    def _report(self, turn: Turn, name: str) -> None:
        if self.on_turn_mark is not None:
            self.on_turn_mark(turn, Mark(name, turn.marks[name]))

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
        recording = self.recorder.recording()
        if recording is None:
            return np.zeros(0, np.int16), SAMPLE_RATE_HZ
        start_s, end_s = recording.start_s, recording.end_s
        if turn is not None:
            start_s = turn.marks.get("user_speech_start", start_s)
            for following in self.turns[turn.number + 1 : turn.number + 2]:
                end_s = following.marks.get("user_speech_start", end_s)
        return recording.heard(start_s, end_s), SAMPLE_RATE_HZ

    def listen(self) -> Player:
        """Returns the player of the call so far: both sides, marks and words on one time axis.

        Raises:
            LabvoiceError: Nothing was sent or heard yet.
        """
        sound = self.recorder.recording()
        return call_player(f"Call {self.room_name}", sound, self.marks, self.greeting, self.turns)
