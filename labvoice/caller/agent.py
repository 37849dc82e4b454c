"""The agent in the caller's room: who it is, its state, its tracks, and why it left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from livekit import rtc
from livekit.rtc.room import EventTypes

from labvoice.caller.interruption import reply_onset
from labvoice.caller.marks import ConnectionMarks
from labvoice.caller.tracks import Ear, OnFrame
from labvoice.caller.turns import Turns
from labvoice.concurrency import poll
from labvoice.dispatch import rooms
from labvoice.errors import AgentLostError, NoReplyError, StageTimeoutError
from labvoice.protocol.metadata import ATTRIBUTE_DISPATCH_ID

NO_VOICE_HINT: Final = "the worker's log tells whether it recognised speech and what its model said"
REPLY_TIMEOUT_S: Final = 15.0
_ENDING_TIMEOUT_S: Final = 1.0
_FOREIGN_READY_TIMEOUT_S: Final = 30.0
"""Agents that are not labvoice's often load their models after they have joined."""
_OTHER_SIGN_S: Final = 3.0
"""Once an agent is audible, how long it may take to report its state, and the other way round."""
_PATIENCE_S: Final = 2.0
"""Silence that ends the reply of an agent that reports no state: longer than after a filler."""
_LONGEST_SPEECH_S: Final = 60.0  # a small model may ramble; its reply started in time
_POLL_S: Final = 0.1
_STATE_ATTRIBUTE: Final = "lk.agent.state"  # livekit.agents.types.ATTRIBUTE_AGENT_STATE
_LISTENING_STATES: Final = ("listening", "thinking", "speaking")
"""An early greeting may skip the first."""
_REPLACEMENT_MARKS: Final = ("replacement_visible", "replacement_listening", "apology_heard")
_HUMANS: Final = (
    rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD,
    rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
)
_DISCONNECT_REASONS: Final = {
    rtc.DisconnectReason.DUPLICATE_IDENTITY: (
        "another participant joined the room under the same identity, {identity!r}, and the "
        "server removed this one"
    ),
    rtc.DisconnectReason.PARTICIPANT_REMOVED: "the server was asked to remove the caller",
    rtc.DisconnectReason.ROOM_DELETED: "the room was deleted",
    rtc.DisconnectReason.ROOM_CLOSED: "the room was closed",
    rtc.DisconnectReason.SERVER_SHUTDOWN: "the server shut down",
}


def _on_behalf_of(participant: rtc.Participant) -> str | None:
    return participant.attributes.get(rooms.ATTRIBUTE_ON_BEHALF)


