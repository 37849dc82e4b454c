"""Representations of calls and dispatches: the same content as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import jinja2

CANNOT_BE: Final = " (cannot be)"
"""Follows a figure of the agent's that is negative or longer than its turn."""
_TEMPLATE: Final = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True
).from_string(
    """<div class="labvoice-facts" style="font-family: system-ui, sans-serif; line-height: 1.4">
<div><b>{{ facts.title }}</b></div>
{% for sentence in facts.troubles %}
<div>⚠ {{ sentence }}</div>
{% endfor %}
<table style="border-collapse: collapse; font-variant-numeric: tabular-nums">
{% for name, value in facts.rows %}
<tr><th style="text-align: left; vertical-align: top; padding: .15em .7em .15em 0">{{ name }}</th>
<td style="text-align: left; padding: .15em 0">{{ value }}</td></tr>
{% endfor %}
</table></div>"""
)


@dataclass(frozen=True)
class Facts:
    """The content of an object's representation.

    Attributes:
        title: Its kind and state, in one line.
        troubles: Problems, a sentence each.
        rows: Further facts, in order.
    """

    title: str
    troubles: Sequence[str] = ()
    rows: Sequence[tuple[str, str]] = ()

    def text(self) -> str:
        """Returns the facts as lines of text."""
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [self.title, *(f"  ⚠ {sentence}" for sentence in self.troubles)]
        return "\n".join([*lines, *(f"  {name:<{width}}  {value}" for name, value in self.rows)])

    def html(self) -> str:
        """Returns the same facts as HTML."""
        return _TEMPLATE.render(facts=self)


class ShownTurn(Protocol):
    """The displayed fields of a turn, from the simulated caller or the browser."""

    number: int
    said: str
    transcript: str
    reply: str
    outcome: str
    metrics: dict[str, float]

    @property
    def voice_to_voice_s(self) -> float | None:
        """From the last voiced sample spoken to the first of the reply, in seconds."""

    @property
    def implausible(self) -> list[str]:
        """Names the figures in `metrics` that cannot be."""


def call_facts(
    kind: str,
    room: str,
    state: str,
    *,
    strategy: str,
    marks: Mapping[str, float],
    greeting: str,
    turns: Iterable[ShownTurn],
    troubles: Iterable[str],
) -> Facts:
    """Returns the representation of a call.

    Args:
        kind: `Call` or `BrowserCall`.
        state: Its state, as text.
        marks: Connection marks, in seconds on any clock.
        troubles: Problems, a sentence each; empty ones are left out.
    """
    turns = list(turns)
    rows = [("room", f"{room}, dispatch {strategy}")]
    if marks:
        zero_s = marks.get("click", min(marks.values()))
        in_order = sorted(marks.items(), key=lambda mark: mark[1])
        after = (f"{name} {(at_s - zero_s) * 1000:.0f}" for name, at_s in in_order)
        rows.append(("marks", "ms since the click: " + ", ".join(after)))
    if greeting:
        rows.append(("greeting", greeting))
    for turn in turns:
        number = turn.number + 1
        rows.append((f"{number}. you", turn.transcript or turn.said or "(nothing was understood)"))
        if turn.reply:
            rows.append((f"{number}. agent", turn.reply))
        heard_s = turn.voice_to_voice_s
        took = [] if heard_s is None else [f"voice to voice {heard_s * 1000:.0f} ms"]
        took += [
            f"{name} {value_s * 1000:.0f}" + (CANNOT_BE if name in turn.implausible else "")
            for name, value_s in turn.metrics.items()
        ]
        rows.append((f"{number}. {turn.outcome}", ", ".join(took) or "no figures"))
    count = f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"
    return Facts(f"{kind}: {state}, {count}", [each for each in troubles if each], rows)
