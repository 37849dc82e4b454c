"""Takes markup out of a reply's text without keeping its plain words back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from livekit.agents.voice.transcription.filters import filter_markdown

_SIGN: Final = re.compile(r"[*_`~\[#>\n]")
_LIST_SIGN: Final = re.compile(r"\s*[-+]")  # of the first line; later ones follow a line break
_TAIL: Final = re.compile(r"\S?\s*$")


async def without_markup(text: AsyncIterable[str]) -> AsyncIterator[str]:
    """Passes plain text on as it comes; LiveKit's filter gets it from the first markup sign on.

    The filter keeps a punctuation mark until the word after it has come, so that a first clause
    would be spoken a token late (livekit-agents 1.8.9, voice/transcription/filters.py).

    Args:
        text: The reply, in pieces of any length.
    """
    pieces = aiter(text)
    said = ""  # the filter must see it before a sign to know that no line begins with that
    blank = ""  # before the first word
    async for piece in pieces:
        piece, blank = blank + piece, ""
        if not said and not piece.strip():
            blank = piece
        elif _SIGN.search(piece) or (not said and _LIST_SIGN.match(piece)):
            skipped = 0
            async for plain in filter_markdown(_chained(said + piece, pieces)):
                rest = plain[len(said) - skipped :]
                skipped = min(len(said), skipped + len(plain))
                if rest:
                    yield rest
            return
        else:
            said = _TAIL.search(said + piece)[0]  # type: ignore[index]  # it matches at the end
            yield piece
    if blank:
        yield blank


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for piece in rest:
        yield piece
