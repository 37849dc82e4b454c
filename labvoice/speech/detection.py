"""Finds where speech begins and ends: voice detector, refined by the samples' levels.

The same rule dates both ends of a turn's latency: the caller's last word, in the sent utterance
(:func:`find_speech`), and the first sound of the reply, in the received audio
(:mod:`labvoice.caller.ear`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from livekit.local_inference import VAD, VAD_WINDOW_SAMPLES

Levels = npt.NDArray[np.float64]
Samples = npt.NDArray[np.int16]

VAD_RATE: Final = 16000
"""Sample rate of LiveKit's voice detector, in Hz."""
VAD_ENTER: Final = 0.5
VAD_LEAVE: Final = 0.35
"""Probabilities at which speech begins and ends: Silero's usual pair."""
HIGH_PASS_HZ: Final = 120.0
"""High-pass cutoff in Hz: DC offset and mains hum are below it, enough of every voice above."""
HIGH_PASS_ORDER: Final = 4
PEAK_RATIO: Final = 10 ** (-30 / 20)
"""A frame of less than this share of the loudest one's level is not voiced."""
NOISE_RATIO: Final = 2.0
"""Nor is one of less than this many times the noise's level (6 dB above it)."""
RUN_S: Final = 0.02
"""Only voiced frames in a row of at least that length are voice; less is a click."""
CLEAR_RATIO: Final = 10 ** (26 / 20)
"""Noise less than 26 dB below the loudest speech hides the faint end of a word."""
LOOK_BACK_S: Final = 0.25
"""How far before the detector's onset the edge of speech may lie, in seconds."""

_LOOK_AHEAD_S: Final = 0.1
_FRAME_S: Final = 0.005
_NOISE_QUANTILE: Final = 0.9
_NO_SPEECH_NOISE_QUANTILE: Final = 0.2
_END_FRAMES: Final = 10
"""Frames at each end of a recording: where they are louder than its noise they are sound."""
_SILENT_RMS: Final = 10 ** (-55 / 20)


@dataclass(frozen=True)
class Speech:
    """The speech in a recording.

    Attributes:
        first: Index of its first voiced sample.
        last: Index of its last voiced sample.
        doubt: Why these may be off by more than some 10 ms; empty if they are reliable.
    """

    first: int
    last: int
    doubt: str = ""


_RUNG_OUT = 1e-12
"""State of the filter, of full scale 1.0, that is nothing: denormal numbers would slow it down."""


class HighPass:
    """Streaming high-pass filter that removes DC offset and hum.

    Args:
        rate: Samples per second.
    """

    def __init__(self, rate: int) -> None:
        # Imported here because scipy.signal takes a second to import; a lab does so in a thread.
        from scipy.signal import butter

        self._filter = butter(HIGH_PASS_ORDER, HIGH_PASS_HZ, "highpass", fs=rate, output="sos")
        self._state: npt.NDArray[np.float64] | None = None

    def __call__(self, samples: Samples) -> Levels:
        """Returns the filtered samples, full scale 1.0."""
        from scipy.signal import sosfilt, sosfilt_zi

        scaled = samples / 32768
        if self._state is None:  # steady state of the first sample: no step response
            self._state = sosfilt_zi(self._filter) * (scaled[0] if len(scaled) else 0.0)
        if not samples.any() and np.abs(self._state).max() < _RUNG_OUT:
            self._state = np.zeros_like(self._state)
            return np.zeros(len(samples))
        filtered, self._state = sosfilt(self._filter, scaled, zi=self._state)
        return np.asarray(filtered)


