"""Common style of all figures: colours for colour-blind readers, one grid."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#1f2933"
MUTED: Final = "#66727f"
GRID: Final = "#dfe4ea"
PAPER: Final = "#ffffff"
"""The report replaces these four, and blue, by the page's colours: pictures follow dark mode."""

# Okabe and Ito's palette, the strongest contrasts first, and a grey in place of their black, which
# is the ink of marks that belong to no arm.
BLUE: Final = "#0072b2"
ORANGE: Final = "#e69f00"
GREEN: Final = "#009e73"
VERMILION: Final = "#d55e00"
PURPLE: Final = "#cc79a7"
SKY: Final = "#56b4e9"
GREY: Final = "#949494"
ARMS: Final = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, GREY)

_RC: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.8,
}


class Picture(Figure):
    """A figure that shows itself in a notebook without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        # Twice the pixels, shown at the nominal size: sharp on dense displays.
        self.savefig(buffer, format="png", dpi=200)
        width, height = self.get_size_inches()
        return buffer.getvalue(), {"width": int(width * 100), "height": int(height * 100)}


@contextmanager
def picture(width: float, height: float) -> Iterator[Picture]:
    """Returns an empty figure in the common style; sizes in inches."""
    with mpl.rc_context(_RC):
        yield Picture(figsize=(width, height), dpi=100, layout="constrained")


def title(axes: Axes, text: str, detail: str = "") -> None:
    """Puts a title and a quieter second line at the left edge of the figure's text."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=22 if detail else 8)
    if detail:
        axes.annotate(
            detail,
            (0, 1),
            xytext=(0, 8),
            xycoords="axes fraction",
            textcoords="offset points",
            color=MUTED,
            fontsize=8.5,
        )
