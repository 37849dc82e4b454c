"""The recording of a call made in the browser, put together from the pieces that its page sends."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from labvoice.caller.recorder import SAMPLE_RATE_HZ, Recording
from labvoice.speech.detection import resample

_LONGEST_S: Final = 3600
"""The page itself stops after half an hour (`js/src/sound.ts`)."""


class Piece(BaseModel):
    """A piece of the recording; `js/src/sound.ts` has the same fields.

    Attributes:
        call_id: Of the call.
        first: Number of its first frame since the recording's beginning.
        rate_hz: Frames per second.
        start_s: When the recording began, in seconds on the browser's clock.
        buffers: One: frames of two 16-bit samples, left and right.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    call_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    first: int = Field(ge=0)
    rate_hz: FiniteFloat = Field(ge=8000, le=96000)
    start_s: FiniteFloat
    buffers: list[Any] = Field(min_length=1, max_length=1)

    @property
    def samples(self) -> npt.NDArray[np.int16]:
        """Shape (frames, 2)."""
        samples = np.frombuffer(bytes(self.buffers[0])[: len(self.buffers[0]) // 4 * 4], "<i2")
        return samples.astype(np.int16).reshape(-1, 2)


class BrowserSound:
    """Keeps the pieces of one call; one that is lost is silence."""

    def __init__(self) -> None:
        self._pieces: dict[int, npt.NDArray[np.int16]] = {}
        self._rate_hz = 0.0
        self._start_s = 0.0

    def add(self, piece: Piece) -> None:
        """Takes a piece; what goes on for more than an hour is dropped."""
        if piece.first < _LONGEST_S * piece.rate_hz:
            self._pieces[piece.first] = piece.samples
            # The page's estimate of its sound's delay gets better with time.
            self._rate_hz, self._start_s = piece.rate_hz, piece.start_s

    def recording(self) -> Recording | None:
        """Returns the recording, on the browser's clock; None where nothing came."""
        if not self._pieces:
            return None
        length = max(first + len(samples) for first, samples in self._pieces.items())
        both = np.zeros((length, 2), np.int16)
        for first, samples in self._pieces.items():
            both[first : first + len(samples)] = samples
        rate = round(self._rate_hz)
        sides = [resample(both[:, side], rate, SAMPLE_RATE_HZ) for side in (0, 1)]
        return Recording(np.stack(sides, axis=1), self._start_s)
