"""Audio of any form as 16-bit mono: its depth, and which of two channels is the caller's."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from labvoice.errors import AudioFormatError, UsageError
from labvoice.speech.detection import Samples

Channel = Literal["left", "right", "mix"]
"""Channel of a stereo recording with the caller's voice."""

_MIN_RATE, _MAX_RATE = 4000, 384000
_MAX_FLOAT = 1.5
"""Relative to full scale 1.0: samples slightly above it are clipped, as players do."""
_SAME_SOUND = 0.5
"""Correlation, at some lag of up to 1 ms (two microphones 34 cm apart), from which two channels
count as the same audio."""
_LAG_S = 0.001
_ABSENT_RATIO = 10 ** (-40 / 20)
_CANCELLED_RATIO = 10 ** (-6 / 20)
CONVERT_HINT: Final = (
    "convert it, for instance with `ffmpeg -i IN -ac 1 -ar 48000 -c:a pcm_s16le OUT.wav`"
)
_CHANNEL_HINT = (
    "choose the caller's channel: `--channel left`, `right` or `mix`; in Python "
    '`load_wav(path, channel="left")`, of an array `samples[:, 0]`'
)


def check_channel(name: str | None) -> Channel | None:
    """Returns a checked channel name.

    Raises:
        UsageError: There is no such channel.
    """
    match name:
        case None | "left" | "right" | "mix":
            return name
    raise UsageError(f"there is no channel {name!r}", _CHANNEL_HINT)


def to_mono(
    samples: npt.NDArray[Any], rate: int, channel: Channel | None = None
) -> tuple[Samples, str]:
    """Converts samples of any form to 16 bits and mono; also returns a notice."""
    if not isinstance(rate, int | np.integer) or not _MIN_RATE <= rate <= _MAX_RATE:
        raise AudioFormatError(
            f"the audio has {rate!r} samples per second, where whole numbers from {_MIN_RATE} to "
            f"{_MAX_RATE} can be spoken",
            CONVERT_HINT,
        )
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or samples.shape[1] not in (1, 2):
        channels = f"has {samples.shape[1]} channels" if samples.ndim == 2 else "is no audio"
        raise AudioFormatError(
            f"audio of shape {samples.shape} {channels}: one or two can be spoken, "
            "in shape (n,), (n, 1) or (n, 2)",
            "transpose the array, or take one channel out; of a file: " + CONVERT_HINT,
        )
    if not len(samples):
        raise AudioFormatError("the audio holds no samples", "record it again")
    if samples.shape[1] == 1:
        if channel == "right":
            raise AudioFormatError("the audio is mono and has no right channel", "leave it out")
        return _to_int16(samples[:, 0]), ""
    left, right = (_to_int16(samples[:, index]).astype(np.float64) for index in (0, 1))
    mono, notice = _chosen(left, right, rate, channel)
    return np.asarray(np.clip(np.round(mono), -32768, 32767), np.int16), notice


def _chosen(
    left: npt.NDArray[np.float64],
    right: npt.NDArray[np.float64],
    rate: int,
    channel: Channel | None,
) -> tuple[npt.NDArray[np.float64], str]:
    """Returns the audio to send from two channels, and a notice."""
    mix = (left + right) / 2
    if channel in ("left", "right"):
        return (
            left if channel == "left" else right
        ), f"only the {channel} one of two channels is used"
    levels = [float(np.std(part)) for part in (left, right)]
    loud, faint = max(levels), min(levels)
    cancelled = float(np.std(mix)) < _CANCELLED_RATIO * (loud + faint) / 2
    if channel == "mix":
        if cancelled and faint > _ABSENT_RATIO * loud:
            raise AudioFormatError(
                "its two channels are in antiphase: mixed, they cancel each other",
                "choose one: `--channel left` or `right`",
            )
        return mix, "its two channels are mixed"
    if not loud:
        return mix, ""
    name, louder = ("left", left) if levels[0] >= levels[1] else ("right", right)
    if faint <= _ABSENT_RATIO * loud:
        return louder, f"only the {name} one of two channels is used: the other is silent"
    if abs(_likeness(left, right, rate)) < _SAME_SOUND:
        raise AudioFormatError(
            "its two channels differ, as in recordings of calls: the caller on the "
            "left, the agent on the right",
            _CHANNEL_HINT,
        )
    if cancelled:
        return louder, f"only the {name} one of two channels is used: mixed they cancel each other"
    return mix, "its two channels hold the same audio and are mixed"


def _likeness(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64], rate: int) -> float:
    """Returns the correlation of two channels at the lag with the largest magnitude."""
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    if not scale:
        return 0.0
    reach = min(round(_LAG_S * rate), len(left) - 1)
    products = (
        np.dot(
            left[max(0, lag) : len(left) + min(0, lag)],
            right[max(0, -lag) : len(right) - max(0, lag)],
        )
        for lag in range(-reach, reach + 1)
    )
    return float(max(products, key=abs)) / scale


def _to_int16(samples: npt.NDArray[Any]) -> Samples:
    """Converts one channel of any depth to 16 bits."""
    kind = samples.dtype
    if kind == np.int16:
        return samples
    if kind == np.uint8:
        return np.asarray((samples.astype(np.int16) - 128) * 256, np.int16)
    if kind == np.int32:
        return np.asarray(samples >> 16, np.int16)
    if kind.kind == "f":
        if not np.isfinite(samples).all():
            raise AudioFormatError(
                "the audio holds NaN or infinity", "check the code that produces it"
            )
        peak = float(np.abs(samples).max(initial=0.0))
        if peak > _MAX_FLOAT:
            raise AudioFormatError(
                f"the audio's floats reach {peak:g}, where 1.0 is full scale",
                "divide it by its full scale; 16-bit numbers by 32768",
            )
        return np.asarray(np.clip(np.round(samples * 32768), -32768, 32767), np.int16)
    raise AudioFormatError(
        f"the audio is of type {kind}, which has no known full scale",
        "give int16, int32, uint8, or floats from -1.0 to 1.0",
    )


def peak_dbfs(samples: Samples) -> str:
    """Returns the level of the loudest sample, as text."""
    peak = int(np.abs(samples.astype(np.int32)).max(initial=0))
    return f"{20 * np.log10(peak / 32768):.0f} dBFS" if peak else "0, digital silence"