class VoiceProbability:
    """LiveKit's on-device voice detector on a stream of 16-bit samples of any rate.

    Args:
        rate: Samples per second.
    """

    def __init__(self, rate: int) -> None:
        self._vad = VAD()
        self._rate = rate
        self._window = VAD_WINDOW_SAMPLES
        self.window_s: float = VAD_WINDOW_SAMPLES / VAD_RATE
        self._pending: npt.NDArray[np.int16] = np.zeros(0, np.int16)

    def __call__(self, samples: Samples) -> list[float]:
        """Returns the probability of speech in each window of 32 ms that is now complete."""
        self._pending = np.concatenate([self._pending, samples])
        # A whole number of windows, so that each piece is resampled to whole windows as well.
        count = int(len(self._pending) / (self._rate * self.window_s))
        if not count:
            return []
        size = round(count * self._rate * self.window_s)
        piece, self._pending = self._pending[:size], self._pending[size:]
        # Zeros stay zeros; a caller hears them most of the time.
        at_vad_rate = resample(piece, self._rate, VAD_RATE) if piece.any() else piece[:0]
        windows = np.zeros((count, self._window), np.int16)
        windows.flat[: len(at_vad_rate)] = at_vad_rate[: windows.size]
        return [float(self._vad.predict(window)) for window in windows]

    def close(self) -> None:
        """Frees the detector."""
        self._vad.close()


def resample(samples: npt.NDArray[Any], rate: int, to_rate: int) -> Samples:
    """Returns the samples, shape (n,), 16-bit scale, at another rate, as 16-bit integers."""
    made: npt.NDArray[Any] = samples
    if rate != to_rate:
        from scipy.signal import resample_poly  # where nothing is resampled, it is not loaded

        both = math.gcd(rate, to_rate)
        up, down = to_rate // both, rate // both
        made = resample_poly(samples.astype(np.float64), up, down, window=_low_pass(max(up, down)))
    return np.asarray(np.clip(np.round(made), -32768, 32767), np.int16)


@functools.cache
def _low_pass(rate: int) -> Levels:
    """Returns the filter that `resample_poly` would design anew each time, for its larger rate."""
    from scipy.signal import firwin

    return np.asarray(firwin(20 * rate + 1, 1 / rate, window=("kaiser", 5.0)))


def frame_levels(samples: Samples, filtered: Levels, frame: int) -> Levels:
    """Returns the level of each frame: the root mean square of what was filtered, at most.

    Args:
        samples: Shape (n,).
        filtered: The same after :class:`HighPass`, whose ringing after a hard end is bounded by the
            samples themselves.
        frame: Samples in a frame; the last one is filled up with zeros.

    Returns:
        Shape (ceil(n / frame),), full scale 1.0.
    """
    padded: list[Levels] = [samples / 32768, filtered]
    if short := -len(samples) % frame:  # `np.pad` takes as long as the rest
        padded = [np.pad(each, (0, short)) for each in padded]
    squares = [np.square(each).reshape(-1, frame).mean(axis=1) for each in padded]
    return np.asarray(np.sqrt(np.minimum(*squares)))


def voiced_runs(levels: Levels, threshold: float, frame_s: float) -> npt.NDArray[np.bool_]:
    """Returns which frames reach a threshold and stand in a row of at least :data:`RUN_S`."""
    above = np.concatenate([[False], levels >= threshold, [False]])
    edges = np.flatnonzero(np.diff(above.astype(np.int8)))
    voiced = np.zeros(len(levels), np.bool_)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        voiced[start:end] = (end - start) * frame_s >= RUN_S
    return voiced


def is_silent(samples: Samples, rate: int) -> bool:
    """Returns whether samples, shape (n,), are silent.

    Silent means that no 5 ms reach -55 dBFS after the high-pass filter.
    """
    return not len(samples) or float(_levels(samples, rate).max()) < _SILENT_RMS


