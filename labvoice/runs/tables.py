"""A summary table as text, and as cells for a template."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

TEMPLATES = Environment(loader=PackageLoader("labvoice.runs"), autoescape=True)
"""The views of runs and comparisons in a notebook."""


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
