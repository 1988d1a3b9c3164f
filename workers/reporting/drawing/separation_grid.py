"""The grid of `labelled_activations`: a row for each model, a column for each hidden dimension.

Filled histograms are the reference, outlines the same records under a scheme: where they leave the filled shapes and
the AUROC goes toward 0.5, the scheme has destroyed the signal. One report has one row; a comparison has several.

    R records, B bins
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from service.contracts.sections.labelled import REFERENCE, Separation
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import name_bins
from workers.reporting.drawing.svg import Hover
from workers.reporting.text import ABSENT, plain

PANELS_PER_LINE = 4
"""Panels side by side; a model with more goes on beneath."""
MIN_BINS, MAX_BINS = 8, 60
MAX_OUTLINED_SCHEMES = 3
"""Most schemes drawn over one reference; more are not distinguishable."""
_SIDES = ((True, "true answer", style.TRUE), (False, "false answer", style.FALSE))
_PANEL_HEIGHT = 2.15
"""Inches of a row, without what its panels say of schemes."""
_LINE_HEIGHT = 0.13
"""Inches for each scheme, and for the line above them."""
_EMPTY_HEIGHT = 0.6
"""Inches of a row without panels."""


class Panel(NamedTuple):
    """One hidden dimension of one model."""

    dimension: int
    labels: NDArray[np.bool_]
    """[R]."""
    values: Mapping[str, NDArray[np.float32]]
    """By variant, `reference` and any schemes: the dimension's value of every record, [R]."""
    figures: Mapping[str, Separation]
    """By variant: rho and AUROC."""
    names: Mapping[str, str] = MappingProxyType({})
    """By scheme: what the figure calls it, where that is not its name."""


class Row(NamedTuple):
    """One model."""

    model: str
    """Its name as the y axis gives it."""
    panels: Sequence[Panel]
    """Left to right."""
    nothing: str = ""
    """Said in the row's place where it has no panels."""


def grid(rows: Sequence[Row], *, density: bool = False, outlines: bool = True) -> tuple[Figure, Hover]:
    """Return the grid of histograms, and what its bins say on hover; call it inside `style.applied()`.

    Args:
        rows: The models, top to bottom, at least one; they may differ in dimensions, records and schemes. A row of
            more than `PANELS_PER_LINE` panels takes several lines.
        density: Each histogram has an area of 1, and each panel a y axis of its own, for a density depends on the
            width of its dimension's values; else counts, on one y axis for each line of panels.
        outlines: Draw schemes over the reference, and state the AUROC under each; see `outlined`.
    """
    shown = rows if outlines else [row._replace(panels=[_reference_only(p) for p in row.panels]) for row in rows]
    lines = [(part, outlined(row.panels)) for row in shown for part in _broken(row)]
    heights = [_height(part) for part, _ in lines]
    figure = Figure(figsize=(style.WIDE[0], 0.4 + sum(heights)))
    places = figure.add_gridspec(len(lines), max(1, *(len(part.panels) for part, _ in lines)), height_ratios=heights)
    sharing_y: list[list[Any]] = []
    hover: dict[str, Sequence[str]] = {}
    line_styles = _line_styles(schemes for _, schemes in lines)
    for number, (part, schemes) in enumerate(lines):
        own = {scheme: line_styles[scheme] for scheme in schemes}
        axes, texts = _draw_row(figure, places, number, part, own, density)
        sharing_y += axes
        hover |= texts
    if sharing_y:
        figure.legend(handles=_side_handles(), loc="outside upper center", ncols=2)
    figure.draw_without_rendering()
    for axes in sharing_y:
        _make_room(axes)
    return figure, hover


def _line_styles(schemes: Iterable[Iterable[str]]) -> dict[str, str]:
    """Return the line style of every scheme, in the order of first mention."""
    mentioned = dict.fromkeys(itertools.chain.from_iterable(schemes))
    return {scheme: style.mark(place).line for place, scheme in enumerate(mentioned)}


def _side_handles() -> list[Patch]:
    return [Patch(color=color, alpha=0.5, linewidth=0, label=label) for _, label, color in _SIDES]


def outlined(panels: Sequence[Panel]) -> tuple[str, ...]:
    """Return the schemes that are drawn as outlines over a row's references, in the order of the report.

    They are all, or of more than `MAX_OUTLINED_SCHEMES` those that move the AUROC most, summed over the panels.
    """
    moved: dict[str, float] = {}
    for panel in panels:
        before = panel.figures[REFERENCE].auroc
        for scheme in panel.values:
            after = panel.figures[scheme].auroc
            if scheme != REFERENCE:
                change = 0.0 if before is None or after is None else abs(after - before)
                moved[scheme] = moved.get(scheme, 0.0) + change
    most = sorted(moved, key=lambda scheme: -moved[scheme])[:MAX_OUTLINED_SCHEMES]
    return tuple(scheme for scheme in moved if scheme in most)


