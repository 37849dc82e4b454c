"""Phonemes: espeak-ng's, with the punctuation at which a voice pauses."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labvoice.speech.phonemes import phonemize


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("Hello, world.", "həlˈoʊ, wˈɜːld."),
        ("Yes!", "jˈɛs!"),
        ("Is it?", "ɪz ɪt?"),
        ("Yes", "jˈɛs"),
        ("Dr. Smith said: yes", "dˈɑːktɚ smˈɪθ sˈɛd: jˈɛs"),
        ("1,000", "wˈʌn θˈaʊzənd"),
        ("Fine — yes", "fˈaɪn, jˈɛs"),
        ("...", ""),
        ("", ""),
        (" \n", ""),
    ],
)
def test_words_and_pauses(text: str, phonemes: str) -> None:
    """Words become phonemes, and clauses keep the sign that ends them."""
    assert phonemize(text) == phonemes


def test_any_thread_may_ask() -> None:
    """The library's global state is kept from threads that ask at the same time."""
    texts = ["Hello, world.", "Fine, yes.", "Is it?"] * 50
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(phonemize, texts)) == [phonemize(text) for text in texts]


def test_without_the_library_the_error_says_so(tmp_path: Path) -> None:
    """Where the wheel cannot be used, the error names it."""
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError\n")
    code = "from labvoice.speech.phonemes import phonemize; phonemize('hello')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "ModelError: espeak-ng gives no phonemes" in done.stderr
    assert "hint: reinstall the package `espeakng-loader`" in done.stderr
