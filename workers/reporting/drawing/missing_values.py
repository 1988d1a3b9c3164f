"""Marks missing values in a figure with hatching and `n/a`."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from workers.reporting.drawing import style
from workers.reporting.text import ABSENT


def hatch(axes: Axes, corner: tuple[float, float], width: float, height: float, **how: Any) -> Any:
    """Hatch a rectangle from its lower left corner on, in data coordinates if `how` says nothing else; return it."""
    area = Rectangle(corner, width, height, **how)
    area.set(facecolor=style.SHADE, edgecolor=style.MUTED, hatch="////", linewidth=0)
    axes.add_patch(area)
    return area


def leave_empty(axes: Axes, text: str = ABSENT) -> None:
    """Hatch all of the axes, with `text` in their middle."""
    axes.grid(False)
    hatch(axes, (0, 0), 1, 1, transform=axes.transAxes, zorder=0)
    paper = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 3}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", bbox=paper)
