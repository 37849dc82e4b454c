"""Piper voice `joe`, the embedded synthesiser: English text to speech in small chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from labvoice.errors import ModelError
from labvoice.speech.moonshine import Pcm, session
from labvoice.speech.phonemes import phonemize

# Frames of context before and after a chunk that make its samples equal those of one long
# decode to 94 dB; measured for this voice, and 40/24 dB at half of it.
_BEFORE, _AFTER = 24, 20
# Frames of each chunk, the last for all that follow. The first is as small as fills the first
# 50 ms frame that livekit-agents sends (room_io/_output.py) once its silence is cut; the others
# are small enough that a cancelled synthesis frees the core soon.
_SCHEDULE: Final = (12, 16, 32, 64, 96)
_QUIET = 0.01
_LEAD_IN_S = 0.01


class Piper:
    """A loaded voice; one synthesis at a time.

    Args:
        folder: From :func:`labvoice.speech.weights.require`, `piper-joe`.
        speed: Of its speech; 1 is the voice's own.

    Attributes:
        sample_rate: Of its output, in Hz.

    Raises:
        ModelError: A file is missing or cannot be loaded.
    """

    def __init__(self, folder: Path, *, speed: float = 1.0) -> None:
        try:
            voice = json.loads((folder / "voice.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the voice in {folder} cannot be read: {error}",
                "delete that folder; it is recreated at the next use",
            ) from None
        self.sample_rate: int = voice["sample_rate"]
        self._hop: int = voice["hop"]
        noise, length, width = voice["scales"]
        self._scales = np.array([noise, length / speed, width], np.float32)
        self._ids: dict[str, int] = voice["phoneme_ids"]
        self._frontend = session(folder / "frontend.onnx")
        self._decoder = session(folder / "decoder.onnx")
        self._decoder_inputs = [i.name for i in self._decoder.get_inputs()]

    def speak(self, text: str, *, cut_lead_in: bool) -> Iterator[Pcm]:
        """Synthesises a text chunk by chunk, lazily.

        Args:
            text: A clause or some sentences.
            cut_lead_in: Whether to leave out the silence before the first sound.

        Yields:
            Samples, shape (n,), mono, at `sample_rate`; none if nothing is speakable.

        Raises:
            ModelError: Phonemes are not available.
        """
        ids = self._phoneme_ids(text)
        if ids is None:
            return
        latent, mask = self._frontend.run(
            None,
            {"input": ids, "input_lengths": np.array([ids.shape[1]]), "scales": self._scales},
        )
        total, start, index = latent.shape[2], 0, 0
        while start < total:
            end = min(start + _SCHEDULE[min(index, len(_SCHEDULE) - 1)], total)
            first, last = max(0, start - _BEFORE), min(total, end + _AFTER)
            window = (latent[:, :, first:last], mask[:, :, first:last])
            feed = dict(zip(self._decoder_inputs, window, strict=True))
            audio = self._decoder.run(None, feed)[0].reshape(-1)
            audio = audio[(start - first) * self._hop : (end - first) * self._hop]
            if index == 0 and cut_lead_in:
                audio = self._without_lead_in(audio)
            yield (np.clip(audio, -1, 1) * 32767).astype(np.int16)
            start, index = end, index + 1

    def _without_lead_in(self, audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        sounding = np.flatnonzero(np.abs(audio) > _QUIET)
        onset = int(sounding[0]) if len(sounding) else len(audio)
        return audio[max(0, onset - int(_LEAD_IN_S * self.sample_rate)) :]

    def _phoneme_ids(self, text: str) -> npt.NDArray[np.int64] | None:
        """Returns Piper's input, shape (1, n): start, every phoneme followed by padding, end."""
        known = [self._ids[sign] for sign in phonemize(text) if sign in self._ids]
        if not known:
            return None
        padding = self._ids["_"]
        spaced = [number for sign in known for number in (sign, padding)]
        return np.array([[self._ids["^"], padding, *spaced, self._ids["$"]]], np.int64)
