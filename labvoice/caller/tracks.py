"""The agent's voice among all audio tracks that it publishes, or another on its behalf."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from livekit import rtc

from labvoice.caller.ear import Listener, Voice

BACKGROUND_TRACK: Final = "background_audio"
"""Name of the track of LiveKit's `BackgroundAudioPlayer` (livekit/agents/voice/
background_audio.py). Ambience with voices in it is speech to a detector, so the name decides."""

OnFrame = Callable[[str, npt.NDArray[np.int16], float], None]


@dataclass(eq=False)
class Track:
    """One audio track of the agent's.

    Attributes:
        name: As it was published.
        publisher: Identity of the participant.
        listener: Has the voices in it.
        taken: How many of its voices were looked at.
    """

    name: str
    publisher: str
    listener: Listener
    taken: int = 0

    @property
    def ambient(self) -> bool:
        """Whether its name or sound shows that it has other sound than the voice."""
        return self.name == BACKGROUND_TRACK or self.listener.never_silent


class Ear:
    """Listens to all audio tracks of one agent, and finds its voice in them.

    Speech is told from ambience by the voice detector on each track. What is heard on a track
    that is never silent counts only as long as no other track has spoken, and nothing on a
    background player's track counts. Two tracks that speak at once are one voice.

    Args:
        on_change: Called when the voice begins or ends.
        on_frame: Called with every frame: the id of its track, its samples, and its arrival in
            monotonic seconds.

    Attributes:
        tracks: Every track that was heard, by id.
        voices: All segments of voice, in the order in which they were noticed.
    """

    def __init__(
        self, on_change: Callable[[], None] = lambda: None, on_frame: OnFrame = lambda *_: None
    ) -> None:
        self.tracks: dict[str, Track] = {}
        self.voices: list[Voice] = []
        self._on_change = on_change
        self._on_frame = on_frame

    def listen(self, track: rtc.Track, *, name: str, publisher: str) -> None:
        """Starts to listen to another subscribed track."""
        if track.sid not in self.tracks:
            self.add(track.sid, name=name, publisher=publisher).listen(track)

    def add(self, sid: str, *, name: str, publisher: str) -> Listener:
        """Adds a track by its id, and returns who is to be fed with its frames."""
        listener = Listener(lambda: self._look(sid), self._on_frame)
        self.tracks[sid] = Track(name, publisher, listener)
        return listener

    def end(self, sid: str) -> None:
        """A track has ended: so has the voice in it."""
        if sid in self.tracks:
            self.tracks[sid].listener.finish()

    def _look(self, sid: str) -> None:
        track = self.tracks[sid]
        for voice in track.listener.voices[track.taken :]:
            if self._counts(track, voice):
                self.voices.append(voice)
        track.taken = len(track.listener.voices)
        self._on_change()

    def _counts(self, track: Track, voice: Voice) -> bool:
        if track.name == BACKGROUND_TRACK:
            return False
        others = [other for other in self.tracks.values() if other is not track]
        if track.ambient and any(not o.ambient and o.listener.voices for o in others):
            return False
        heard = any(not each.ended for each in self.voices)
        return not (heard and voice not in self.voices)

    @property
    def notices(self) -> list[str]:
        """What is worth knowing of the tracks, a sentence each."""
        found = []
        for each in self.tracks.values():
            track = f"the track {each.name!r} of {each.publisher!r}"
            if each.name == BACKGROUND_TRACK:
                found.append(f"{track} is the background player's: no voice is looked for on it")
            elif each.listener.never_silent:
                found.append(f"{track} is never silent: the voice detector tells the voice from it")
        return found

    def voice_since(self, since_s: float) -> Voice | None:
        """Returns the first voice that began at or after an instant; None if there is none."""
        later = (voice for voice in self.voices if voice.start_s >= since_s)
        return min(later, key=lambda voice: voice.start_s, default=None)

    def onset_since(self, since_s: float) -> float | None:
        """Returns when voice was first heard at or after an instant; None if it was not."""
        voice = self.voice_since(since_s)
        return None if voice is None else voice.start_s

    def end_since(self, since_s: float) -> float | None:
        """Returns when the last voice that began at or after an instant was last heard."""
        return max((each.end_s for each in self.voices if each.start_s >= since_s), default=None)

    @property
    def silent(self) -> bool:
        """Whether no voice is being heard now."""
        return all(voice.ended for voice in self.voices)

    @property
    def ended_s(self) -> float | None:
        """When the last voice ended, in monotonic seconds; None if there was none."""
        return max((voice.end_s for voice in self.voices), default=None)

    async def aclose(self) -> None:
        """Stops listening; nobody is told of changes any more."""
        await asyncio.gather(*(each.listener.aclose() for each in self.tracks.values()))
        self._on_change = lambda: None  # its owner, which has this ear
