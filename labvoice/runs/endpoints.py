"""Finds where sound begins and ends in a recording, by its levels and its pitch.

The second opinion on what the caller's ear finds live: it hears the whole recording at once, and
shares neither code nor voice detector with :mod:`labvoice.caller.ear`. The rule is the classic one
of two thresholds (Rabiner and Sambur, 1975): what exceeds the upper one is sound, and reaches as
far as the lower one is exceeded. Both adapt to the noise around them; a voiced sound has a pitch.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
_Floats = npt.NDArray[np.float64]

_HOP_S: Final = 0.002
_WINDOW_S: Final = 0.005
_HIGH_PASS_HZ: Final = 100.0
_FLOOR_DB: Final = -70.0
"""A coded track that carries digital silence is below this level (full scale 0 dB)."""
_FLOOR_BLOCK_S: Final = 0.05
_FLOOR_BLOCKS: Final = 161
"""The noise at an instant is the 10th percentile of the levels within 4 s before and after it."""
_FLOOR_PERCENTILE: Final = 10
_UPPER_DB: Final = 15.0
_LOWER_DB: Final = 8.0
"""Sound exceeds the noise by so much, and its faint edges by so much."""
_FAINT_DB: Final = -60.0
"""Nothing below this level is sound."""
_EDGE_DB: Final = 30.0
"""Nor are edges that are fainter than the loudest part near them by more than this."""
_EDGE_PEAK_S: Final = 0.3
_CLOSURE_S: Final = 0.11
"""Silence within a word: the closure of a stop consonant."""
_DIP_S: Final = 0.012
"""Between two periods of a low voice its level falls."""
_SHORTEST_S: Final = 0.02
_CORE_S: Final = 0.04
_LOUD_S: Final = 0.15
"""A sound that long counts without a pitch, such as a laugh or a cough."""
_PAUSE_S: Final = 0.4
"""Silence that ends a segment; that between two sentences is shorter."""
_PITCH_HZ: Final = (70.0, 400.0)
_PITCH_S: Final = 0.04
_PITCH_RATE: Final = 8000
_PITCH_CLEAR: Final = 0.5


class Segment(NamedTuple):
    """A segment of sound, in seconds from the first sample."""

    start_s: float
    end_s: float


def find_segments(samples: Samples, rate: int) -> list[Segment]:
    """Returns the segments of sound, in order.

    Args:
        samples: Shape (n,), full scale 1.0.
        rate: Samples per second.
    """
    if not len(samples):
        return []
    sound = _without_hum(samples, rate)
    levels = _levels(sound, rate)
    floor = _floor(levels)
    upper = np.maximum(floor + _UPPER_DB, _FAINT_DB)
    lower = np.maximum(floor + _LOWER_DB, _FAINT_DB)
    cores = [
        core
        for core in _runs(levels >= upper, _CORE_S, joined_s=_CLOSURE_S)
        if _counts(sound, rate, core)
    ]
    found: list[Segment] = []
    for group in _closed(cores, _PAUSE_S):
        first, last = _edges(levels, lower, *group)
        # A window is centred on its frame.
        found.append(Segment(first * _HOP_S, last * _HOP_S))
    return _joined(found)


def _without_hum(samples: Samples, rate: int) -> _Floats:
    from scipy.signal import butter, sosfiltfilt

    if len(samples) < rate // 10:
        return np.asarray(samples, np.float64)
    filtered: Any = sosfiltfilt(
        butter(2, _HIGH_PASS_HZ, "highpass", fs=rate, output="sos"), samples.astype(np.float64)
    )
    return np.asarray(filtered, np.float64)


def _levels(sound: _Floats, rate: int) -> _Floats:
    """The level around every 2 ms, in dB of full scale."""
    window, hop = round(_WINDOW_S * rate), round(_HOP_S * rate)
    total = np.concatenate([[0.0], np.cumsum(np.square(sound))])
    middle = np.arange(0, len(sound), hop)
    begin = np.maximum(middle - window // 2, 0)
    end = np.minimum(middle + window // 2, len(sound))
    power = (total[end] - total[begin]) / window
    return np.asarray(10 * np.log10(np.maximum(power, 1e-12)), np.float64)


def _floor(levels: _Floats) -> _Floats:
    """The level of the noise around each frame."""
    from scipy.ndimage import percentile_filter

    block = round(_FLOOR_BLOCK_S / _HOP_S)
    count = max(1, len(levels) // block)
    means = np.array([piece.mean() for piece in np.array_split(levels, count)])
    floors = percentile_filter(means, _FLOOR_PERCENTILE, size=_FLOOR_BLOCKS, mode="nearest")
    spread = np.repeat(floors, block)[: len(levels)]
    spread = np.pad(spread, (0, len(levels) - len(spread)), mode="edge")
    return np.asarray(np.maximum(spread, _FLOOR_DB), np.float64)


def _runs(above: npt.NDArray[np.bool_], least_s: float, joined_s: float) -> list[tuple[int, int]]:
    """Runs of frames of a least length, as (first, after the last); short gaps are no end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
    every = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    lasting = [run for run in _closed(every, _DIP_S) if (run[1] - run[0]) * _HOP_S >= _SHORTEST_S]
    return [run for run in _closed(lasting, joined_s) if (run[1] - run[0]) * _HOP_S >= least_s]


