"""Draws the present imports between rooms into imports.svg; the half "before" stays as it is.

Run as `python docs/images/imports.py` after a change of the contract in pyproject.toml.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp

_ROOT = Path(__file__).parents[2]
_STEP, _TOP, _LEFT, _HEIGHT = 21, 56, 525, 17


def rooms() -> list[str]:
    """Returns the rooms from top to bottom, as the contract has them."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return [room.strip() for layer in layers for room in layer.split("|")]


def arrows() -> set[tuple[str, str]]:
    """Returns (importing room, imported room)."""
    graph = grimp.build_graph("labvoice", exclude_type_checking_imports=True)
    found = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            pair = module.split(".")[1:2], other.split(".")[1:2]
            if all(pair) and pair[0] != pair[1]:
                found.add((pair[0][0], pair[1][0]))
    return {pair for pair in found if "__main__" not in pair}


def draw(svg: str) -> str:
    """Returns the picture with its right half drawn anew."""
    order = rooms()
    y = {room: _TOP + _STEP * number for number, room in enumerate(order)}
    right = _LEFT + 91
    lines = [
        line
        for line in svg.splitlines()
        if not (f'x="{_LEFT}"' in line or line.startswith(f'<path d="M{right} '))
    ]
    drawn = []
    for start, end in sorted(arrows(), key=lambda pair: (order.index(pair[0]), y[pair[1]])):
        colour = "#9aa7b2" if y[start] < y[end] else "#c62828"
        bend = right + 18 + 0.3 * abs(y[end] - y[start])
        path = f"M{right} {y[start]}C{bend:.1f} {y[start]} {bend:.1f} {y[end]} {right + 2} {y[end]}"
        drawn.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width=".8"/>')
    for room in order:
        drawn.append(
            f'<rect x="{_LEFT}" y="{y[room] - 9}" width="90" height="{_HEIGHT}" rx="4" '
            'fill="#eef4fa" stroke="#0072b2" stroke-width=".7"/>'
            f'<text x="{_LEFT + 45}" y="{y[room] + 4}" text-anchor="middle">{room}</text>'
        )
    height = max(551, max(y.values()) + 54)
    lines[0] = lines[0].replace('height="551"', f'height="{height}"')
    lines[0] = lines[0].replace("0 0 780 551", f"0 0 780 {height}")
    lines[-1] = lines[-1].replace('y="537"', f'y="{height - 14}"')
    return "\n".join([*lines[:-1], *drawn, lines[-1]]) + "\n"


if __name__ == "__main__":
    file = Path(__file__).with_suffix(".svg")
    file.write_text(draw(file.read_text(encoding="utf-8")), encoding="utf-8")
