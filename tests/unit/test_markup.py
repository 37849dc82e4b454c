"""Markup is taken out of a reply, and plain words are not kept back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from livekit.agents.voice.transcription.filters import filter_markdown

from labvoice.agent.markup import without_markup


async def _pieces(*pieces: str) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def test_a_clause_is_passed_on_with_its_comma() -> None:
    """Each piece comes out before the next one goes in."""
    asked: list[str] = []

    async def told() -> AsyncIterator[str]:
        for piece in ("Sure", ",", " I", " can", "."):
            asked.append(piece)
            yield piece

    got = []
    async for piece in without_markup(told()):
        got.append(piece)
        assert got == asked


@pytest.mark.parametrize(
    "text",
    [
        "Sure, I can. Twenty-one - or so!",
        "It is **very** important, and `this` too.",
        "That is 5 * 3, and a_b stays.",
        "- one\n- two\n\n# Three\nand *four*, [five](https://x.y) ![six](z).",
        "+ one",
        "Here:\n1. one\n2. two\n> three",
        "Well, ~~no~~ yes.",
        "  * * *\nAfter.",
        "",
    ],
)
async def test_it_takes_out_what_livekits_filter_does(text: str) -> None:
    """Whatever the pieces are, the words are those that the filter leaves."""
    words = re.findall(r"\s*\S+|\s+", text)
    for pieces in ([text], list(text), words):
        want = "".join([piece async for piece in filter_markdown(_pieces(*pieces))])
        got = "".join([piece async for piece in without_markup(_pieces(*pieces))])
        assert got == want, pieces


async def test_words_before_and_after_a_sign_are_kept() -> None:
    """No piece is lost or said twice where the filter takes over, wherever the cut is."""
    text = "One, two *three* four."
    for cut in range(len(text)):
        pieces = (text[:cut], text[cut:])
        assert (
            "".join([p async for p in without_markup(_pieces(*pieces))]) == "One, two three four."
        )
