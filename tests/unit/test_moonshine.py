"""Which tokens the recogniser takes from its model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from labvoice.speech import moonshine
from labvoice.speech.moonshine import SAMPLE_RATE, Moonshine, Pcm
from labvoice.speech.recognition import MoonshineSTT

_START, _END = 1, 2
_NEXT = {_START: 5, 5: 6, 6: 7, 7: 8, 8: 9, 9: _END}


class _Encoder:
    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_values")]

    def run(self, *_: Any) -> list[Any]:
        return [np.zeros((1, 1, 1), np.float32)]


class _Decoder:
    """Says tokens 5 to 9, and takes their beginning for their end by a little."""

    def get_inputs(self) -> list[Any]:
        cache = SimpleNamespace(name="past_key_values.0.decoder.key", shape=[1, 1, 0, 1])
        return [SimpleNamespace(name="input_ids"), cache]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("logits", "present.0.decoder.key")]

    def run(self, _: None, feed: dict[str, Any]) -> list[Any]:
        given = feed["input_ids"][0]
        logits = np.zeros((1, len(given), 10), np.float32)
        for place, token in enumerate(given):
            logits[0, place, _NEXT.get(int(token), _END)] = 10.1
            if token == _START:
                logits[0, place, _END] = 10.2
        past = feed["past_key_values.0.decoder.key"].shape[2]
        return [logits, np.zeros((1, 1, past + len(given), 1), np.float32)]


def test_speech_in_which_words_were_heard_has_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end as the first token is believed of a short draft or none, which a cough may have."""
    (tmp_path / "tokenizer.bin").write_bytes(b"\x01a" * 10)
    monkeypatch.setattr(
        moonshine, "session", lambda path: _Encoder() if "encoder" in path.name else _Decoder()
    )
    model = Moonshine(tmp_path)
    pcm = np.zeros(4 * SAMPLE_RATE, np.int16)
    assert model.decode(pcm) == []
    assert model.decode(pcm, draft=[5, 6]) == []
    assert model.decode(pcm, draft=[5, 6, 7, 8, 9, 4]) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(("least", "text"), [(0, "aa"), (1, "aa"), (SAMPLE_RATE, "")])
async def test_a_clip_without_words_is_heard_again_in_other_frames(least: int, text: str) -> None:
    """The model may find nothing in a clip and its words where the same samples begin later."""

    class Model:
        def decode(self, pcm: Pcm, *_: object) -> list[int]:
            return [5, 6] if len(pcm) >= SAMPLE_RATE + least else []

        def text(self, tokens: list[int]) -> str:
            return "a" * len(tokens)

    recogniser = MoonshineSTT(cast("Moonshine", Model()), "moonshine-base-en")
    assert await recogniser.transcribe(np.zeros(SAMPLE_RATE, np.int16)) == text
    await recogniser.aclose()
