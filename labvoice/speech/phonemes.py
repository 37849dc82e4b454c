"""English text to IPA phonemes, by espeak-ng's library from a wheel."""

from __future__ import annotations

import ctypes
import functools
import re
import threading

from labvoice.errors import ModelError

_VOICE = "en-us"
# espeak-ng's speak_lib.h: AUDIO_OUTPUT_RETRIEVAL, espeakINITIALIZE_DONT_EXIT,
# espeakCHARS_UTF8 and espeakPHONEMES_IPA.
_RETRIEVAL, _DONT_EXIT, _UTF8, _IPA = 1, 0x8000, 1, 2
_PAUSES = ".!?,;:"
_LAST_PAUSE = re.compile(r"([.!?,;:…—–])[^\w.!?,;:…—–]*\w?$")
_ABBREVIATION = re.compile(
    r"\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|no|gen|sen|rep|capt|lt|col|sgt|e\.g|i\.e|[a-z])\.\W*\w?$",
    re.IGNORECASE,
)
ABBREVIATION_END = re.compile(_ABBREVIATION.pattern.removesuffix(r"\W*\w?$") + r"\s*$", re.I)
"""Matches text that ends in an abbreviation or an initial, whose full stop ends no sentence."""

_lock = threading.Lock()


@functools.cache
def _library() -> ctypes.CDLL:
    """The initialised library of the espeakng-loader wheel.

    Raises:
        ModelError: It cannot be used.
    """
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        if library.espeak_Initialize(_RETRIEVAL, 0, data, _DONT_EXIT) < 0:
            raise RuntimeError("it cannot be initialised")
        if library.espeak_SetVoiceByName(_VOICE.encode()) != 0:
            raise RuntimeError(f"it has no voice {_VOICE}")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"espeak-ng gives no phonemes: its library does not load: {error}",
            "reinstall the package `espeakng-loader`",
        ) from None
    return library


def _pause_at_end(consumed: str) -> str:
    """The punctuation at which espeak ended a clause, as the voices' symbols."""
    if _ABBREVIATION.search(consumed):
        return ""
    found = _LAST_PAUSE.search(consumed)
    if found is None:
        return ""
    return found[1] if found[1] in _PAUSES else ","


def phonemize(text: str) -> str:
    """Returns the IPA phonemes of English text, the pauses' punctuation kept.

    Args:
        text: One or more sentences.

    Returns:
        Phonemes with stress marks, words separated by spaces, clauses ended by one of ``.!?,;:``;
        empty if nothing is speakable.

    Raises:
        ModelError: espeak-ng cannot be loaded.
    """
    library = _library()
    clauses = []
    raw = text.encode()
    buffer = ctypes.create_string_buffer(raw)
    start = ctypes.addressof(buffer)
    at = ctypes.c_void_p(start)
    done = 0
    with _lock:  # the library keeps its state in globals
        while at.value:
            phonemes = library.espeak_TextToPhonemes(ctypes.byref(at), _UTF8, _IPA)
            end = at.value - start if at.value else len(raw)
            # The library reads one character past a clause's end: `_pause_at_end` allows for it.
            clauses.append(
                (
                    (phonemes or b"").decode(errors="ignore"),
                    _pause_at_end(raw[done:end].decode(errors="ignore")),
                )
            )
            done = end
    return " ".join(phonemes + pause for phonemes, pause in clauses if phonemes)
