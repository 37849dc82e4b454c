"""Turn-taking statistics of a run (barge-in, backchannel, pause), by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import pandas as pd

from labvoice.protocol.vocabulary import STAND_WINDOW_S, YIELD_WINDOW_S
from labvoice.runs.statistics import figures

_Z: Final = 1.959964  # the normal distribution's 97.5 % quantile


class Figure(NamedTuple):
    """A share of the probes of one kind.

    Attributes:
        name: As in tau2-bench's τ-voice where it is there.
        kind: Of the probes that it is a share of.
        phrase: What the agent did, in a sentence after the arm's name.
        good: Whether a high share is good.
    """

    name: str
    kind: str
    phrase: str
    good: bool = True


_SOUNDS: Final = (
    ("S_BC", "backchannel", '"mm-hm"'),
    ("S_VT", "vocal_tic", "a cough or a laugh"),
    ("S_ND", "non_directed", "speech to others"),
)
LATE: Final = "_2s"
"""Ends the name of a share that has the window of an interruption: recognition takes its time, and
an agent that stops at a sound after 1.1 s has stood it for 1 s all the same."""

FIGURES: Final = (
    Figure("R_Y", "interruption", f"yields to an interruption within {YIELD_WINDOW_S:g} s"),
    Figure("answers", "interruption", "answers the interruption"),
    *(
        Figure(name + suffix, kind, f"goes on for {window_s:g} s over {sound}")
        for name, kind, sound in _SOUNDS
        for suffix, window_s in (("", STAND_WINDOW_S), (LATE, YIELD_WINDOW_S))
    ),
    Figure("cut", "pause", "cuts a turn with a pause in two", good=False),
    Figure("hang", "", "says nothing more after it was spoken over", good=False),
)
"""The shares, in the order in which they are shown; a hang is one of every kind."""


class Share(NamedTuple):
    """How often something happened."""

    k: int
    n: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.k / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval (1927, doi:10.1080/01621459.1927.10502953); each call is one."""
        z2 = _Z * _Z
        middle = (self.share + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = (
            _Z
            * math.sqrt(self.share * (1 - self.share) / self.n + z2 / (4 * self.n**2))
            / (1 + z2 / self.n)
        )
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.k} of {self.n} ({low:.0%} to {high:.0%})"

    def to_json(self) -> dict[str, Any]:
        """Returns the figures under their names."""
        found = {"n": self.n, "k": self.k, "share": self.share, "ci95": self.ci95}
        return {name: figures(each) for name, each in found.items()}


def _held(figure: Figure, note: Mapping[str, Any]) -> bool | None:
    """Whether it is so of a probe of its kind; None where that is not known."""
    if figure.name == "R_Y":
        return _within(note, YIELD_WINDOW_S)
    if figure.name.startswith("S_"):
        late = figure.name.endswith(LATE)
        yielded = _within(note, YIELD_WINDOW_S if late else STAND_WINDOW_S)
        return None if yielded is None else not yielded
    return note.get(figure.name)


def _within(note: Mapping[str, Any], window_s: float) -> bool | None:
    """Whether the agent yielded within so long; None where it did not speak."""
    if note.get("over_agent") is not True:
        return None
    after_s = note.get("yielded_after_s")
    return isinstance(after_s, int | float) and after_s <= window_s


def shares(notes: pd.DataFrame, arm: str | None = None) -> dict[str, Share]:
    """Counts the probes of a run.

    Args:
        notes: Notes of the turns that count, with their `arm`; the probes' have a `kind`.
        arm: Of this configuration alone; of all when not given.

    Returns:
        The shares by the names of :data:`FIGURES`; only those of which there is a probe.
    """
    if "kind" not in notes or "arm" not in notes:
        return {}
    rows: list[dict[str, Any]] = [
        {
            str(name): None if isinstance(v, float) and math.isnan(v) else v
            for name, v in row.items()
        }
        for row in notes.to_dict("records")
        if arm is None or row["arm"] == arm
    ]
    found = {}
    for figure in FIGURES:
        of_kind = [row for row in rows if row["kind"] == figure.kind or not figure.kind]
        held = [_held(figure, row) for row in of_kind]
        known = [bool(each) for each in held if each is not None]
        if known:
            found[figure.name] = Share(sum(known), len(known))
    return found
