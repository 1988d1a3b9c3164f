"""Maps values to colors: the norms of the heat maps, and the color bar."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import FuncNorm, LogNorm, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from workers.reporting.text import number

_STEPS = 64
"""Colors of a bar; each is a shape in the page."""
DECADE = 10.0
"""Largest over smallest value from which colors follow the logarithm."""


def logarithmic(low: float, high: float) -> bool:
    """Whether values from `low` to `high` are all positive and span more than a decade."""
    return low > 0 and high / low > DECADE


def median_norm(values: NDArray[np.float64]) -> tuple[Any, list[float]]:
    """Return a norm that maps smallest, median and largest value to 0, 0.5 and 1, and five ticks for its bar.

    Between them it is linear in the value, or in its logarithm where the values are positive and span more than a
    decade. Values that are all equal lie in the middle of the smallest possible scale; no values give 0 to 1.
    """
    low, middle, high = np.quantile(values, (0, 0.5, 1)).tolist() if values.size else (0.0, 0.5, 1.0)
    forward, inverse = _scale(low, high)
    knots = np.array([forward(low), forward(middle), forward(high)], dtype=np.float64)
    step = max((knots[2] - knots[0]) / 1000, abs(knots[1]) * 1e-6, 1e-12)
    knots[0] = min(knots[0], knots[1] - step)
    knots[2] = max(knots[2], knots[1] + step)
    places = np.array([0.0, 0.5, 1.0])
    norm = FuncNorm(
        (
            lambda value: np.interp(forward(value), knots, places),
            lambda place: inverse(np.interp(place, places, knots)),
        ),
        vmin=float(inverse(knots[0])),
        vmax=float(inverse(knots[2])),
    )
    ticks = inverse(np.interp(np.linspace(0, 1, 5), places, knots))
    return norm, [float(tick) for tick in ticks]


def _scale(low: float, high: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if logarithmic(low, high):
        return (lambda value: np.log(np.maximum(value, low / 2))), np.exp  # a color bar also asks below its range
    return np.asarray, np.asarray


def rising_norm(values: NDArray[np.float64]) -> tuple[Any, list[float]]:
    """Return a norm from the smallest to the largest value, and five ticks for its bar.

    Logarithmic where the values are positive and span more than a decade. One value alone is the top of a scale from
    0, or the foot of one to 0 where it is negative; no values give 0 to 1.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if logarithmic(low, high):
        return LogNorm(low, high), np.geomspace(low, high, 5).tolist()
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    return Normalize(low, high), np.linspace(low, high, 5).tolist()


def share_norm(values: NDArray[np.float64], least: float) -> tuple[Any, list[float]]:
    """Return a linear norm from 0 to the largest share, or to `least` where that is larger, and five ticks."""
    high = max(float(values.max()) if values.size else 0.0, least)
    return Normalize(0, high), np.linspace(0, high, 5).tolist()


def centered_norm(values: NDArray[np.float64]) -> tuple[Any, list[float]]:
    """Return a linear norm with 0 in the middle, as far to either side as the largest magnitude, and five ticks.

    Values that are all 0, and no values, give -1 to 1.
    """
    reach = float(np.abs(values).max()) if values.size else 0.0
    reach = reach or 1.0
    return Normalize(-reach, reach), np.linspace(-reach, reach, 5).tolist()


def color_bar(figure: Any, axes: Axes, mesh: QuadMesh, ticks: list[float], label: str, **place: float) -> None:
    """Draw the color bar of `mesh`, as shapes and text."""
    bar = figure.colorbar(ScalarMappable(mesh.norm, mesh.cmap.resampled(_STEPS)), ax=axes, **place)
    bar.outline.set_visible(False)
    bar.solids.set(edgecolor="face", rasterized=False)  # an embedded image would be a request of the page
    bar.set_label(label)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
