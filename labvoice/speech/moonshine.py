"""Moonshine, the embedded recogniser: 16 kHz speech to English text, on one core."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from labvoice.errors import ModelError

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE: Final = 16000
"""Sample rate of the model's training audio, in Hz."""

_START_TOKEN, _END_TOKEN = 1, 2
# The model's card: longer output than this is the model repeating itself.
_TOKENS_PER_S = 6.5
# Below about half a second the model invents words; if speech continues to the last sample it
# repeats one sentence in fifteen (none with 60 ms of silence after it).
_SHORTEST = int(0.6 * SAMPLE_RATE)
_REST = int(0.06 * SAMPLE_RATE)
# Tokens of a draft after which an end as the first token is not believed, as one cut of 80 of one
# sentence of 9 s has it (`docs/performance.md`); a cough has a shorter draft or none.
_HEARD_TOKENS = 6


def session(path: Path) -> Any:
    """Opens an ONNX Runtime session on one thread.

    A second thread would take the core on which the language model runs.

    Raises:
        ModelError: The file cannot be loaded.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise ModelError(
            f"the model {path} cannot be loaded: {str(error).splitlines()[0]}",
            f"delete the folder {path.parent}; it is recreated at the next use",
        ) from None


class Moonshine:
    """A loaded model; its methods may be called from any one thread at a time.

    Args:
        folder: From :func:`labvoice.speech.weights.require`, `moonshine-base` or `moonshine-tiny`.

    Raises:
        ModelError: A file is missing or cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        suffix = "onnx" if (folder / "encoder_model.onnx").exists() else "ort"
        self._encoder = session(folder / f"encoder_model.{suffix}")
        self._decoder = session(folder / f"decoder_model_merged.{suffix}")
        self._encoder_masked = len(self._encoder.get_inputs()) > 1
        inputs = self._decoder.get_inputs()
        self._decoder_masked = any(i.name == "encoder_attention_mask" for i in inputs)
        caches = [i for i in inputs if i.name.startswith("past_")]
        # [batch, heads, past tokens, head size]: no tokens have passed at the start.
        self._no_past = {
            i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in caches
        }
        self._cache_names = [
            o.name.replace("present", "past_key_values") for o in self._decoder.get_outputs()[1:]
        ]
        self._tokens = _read_tokens((folder / "tokenizer.bin").read_bytes())

    def transcribe(self, pcm: Pcm, stop: threading.Event | None = None) -> str:
        """Recognises one stretch of speech; see :meth:`decode`.

        Returns:
            The words, with punctuation; empty where none were recognised.
        """
        return self.text(self.decode(pcm, stop))

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the words of tokens."""
        words = b"".join(self._tokens[token] for token in tokens)
        return words.replace("▁".encode(), b" ").decode(errors="ignore").strip()

    def decode(
        self, pcm: Pcm, stop: threading.Event | None = None, draft: Sequence[int] = ()
    ) -> list[int]:
        """Recognises one stretch of speech.

        Args:
            pcm: Samples, shape (n,), mono, at :data:`SAMPLE_RATE`; up to about 30 s.
            stop: Ends the work early when set; the tokens are then incomplete.
            draft: Tokens of an earlier decode of the beginning of this speech. One run of the
                decoder finds how many of them still hold, and only the rest are decoded one by one.
                From six tokens on they are proof of words: the result is then not empty.

        Returns:
            Tokens, for :meth:`text`.
        """
        audio = pcm.astype(np.float32) / 32768
        audio = np.pad(audio, (0, max(_REST, _SHORTEST - len(audio))))
        mask = np.ones((1, len(audio)), np.int64)
        feed: dict[str, npt.NDArray[Any]] = {"input_values": audio[None]}
        if self._encoder_masked:
            feed["attention_mask"] = mask
        encoded = self._encoder.run(None, feed)[0]

        feed = {"encoder_hidden_states": encoded, **self._no_past}
        if self._decoder_masked:
            feed["encoder_attention_mask"] = mask
        most = int(len(audio) / SAMPLE_RATE * _TOKENS_PER_S) + 4
        found: list[int] = []
        given = [_START_TOKEN, *draft[:most]]
        while len(found) < most and not (stop is not None and stop.is_set()):
            feed["input_ids"] = np.array([given], np.int64)
            feed["use_cache_branch"] = np.array([bool(found)])
            logits, *caches = self._decoder.run(None, feed)
            first, held = not found, 0
            if first and len(draft) >= _HEARD_TOKENS:
                logits[0, 0, _END_TOKEN] = -np.inf
            best = logits[0].argmax(axis=1).tolist()
            while held < len(given) - 1 and best[held] == given[held + 1]:
                held += 1
            found += best[: held + 1]
            if found[-1] == _END_TOKEN:
                return found[:-1]
            given = found[-1:]
            for name, cache in zip(self._cache_names, caches, strict=True):
                # After the first step the model no longer computes the encoder's keys.
                if ".encoder." not in name:
                    feed[name] = cache[:, :, : len(found)]
                elif first:
                    feed[name] = cache
        return found[:most]


def _read_tokens(raw: bytes) -> list[bytes]:
    """Reads Moonshine's vocabulary: each token is a length in one or two bytes, then its bytes."""
    tokens, at = [], 0
    while at < len(raw):
        length = raw[at]
        at += 1
        if length >= 128:
            length += raw[at] * 128 - 128
            at += 1
        tokens.append(raw[at : at + length])
        at += length
    return tokens
