"""The recording of a call: stereo on the caller's clock, left what it sent, right what it heard."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from labvoice.errors import LabvoiceError, UsageError
from labvoice.speech.detection import resample

SAMPLE_RATE_HZ: Final = 24000


_LOOK_AHEAD_S = 2.0
"""Frames that arrive late are on time again within so many seconds; after a gap they never are."""
_SHIFT_S = 0.015
"""Frames are moved on the time axis only when their arrivals say so by more than this, in seconds:
less is jitter of the host, and would tear the sound."""


def check_recording(path: Path) -> Path:
    """Returns the path, whose suffix names a format of recordings.

    Raises:
        UsageError: It names none.
    """
    if path.suffix not in (".ogg", ".wav"):
        raise UsageError(f"{path} names no format of recordings", "end its name in .ogg or .wav")
    return path


@dataclass(frozen=True, eq=False)
class Recording:
    """Both sides of a call on one time axis.

    Attributes:
        samples: Shape (frames, 2), int16: left what the caller sent, right what it heard.
        start_s: Instant of the first sample, in seconds on the caller's monotonic clock: the
            sample of a mark is `round((mark - start_s) * SAMPLE_RATE_HZ)`.
    """

    samples: npt.NDArray[np.int16]
    start_s: float

    def heard(self, start_s: float, end_s: float) -> npt.NDArray[np.int16]:
        """Returns what the caller heard between two instants, in seconds on its clock: mono."""
        first, last = (
            round((min(max(at_s, self.start_s), self.end_s) - self.start_s) * SAMPLE_RATE_HZ)
            for at_s in (start_s, end_s)
        )
        return self.samples[first:last, 1]

    @property
    def end_s(self) -> float:
        """Instant after the last sample, in seconds on the caller's monotonic clock."""
        return self.start_s + len(self.samples) / SAMPLE_RATE_HZ

    def encoded(self, suffix: str) -> bytes:
        """Returns the recording as a file: of Opus in Ogg (`.ogg`), or WAV (`.wav`)."""
        import soundfile

        kind, subtype = ("OGG", "OPUS") if suffix == ".ogg" else ("WAV", "PCM_16")
        file = io.BytesIO()
        soundfile.write(file, self.samples, SAMPLE_RATE_HZ, format=kind, subtype=subtype)
        return file.getvalue()

    def write(self, path: Path) -> None:
        """Writes the recording in the format that the path's suffix names (`.ogg`, `.wav`).

        Raises:
            LabvoiceError: It cannot be written; nothing of it is left.
        """
        write_sound(path, self.encoded(path.suffix))


def write_sound(path: Path, sound: bytes) -> None:
    """Writes an encoded recording.

    Raises:
        LabvoiceError: It cannot be written; nothing of it is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # libsndfile itself does not tell when a disk is full.
        path.write_bytes(sound)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise LabvoiceError(
            f"the recording {path} cannot be written: {error}",
            "free space on the disk, choose another `--out`, or set LABVOICE_RECORDING=none",
        ) from None


@dataclass
class _Frames:
    """The frames of one side or track; silence is kept as None."""

    rate: int
    at_s: list[float] = field(default_factory=list)
    samples: list[npt.NDArray[np.int16] | None] = field(default_factory=list)
    length: int = 0

    def add(self, samples: npt.NDArray[np.int16], at_s: float) -> None:
        self.at_s.append(at_s)
        self.samples.append(samples if samples.any() else None)
        self.length = len(samples)

    def times(self) -> npt.NDArray[np.float64]:
        return frame_times(self.at_s, self.length / self.rate)

    def line(self, start_s: float) -> npt.NDArray[np.int16]:
        """All frames from an instant on, gaps filled with silence."""
        positions = np.rint((self.times() - start_s) * self.rate).astype(int)
        line = np.zeros(positions.max() + self.length, np.int16)
        for position, samples in zip(positions, self.samples, strict=True):
            if samples is not None:
                line[position : position + self.length] = samples
        return line


class Recorder:
    """Takes every frame that a caller sends and hears, and puts them on one time axis.

    Args:
        sent_hz: Sample rate of what is sent.
        heard_hz: Sample rate of what is heard.
    """

    def __init__(self, sent_hz: int, heard_hz: int) -> None:
        self._sent = _Frames(sent_hz)
        self._heard_hz = heard_hz
        self._heard: dict[str, _Frames] = {}

    def sent(self, samples: npt.NDArray[np.int16], at_s: float) -> None:
        """Takes a frame of the microphone: mono, and when it left, in monotonic seconds."""
        self._sent.add(samples, at_s)

    def heard(self, track: str, samples: npt.NDArray[np.int16], at_s: float) -> None:
        """Takes a frame of a remote track: its id, mono samples, their arrival in seconds."""
        self._heard.setdefault(track, _Frames(self._heard_hz)).add(samples, at_s)

    def recording(self) -> Recording | None:
        """Returns what was recorded so far; None before the first frame."""
        sides = [[self._sent] if self._sent.at_s else [], list(self._heard.values())]
        starts = [frames.times()[0] for side in sides for frames in side]
        if not starts:
            return None
        left, right = (_mix(side, min(starts)) for side in sides)
        samples = np.zeros((max(len(left), len(right)), 2), np.int16)
        samples[: len(left), 0] = left
        samples[: len(right), 1] = right
        return Recording(samples, float(min(starts)))


def _mix(tracks: Iterable[_Frames], start_s: float) -> npt.NDArray[np.int16]:
    """Adds tracks at :data:`SAMPLE_RATE_HZ`, as an ear hears them all."""
    lines = [resample(each.line(start_s), each.rate, SAMPLE_RATE_HZ) for each in tracks]
    mixed = np.zeros(max(map(len, lines), default=0), np.int32)
    for line in lines:
        mixed[: len(line)] += line
    full_scale = np.iinfo(np.int16)
    return np.clip(mixed, full_scale.min, full_scale.max).astype(np.int16)


def frame_times(at_s: list[float], frame_s: float) -> npt.NDArray[np.float64]:
    """Returns when frames lie on the time axis, given when each was handled.

    Frames follow each other without a gap as long as they come at their rate; a host that stalls
    handles some late and then several at once, which moves none of them. After a gap, such as a
    track that ends and another that begins, they are late for good, and move.

    Args:
        at_s: When each frame was handled, in seconds, increasing.
        frame_s: Length of a frame, in seconds.

    Returns:
        When each frame begins, in seconds.
    """
    arrived = np.asarray(at_s, dtype=np.float64)
    late = arrived - np.arange(len(arrived)) * frame_s
    ahead = max(1, round(_LOOK_AHEAD_S / frame_s))
    padded = np.concatenate([late, np.full(ahead - 1, np.inf)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, ahead)
    least = windows.min(axis=1)
    base = np.empty_like(least)
    anchor = least[0] if len(least) else 0.0
    for index, value in enumerate(least):
        if abs(value - anchor) > _SHIFT_S:
            anchor = value
        base[index] = anchor
    return np.asarray(base + np.arange(len(arrived)) * frame_s)
