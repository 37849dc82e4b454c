"""Tests use what labvoice promises: no name with a leading underscore."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_PROTOCOLS = {"_repr_html_", "_repr_png_", "_replace", "_asdict"}
"""Names that IPython looks up, and methods of named tuples."""
_PRIVATE = re.compile(r"(^|\.)_[A-Za-z]\w*$")


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and name of each use of a private name of another module or object."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("labvoice"):
                found = [f"{module}.{each.name}" for each in names]
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name):
                found = [f".{name}"]
            case ast.Call(func=ast.Attribute(attr="setattr") | ast.Name(id="getattr" | "setattr")):
                found = [
                    each.value
                    for each in node.args[:2]
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
            case _:
                continue
        for name in found:
            if _PRIVATE.search(name) and name.rpartition(".")[2] not in _PROTOCOLS:
                yield node.lineno, name


def test_no_test_uses_a_private_name() -> None:
    """A test that does fails when the code behind an unchanged interface changes."""
    found = [
        f"{path.relative_to(_TESTS)}:{line}: {name}"
        for path in sorted(_TESTS.rglob("*.py"))
        for line, name in private_names(ast.parse(path.read_text()))
    ]
    assert found == []


def test_every_kind_of_private_use_is_found() -> None:
    """An import, an attribute, and a name in a string that is patched or looked up."""
    source = (
        "from labvoice.lab import _running\n"
        "lab._calls.add(1)\n"
        'monkeypatch.setattr("labvoice.lab._running", [])\n'
        'monkeypatch.setattr(lab, "_calls", [])\n'
        'getattr(lab, "_calls")\n'
        "self._mine\n"
        "lab._repr_html_()\n"
        "lab.__dict__\n"
    )
    assert sorted(line for line, _ in private_names(ast.parse(source))) == [1, 2, 3, 4, 5]
