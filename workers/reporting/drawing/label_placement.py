"""Moves labels apart along one axis, as little as possible, without changing their order; labels the ends of lines."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from workers.reporting.drawing import style

_MAX_LARGE_LABELS = 6
"""With more labels than this their font is smaller."""


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> NDArray[np.float64]:
    """Return centers near `wanted` at which labels of the given `sizes` do not overlap.

    The sum of squared moves is the least possible (isotonic regression by pooling neighbors that would collide).
    All labels stay inside [low, high] when they fit there; when they do not, they run over `high`.
    """
    centers = np.asarray(wanted, dtype=np.float64)
    if not centers.size:
        return centers
    order = np.argsort(centers, kind="stable")
    size = np.asarray(sizes, dtype=np.float64)[order]
    offsets = np.concatenate([[0.0], np.cumsum((size[:-1] + size[1:]) / 2)])
    free = _ascending(centers[order] - offsets)
    first = low + size[0] / 2
    last = max(first, high - size[-1] / 2 - offsets[-1])
    placed = np.empty_like(centers)
    placed[order] = np.clip(free, first, last) + offsets
    return placed


def _ascending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-descending sequence nearest to `values` in the sum of squares."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean = (before * members + mean * count) / (members + count)
            count += members
        blocks.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in blocks])


def label_line_ends(axes: Axes, lines: Sequence[NDArray[np.float64]], labels: Sequence[str], weight: str) -> None:
    """Write each label beside the end of its line, moved apart where lines end close together."""
    box = axes.get_window_extent()
    size = 8.5 if len(labels) > _MAX_LARGE_LABELS else 9.0
    drawn = [np.flatnonzero(np.isfinite(line)) for line in lines]
    ends = [(int(at[-1]), float(line[at[-1]])) if at.size else None for at, line in zip(drawn, lines, strict=True)]
    top = axes.get_ylim()[1]
    wanted = [axes.transData.transform((0, end[1] if end else top))[1] - box.y0 for end in ends]
    height = 1.3 * size / 72 * axes.figure.dpi
    places = spread(wanted, [height] * len(wanted), 0, box.height) / box.height
    for position, (label, end, place) in enumerate(zip(labels, ends, places, strict=True)):
        look = style.mark(position)
        line = {"arrowstyle": "-", "color": look.color, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1}
        axes.annotate(
            label,
            end or (1, place),
            xycoords="data" if end else "axes fraction",
            xytext=(1.02, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            fontweight=weight,
            color=look.color,
            arrowprops=line if end else None,
        )