def find_speech(samples: Samples, rate: int) -> Speech | None:
    """Finds the first and the last voiced sample of speech.

    The voice detector finds speech in spite of offset, hum, noise, or a click after the last word.
    Near its two edges, the first and the last row of frames count that are within 30 dB of the
    loudest and 6 dB above the noise around the speech. The result is exact to a frame of 5 ms, and
    to some 0.1 s (`doubt` says so) where noise hides the faint parts. If no speech is found, the
    loud parts count.

    Blocks for some 3 ms a second of samples.

    Args:
        samples: Shape (n,), mono.
        rate: Samples per second.

    Returns:
        The stretch of speech; None if the samples are silent.
    """
    levels = _levels(samples, rate)
    if not len(levels) or levels.max() < 1 / 32768:
        return None
    frame = _frame_of(rate)
    stretch = _detected(samples, rate)
    loudest = float(levels.max())
    doubt = ""
    if stretch is None:
        begin, end = 0, len(levels)
        starts = ends = (begin, end)
        noise = float(np.quantile(levels, _NO_SPEECH_NOISE_QUANTILE))
        at_ends = max(float(each.mean()) for each in (levels[:_END_FRAMES], levels[-_END_FRAMES:]))
        # Neither a steady sound nor the decay of one that begins at once is noise to itself.
        if noise * NOISE_RATIO > loudest / 2 or at_ends > NOISE_RATIO * noise:
            noise = 0.0
        # Between two periods of a low voice its level falls for a frame.
        levels[1:-1] = np.maximum(levels[1:-1], np.minimum(levels[:-2], levels[2:]))
        doubt = "no speech is detected in it: its loud parts count as speech"
    else:
        begin, end = (round(edge_s / _FRAME_S) for edge_s in stretch)
        back, ahead = round(LOOK_BACK_S / _FRAME_S), round(_LOOK_AHEAD_S / _FRAME_S)
        starts, ends = (begin - back, begin + back), (end - back, end + ahead)
        around = np.concatenate([levels[: max(0, begin - back)], levels[end + back :]])
        noise = float(np.quantile(around, _NOISE_QUANTILE)) if len(around) else 0.0
        loudest = float(levels[begin:end].max())
        if noise * CLEAR_RATIO > loudest:
            doubt = (
                f"the noise is {20 * np.log10(noise):.0f} dBFS and the loudest speech "
                f"{20 * np.log10(loudest):.0f} dBFS: its edges are known to some 0.1 s"
            )
    voiced = voiced_runs(levels, max(PEAK_RATIO * loudest, NOISE_RATIO * noise), _FRAME_S)
    first = _frames_in(voiced, *starts)
    last = _frames_in(voiced, *ends)
    first_frame = int(first[0]) if len(first) else begin
    last_frame = max(first_frame, int(last[-1]) if len(last) else end - 1)
    return Speech(first_frame * frame, min((last_frame + 1) * frame, len(samples)) - 1, doubt)


def _frame_of(rate: int) -> int:
    return max(1, round(rate * _FRAME_S))


def _levels(samples: Samples, rate: int) -> Levels:
    if not len(samples):
        return np.zeros(0)
    return frame_levels(samples, HighPass(rate)(samples), _frame_of(rate))


def _frames_in(voiced: npt.NDArray[np.bool_], start: int, end: int) -> npt.NDArray[np.int_]:
    """The voiced frames of a range."""
    return np.flatnonzero(voiced[max(0, start) : end]) + max(0, start)


def _detected(samples: Samples, rate: int) -> tuple[float, float] | None:
    """Begin and end of speech by the voice detector, in seconds."""
    detector = VoiceProbability(rate)
    try:
        # It needs some silence to initialise, and to detect an end at the last sample.
        window = round(rate * detector.window_s)
        probabilities = np.array(detector(np.pad(samples, (0, 2 * window))))
    finally:
        detector.close()
    certain = np.flatnonzero(probabilities >= VAD_ENTER)
    if len(certain) < 2:
        return None
    last = int(certain[-1])
    while last + 1 < len(probabilities) and probabilities[last + 1] >= VAD_LEAVE:
        last += 1
    length_s = len(samples) / rate
    return int(certain[0]) * detector.window_s, min((last + 1) * detector.window_s, length_s)
