"""Display of the parts of a running stack: state, address, process id, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from labvoice.stack.processes import ManagedProcess, memory_of

_TEMPLATE = jinja2.Environment(autoescape=True).from_string(
    """<table class="labvoice-lab"><caption style="text-align:left"><b>labvoice</b>
{{ state }}</caption><thead><tr>{% for name in ("part", "state", "address", "pid", "memory") %}
<th style="text-align:left">{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for part in parts %}<tr><td>{{ part.name }}</td><td>{{ part.state }}</td>
<td><code>{{ part.address }}</code></td><td>{{ part.pid or "" }}</td>
<td>{{ part.memory }}</td></tr>{% endfor %}</tbody></table>"""
)


@dataclass(frozen=True)
class Part:
    """One part of the stack, as displayed.

    Attributes:
        state: `up`, `stopped`, `ended (STATUS)` or `external`.
        pid: Its process id; None for a part that the lab did not start.
        memory_bytes: Proportional set size with all its children; None when unknown.
    """

    name: str
    state: str
    address: str
    pid: int | None
    memory_bytes: int | None

    @property
    def memory(self) -> str:
        """The memory as text."""
        return "" if self.memory_bytes is None else f"{self.memory_bytes / 2**20:.0f} MiB"


def part_of(name: str, address: str, process: ManagedProcess | None) -> Part:
    """Returns a part from its process; without a process it is external."""
    if process is None:
        return Part(name, "external", address, None, None)
    if process.running:
        return Part(name, "up", address, process.pid, memory_of(process.pid))
    return Part(name, f"ended ({process.returncode})", address, process.pid, None)


def as_text(state: str, parts: Sequence[Part]) -> str:
    """Returns the parts as lines of text under the state of the whole."""
    lines = [f"labvoice: {state}"]
    lines += [
        f"  {part.name:<32} {part.state:<10} {part.address:<28} "
        f"{f'pid {part.pid}' if part.pid else '':<12} {part.memory}".rstrip()
        for part in parts
    ]
    return "\n".join(lines)


def as_html(state: str, parts: Sequence[Part]) -> str:
    """Returns the parts as an HTML table under the state of the whole."""
    return _TEMPLATE.render(state=state, parts=parts)
