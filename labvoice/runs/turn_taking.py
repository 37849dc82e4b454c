"""Turn-taking statistics of a run (barge-in, backchannel, pause), by arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import pandas as pd

from labvoice.protocol.vocabulary import STAND_WINDOW_S, YIELD_WINDOW_S
from labvoice.runs.statistics import finite

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


FIGURES: Final = (
    Figure("R_Y", "interruption", f"yields to an interruption within {YIELD_WINDOW_S:g} s"),
    Figure("answers", "interruption", "answers the interruption"),
    Figure("S_BC", "backchannel", f'goes on for {STAND_WINDOW_S:g} s over "mm-hm"'),
    Figure("S_VT", "vocal_tic", f"goes on for {STAND_WINDOW_S:g} s over a cough or a laugh"),
    Figure("S_ND", "non_directed", f"goes on for {STAND_WINDOW_S:g} s over speech to others"),
    Figure("cut", "pause", "cuts a turn with a pause in two", good=False),
    Figure("hang", "", "says nothing more after it was spoken over", good=False),
)
"""The shares, in the order in which they are shown; a hang is one of every kind."""


class Share(NamedTuple):
    """How often something happened.

    Attributes:
        k: How often.
        n: Of how many.
    """

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
        bounds = [finite(bound) for bound in self.ci95]
        return {"n": self.n, "k": self.k, "share": finite(self.share), "ci95": bounds}


_HELD: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "R_Y": lambda note: _within(note, YIELD_WINDOW_S),
    "answers": lambda note: note.get("answers"),
    "S_BC": lambda note: _stood(note),
    "S_VT": lambda note: _stood(note),
    "S_ND": lambda note: _stood(note),
    "cut": lambda note: note.get("cut"),
    "hang": lambda note: note.get("hang"),
}


def _within(note: Mapping[str, Any], window_s: float) -> bool | None:
    """Whether the agent yielded within so long; None where it did not speak."""
    if note.get("over_agent") is not True:
        return None
    after_s = note.get("yielded_after_s")
    return isinstance(after_s, int | float) and after_s <= window_s


def _stood(note: Mapping[str, Any]) -> bool | None:
    yielded = _within(note, STAND_WINDOW_S)
    return None if yielded is None else not yielded


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
        held = [_HELD[figure.name](row) for row in of_kind]
        known = [bool(each) for each in held if each is not None]
        if known:
            found[figure.name] = Share(sum(known), len(known))
    return found