def bin_edges(values: NDArray[np.floating], records: int) -> NDArray[np.float64]:
    """Return edges, [B + 1], that cover all finite values; B is three times the cube root of `records`, within limits.

    Values that are all equal lie in the middle; no values give the edges of 0 to 1.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low == high:
        pad = 0.5 * max(1.0, abs(low))
        low, high = low - pad, high + pad
    bins = int(np.clip(np.ceil(3 * np.cbrt(records)), MIN_BINS, MAX_BINS))
    return np.linspace(low, high, bins + 1)


def _reference_only(panel: Panel) -> Panel:
    return panel._replace(values={REFERENCE: panel.values[REFERENCE]})


def _broken(row: Row) -> Iterator[Row]:
    """Yield the lines of a row."""
    for start in range(0, max(1, len(row.panels)), PANELS_PER_LINE):
        yield row._replace(panels=row.panels[start : start + PANELS_PER_LINE])


def _height(row: Row) -> float:
    if not row.panels:
        return _EMPTY_HEIGHT
    schemes = max(len(panel.values) for panel in row.panels) - 1
    return _PANEL_HEIGHT + _LINE_HEIGHT * (schemes + bool(schemes))


def _draw_row(
    figure: Figure, places: GridSpec, number: int, row: Row, lines: Mapping[str, str], density: bool
) -> tuple[list[list[Any]], Hover]:
    """Draw one line of panels, outlines for the schemes in `lines`; return the axes, those that share y together."""
    if not row.panels:
        axes = figure.add_subplot(places[number, :])
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"{plain(row.model, 40)}: {row.nothing}", ha="center", va="center")
        return [], {}
    drawn: list[Any] = []
    hover: dict[str, Sequence[str]] = {}
    for column, panel in enumerate(row.panels):
        shared = drawn[0] if drawn and not density else None
        axes = figure.add_subplot(places[number, column], sharey=shared)
        axes.tick_params(labelleft=shared is None)
        _panel(axes, panel, density)
        hover |= _histograms(axes, panel, lines, density, f"{number}-{column}")
        _name_schemes(axes, panel, lines)
        drawn.append(axes)
    model = plain(row.model, 40)
    drawn[0].set_ylabel(f"{'Density' if density else '# Samples'} / " + (model if len(model) <= 16 else f"\n{model}"))
    return [[axes] for axes in drawn] if density else [drawn], hover


def _panel(axes: Axes, panel: Panel, density: bool) -> None:
    reference = panel.figures[REFERENCE]
    title = axes.set_title(f"rho {_three(reference.spearman_rho)}, AUROC {_three(reference.auroc)}", fontsize=9, pad=5)
    title.set_in_layout(False)  # else a long one would narrow the panels
    axes.set_xlabel(f"{panel.dimension}-th neuron act.", fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=not density))


def _histograms(axes: Axes, panel: Panel, lines: Mapping[str, str], density: bool, gid: str) -> Hover:
    """Draw filled histograms of the reference, and outlines of the schemes in `lines`, on the same edges.

    Return what the bins say on hover: the records in them.
    """
    edges = bin_edges(np.concatenate(list(panel.values.values())), len(panel.labels))
    texts = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    for variant in (REFERENCE, *(scheme for scheme in lines if scheme in panel.values)):
        texts = [f"{text}; {variant}" for text in texts]
        values = panel.values[variant].astype(np.float64)
        how: dict[str, Any] = {"fill": True, "alpha": 0.5, "linewidth": 0}
        if variant != REFERENCE:
            how = {"fill": False, "linewidth": 0.9, "linestyle": lines[variant]}
        for side, name, color in _SIDES:
            chosen = values[(panel.labels == side) & np.isfinite(values)]
            counts, _ = np.histogram(chosen, edges)
            texts = [f"{text} {count} {name.split()[0]}" for text, count in zip(texts, counts, strict=True)]
            heights, _ = np.histogram(chosen, edges, density=density and bool(chosen.size))
            axes.stairs(heights, edges, color=color, gid=f"{variant}-{str(side).lower()}-{gid}", **how)
    margin = 0.02 * (edges[-1] - edges[0])
    axes.set_xlim(edges[0] - margin, edges[-1] + margin)
    return name_bins(axes, edges, texts, f"bins-{gid}")


def _name_schemes(axes: Axes, panel: Panel, lines: Mapping[str, str]) -> None:
    """State the AUROC under every scheme, beside the line of those that are outlined."""
    keys = [
        Line2D(
            [],
            [],
            color=style.MUTED,
            linewidth=0.9,
            linestyle=lines.get(scheme, "none"),
            label=f"{plain(panel.names.get(scheme, scheme), 24)} {_three(panel.figures[scheme].auroc)}",
        )
        for scheme in panel.values
        if scheme != REFERENCE
    ]
    if keys:
        legend = axes.legend(
            handles=keys,
            title="AUROC under",
            title_fontsize=7,
            alignment="left",
            loc="upper left",
            frameon=True,
            facecolor=style.PAPER,
            edgecolor="none",
            framealpha=1,
            fontsize=7,
            handlelength=1.5,
            borderpad=0,
            borderaxespad=0.3,
            labelspacing=0.2,
        )
        legend.set_in_layout(False)


def _make_room(sharing: Sequence[Any]) -> None:
    """Raise the y axis that these panels share, so that what they say of schemes stands above the histograms."""
    peak = max(float(np.max(patch.get_data().values)) for axes in sharing for patch in axes.patches)
    legends = [axes.get_legend().get_window_extent().height for axes in sharing if axes.get_legend()]
    band = max(legends, default=0.0) / sharing[0].get_window_extent().height
    sharing[0].set_ylim(0, (peak or 1.0) * 1.06 / (1 - band))


def _three(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"