def _closed(runs: list[tuple[int, int]], gap_s: float) -> list[tuple[int, int]]:
    """The runs, those as one that are not further apart."""
    closed: list[tuple[int, int]] = []
    for first, end in runs:
        if closed and (first - closed[-1][1]) * _HOP_S <= gap_s:
            closed[-1] = (closed[-1][0], end)
        else:
            closed.append((first, end))
    return closed


def _counts(sound: _Floats, rate: int, core: tuple[int, int]) -> bool:
    """Whether a core is long, or has a pitch, as no click has."""
    if (core[1] - core[0]) * _HOP_S >= _LOUD_S:
        return True
    first, end = (round(edge * _HOP_S * rate) for edge in core)
    step = max(1, rate // _PITCH_RATE)
    piece = sound[max(0, first) : end : step]
    size = min(len(piece), round(_PITCH_S * rate / step))
    shortest, longest = (round(rate / step / pitch) for pitch in reversed(_PITCH_HZ))
    for begin in range(0, len(piece) - size + 1, max(1, size // 2)):
        frame = piece[begin : begin + size]
        correlation = np.correlate(frame, frame, "full")[size - 1 :]
        lags = correlation[shortest : min(longest, size // 2) + 1]
        if correlation[0] > 0 and len(lags) and lags.max() >= _PITCH_CLEAR * correlation[0]:
            return True
    return False


def _edges(levels: _Floats, lower: _Floats, first: int, end: int) -> tuple[int, int]:
    """Where a group really begins and ends: at the faintest parts of its first and last sound."""
    near = round(_EDGE_PEAK_S / _HOP_S)
    begin, after = max(0, first - near), end + near
    around = levels[begin:after]
    edges = []
    for loudest in (levels[first : first + near].max(), levels[first:end].max()):
        threshold = np.maximum(lower[begin:after], loudest - _EDGE_DB)
        runs = _runs(around >= threshold, _SHORTEST_S, joined_s=_CLOSURE_S)
        own = [run for run in runs if run[1] + begin > first and run[0] + begin < end]
        edges.append((own[0][0] + begin, own[-1][1] + begin) if own else (first, end))
    return edges[0][0], edges[1][1]


def _joined(found: list[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for each in found:
        if joined and each.start_s - joined[-1].end_s < _PAUSE_S:
            joined[-1] = Segment(joined[-1].start_s, max(each.end_s, joined[-1].end_s))
        else:
            joined.append(each)
    return joined
