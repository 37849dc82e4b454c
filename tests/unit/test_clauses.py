"""The cutter of streamed text: clauses when it is urgent, else sentences, and nothing lost."""

from __future__ import annotations

import pytest

from labvoice.speech.clauses import ClauseCutter


def _cut(text: str, *, urgent: bool, step: int = 1) -> list[str]:
    """What comes of a text that arrives `step` letters at a time; only the first cut is urgent."""
    cutter = ClauseCutter()
    cut: list[str] = []
    for start in range(0, len(text), step):
        cut += cutter.push(text[start : start + step], urgent=urgent and not cut)
    return [piece.strip() for piece in cut + cutter.flush()]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Of course, I can. Bye.", ["Of course,", "I can.", "Bye."]),
        ("Sure, I can help, gladly.", ["Sure,", "I can help, gladly."]),
        ("Yes. It does.", ["Yes.", "It does."]),
        ("Yes! It does.", ["Yes!", "It does."]),
        ("It costs 1,000 dollars, I think.", ["It costs 1,000 dollars,", "I think."]),
        ("Pi is 3.14 or so. Right?", ["Pi is 3.14 or so.", "Right?"]),
        ("At 10:30 we meet: be there.", ["At 10:30 we meet:", "be there."]),
        ("Dr. Smith met Mr. Jones. Fine.", ["Dr. Smith met Mr. Jones.", "Fine."]),
        ("Use tea, e.g. green tea.", ["Use tea,", "e.g. green tea."]),
        ("1. Boil the water. 2. Drink.", ["1. Boil the water.", "2. Drink."]),
        (
            "I can look that up for you and then call back.",
            ["I can look that up for you,", "and then call back."],
        ),
        ("Salt and pepper will do.", ["Salt and pepper will do."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("One line\nanother line", ["One line", "another line"]),
        ("no punctuation at all", ["no punctuation at all"]),
        ("...", ["..."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_first_clause_then_sentences(text: str, pieces: list[str]) -> None:
    """The first clause is given out alone, and whole sentences follow."""
    assert _cut(text, urgent=True) == pieces


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_sentences_when_not_urgent(step: int) -> None:
    """Without urgency only whole sentences come, however the text arrives."""
    text = "Of course, I can do that. It costs 1,000 dollars, e.g. in May. And so on, you see"
    assert _cut(text, urgent=False, step=step) == [
        "Of course, I can do that.",
        "It costs 1,000 dollars, e.g. in May.",
        "And so on, you see",
    ]


def test_comma_is_enough() -> None:
    """The comma itself completes a clause; nothing waits for the next word."""
    cutter = ClauseCutter()
    assert cutter.push("Of course", urgent=True) == []
    assert cutter.push(",", urgent=True) == ["Of course,"]