class RoomAgent:
    """Follows the agent in a room, and its replacement.

    Args:
        marks: Get the agent's marks.
        turns: Get its voice, and its loss.
        on_frame: Called with every audio frame; see :class:`labvoice.caller.tracks.Ear`.
        why_ended: Returns why a job ended, from the dispatch's id and the agent's identity.
        is_bot: Whether it is a bot that joins by itself, whose participant may be of any kind.

    Attributes:
        identity: Its identity; empty until it joins.
        state: Its last state, `listening`, `thinking` or `speaking`; empty if it reports none.
        gone: Why it is lost, or the caller's own connection; empty if neither is.
        ear: Has its voice.
        caller_left: Whether the caller has hung up: the turns then end with the call.
    """

    def __init__(
        self,
        room: rtc.Room,
        caller: str,
        marks: ConnectionMarks,
        turns: Turns,
        on_frame: OnFrame,
        why_ended: Callable[[str, str], Awaitable[str]],
        *,
        is_bot: bool = False,
    ) -> None:
        self.identity = self.state = self.gone = ""
        self.ear = Ear(self._on_sound, on_frame)
        self.caller_left = False
        self._room, self._caller = room, caller
        self._marks, self._turns = marks, turns
        self._why_ended = why_ended
        self._is_bot = is_bot
        self._dispatch_id = ""
        self._voices_heard = 0

    @property
    def participant(self) -> rtc.RemoteParticipant | None:
        """The agent's participant; None if it is not in the room."""
        return self._others.get(self.identity)

    @property
    def is_labvoices(self) -> bool:
        """Whether it is labvoice's own, which reports its state and answers requests."""
        return self.participant is not None and (
            ATTRIBUTE_DISPATCH_ID in self.participant.attributes
        )

    @property
    def other_callers(self) -> list[str]:
        """Identities of the other humans in the room."""
        return [
            one.identity
            for one in self._others.values()
            if one.kind in _HUMANS and one.identity != self.identity and not _on_behalf_of(one)
        ]

    @property
    def _others(self) -> Mapping[str, rtc.RemoteParticipant]:
        return self._room.remote_participants if self._room.isconnected() else {}

    def follow(self) -> None:
        """Follows the room's events from now on; it may be connected later."""
        for event, handler in self._handlers.items():
            self._room.on(event, handler)

    def unfollow(self) -> None:
        """Ends :meth:`follow`: room and agent are freed as soon as nobody uses them."""
        for event, handler in self._handlers.items():
            self._room.off(event, handler)

    @property
    def _handlers(self) -> dict[EventTypes, Callable[..., None]]:
        return {
            "participant_connected": self.on_participant,
            "participant_disconnected": self._on_left,
            "participant_attributes_changed": self._on_attributes,
            "track_subscribed": self._on_track,
            "track_unsubscribed": self._on_track_ended,
            "disconnected": self._on_disconnected,
        }

    def on_participant(self, participant: rtc.RemoteParticipant) -> None:
        """A participant is in the room: the agent, if there is none yet."""
        is_agent = participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        if not (self._is_bot or (is_agent and not _on_behalf_of(participant))):
            return
        if self.identity and not self.gone:
            return
        replaced = bool(self.identity)
        self.identity = participant.identity
        self.gone = self.state = ""
        self._marks.set("replacement_visible" if replaced else "agent_visible")
        self.on_state(participant.attributes.get(_STATE_ATTRIBUTE, ""))
        for other in list(self._room.remote_participants.values()):
            self._listen_to(other)  # tracks subscribed before the agent's identity was known

    def on_state(self, state: str) -> None:
        """The agent's state has changed."""
        if self.state == "speaking" != state:
            self._turns.speech_over()
        if state:
            self.state = state
        if state in _LISTENING_STATES:
            replaced = "replacement_visible" in self._marks.by_name
            self._marks.set("replacement_listening" if replaced else "agent_listening")
        self._marks.changed.set()

    def _on_left(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity != self.identity:
            return
        self.gone = "the agent left the room"
        if not self.caller_left:
            self._turns.agent_lost()
            for mark in _REPLACEMENT_MARKS:  # of the failover before
                self._marks.by_name.pop(mark, None)
        self._dispatch_id = participant.attributes.get(ATTRIBUTE_DISPATCH_ID, "")
        self._marks.changed.set()

    def _on_attributes(self, changed: Mapping[str, str], participant: rtc.Participant) -> None:
        # Heartbeats do not carry the agent's state, which the session's events report sooner.
        if participant.identity == self.identity and _STATE_ATTRIBUTE in changed:
            self.on_state(participant.attributes.get(_STATE_ATTRIBUTE, ""))

    def _on_track(
        self, _: rtc.Track, __: rtc.RemoteTrackPublication, participant: rtc.RemoteParticipant
    ) -> None:
        self.on_participant(participant)
        self._listen_to(participant)

    def _on_track_ended(self, track: rtc.Track) -> None:
        self.ear.end(track.sid)

    def _on_disconnected(self, reason: Any) -> None:
        words = _DISCONNECT_REASONS.get(reason, "").format(identity=self._caller)
        ended = "the caller's connection to the server ended"
        self.gone = f"{ended}: {words}" if words else self.gone or ended
        self._marks.changed.set()

    def _listen_to(self, participant: rtc.RemoteParticipant) -> None:
        """Listens to all audio of the agent, and of participants that publish on its behalf."""
        if not self.identity or self.identity not in (
            participant.identity,
            _on_behalf_of(participant),
        ):
            return
        for publication in participant.track_publications.values():
            track = publication.track
            if track is not None and track.kind == rtc.TrackKind.KIND_AUDIO:
                self._marks.set("agent_audio_subscribed")
                self.ear.listen(track, name=publication.name, publisher=participant.identity)

    def _on_sound(self) -> None:
        for voice in self.ear.voices[self._voices_heard :]:
            self._turns.agent_starts(voice.start_s)
        self._voices_heard = len(self.ear.voices)
        if self.ear.silent:
            self._turns.agent_ends(self.ear.ended_s)
        self._marks.changed.set()

    # -- waiting --------------------------------------------------------------------------

    async def until(
        self,
        condition: Callable[[], bool],
        stage: str,
        timeout_s: float,
        hint: str = "",
        *,
        or_lost: bool = False,
    ) -> None:
        """Waits until a condition holds.

        Args:
            condition: Checked at each change of the call.
            stage: What is waited for, as the error names it.
            or_lost: Whether to go on waiting when the agent is lost.

        Raises:
            NoReplyError: `reply_heard` did not happen in time.
            StageTimeoutError: Another stage did not.
            AgentLostError: The agent left, or the caller's connection ended.
        """
        until_s = time.monotonic() + timeout_s
        while not condition():
            if self.gone and not or_lost:
                why = await self._why_gone()
                raise AgentLostError(
                    f"{self.gone} while the caller waited for {stage}{why and f': {why}'}",
                    "the worker's log tells how the job ended",
                )
            self._marks.changed.clear()
            try:
                async with asyncio.timeout(until_s - time.monotonic()):
                    await self._marks.changed.wait()
            except TimeoutError:
                error = NoReplyError if stage == "reply_heard" else StageTimeoutError
                last = f"the agent's last state is {self.state!r}"
                raise error(stage, timeout_s, last + self._whom_it_hears(), hint) from None

    async def until_onset(self, since_s: float, stage: str, timeout_s: float) -> float:
        """Waits for the first voice since an instant; returns its beginning, both monotonic."""
        await self.until(
            lambda: self.ear.onset_since(since_s) is not None,
            stage,
            timeout_s,
            NO_VOICE_HINT,
        )
        onset_s = self.ear.onset_since(since_s)
        assert onset_s is not None
        return onset_s

    async def until_ready(self) -> str:
        """Waits for a foreign agent, which may load models, report no state, or publish late.

        Returns:
            The mark that shows it to be ready: `agent_listening`, or `agent_audio_subscribed` of
            one that reports no state.

        Raises:
            StageTimeoutError: It is not ready in time.
            AgentLostError: It left.
        """
        signs, marks = ("agent_listening", "agent_audio_subscribed"), self._marks.by_name
        await self.until(
            lambda: any(sign in marks for sign in signs), signs[0], _FOREIGN_READY_TIMEOUT_S
        )
        with contextlib.suppress(StageTimeoutError):
            await self.until(lambda: all(sign in marks for sign in signs), signs[0], _OTHER_SIGN_S)
        return next(sign for sign in signs if sign in marks)

    async def until_into_reply(self, after_s: float) -> None:
        """Waits until a reply has been heard for so long, in seconds.

        Raises:
            NoReplyError: No reply was heard in time.
            AgentLostError: The agent left.
        """

        def onset_s() -> float | None:
            return reply_onset(self._turns.all, self.ear.voices)

        await self.until(
            lambda: onset_s() is not None, "reply_heard", REPLY_TIMEOUT_S, NO_VOICE_HINT
        )
        began_s = onset_s()
        assert began_s is not None
        await asyncio.sleep(began_s + after_s - time.monotonic())

    async def until_silent(self) -> None:
        """Waits until it listens again and its voice has ended.

        Raises:
            StageTimeoutError: It still speaks after a minute.
            AgentLostError: It left.
        """
        while True:
            await self.until(
                lambda: self.state in ("listening", "") and self.ear.silent,
                "the end of the agent's speech",
                _LONGEST_SPEECH_S,
            )
            if self.state or self.ear.ended_s is None:
                return
            wait_s = self.ear.ended_s + _PATIENCE_S - time.monotonic()
            try:
                await self.until(lambda: not self.ear.silent, "more speech", wait_s)
            except StageTimeoutError:
                return

    async def until_left(self, timeout_s: float) -> None:
        """Waits until it has left.

        Raises:
            TimeoutError: It is still in the room.
        """
        async with asyncio.timeout(timeout_s):
            while self.participant is not None:
                self._marks.changed.clear()
                await self._marks.changed.wait()

    def _whom_it_hears(self) -> str:
        """Returns a note if others are in the room: an agent listens to one participant only."""
        if not self.other_callers:
            return ""
        names = ", ".join(map(repr, self.other_callers))
        return (
            f"; {names} is in the room as well, and an agent listens to one participant only: "
            f"it may be the other one, not {self._caller!r}"
        )

    async def _why_gone(self) -> str:
        """Returns the worker's reason for the end of the lost agent's job; it may arrive late."""
        if not self.identity:
            return ""
        dispatch_id, identity = self._dispatch_id, self.identity
        return await poll(
            lambda: self._why_ended(dispatch_id, identity), _ENDING_TIMEOUT_S, _POLL_S
        )
