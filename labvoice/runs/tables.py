"""A summary table as text, and as cells for a template."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:  # the command line shows no template, and need not wait for them
    from jinja2 import Template


@cache
def template(name: str) -> Template:
    """Returns the view of a run, a comparison or a recording in a notebook."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("labvoice.runs"), autoescape=True).get_template(name)


def table_text(table: pd.DataFrame) -> str:
    """Formats a summary as aligned text."""
    return table.to_string(float_format=lambda ms: f"{ms:,.1f}", na_rep="–")


def table_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Formats a summary for a template: its headings, and its rows of cells."""
    formats: dict[bool, Callable[[Any], str]] = {
        True: lambda value: f"{value:,}",
        False: lambda value: "–" if math.isnan(value) else f"{value:,.1f}",
    }
    rows = []
    for index, row in zip(table.index, table.itertuples(index=False), strict=True):
        names = [str(name) for name in (index if isinstance(index, tuple) else (index,))]
        rows.append(names + [formats[isinstance(value, int)](value) for value in row])
    return [*map(str, table.index.names), *map(str, table.columns)], rows
