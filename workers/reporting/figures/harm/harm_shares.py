"""`harm_shares`: the cumulative share of the harm, largest first: is it concentrated in few modules or dimensions?

Left: modules. Right: dimensions of the residual stream, with those marked that a definition of outliers flags.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, NothingToDraw, provenance
from workers.reporting.drawing.missing_values import leave_empty
from workers.reporting.figures.harm.harm_map import shown_column
from workers.reporting.loading import Source, select
from workers.reporting.text import counted, percent

_TABLE = "harm"
_DIMENSIONS = "dimension_harm"


class Ranked(NamedTuple):
    """The parts of one scheme, the most harmful first."""

    scheme: str
    label: str
    shares: NDArray[np.float64]
    """Cumulative."""
    flagged: NDArray[np.bool_]
    """Of dimensions: a definition of outliers flags it."""
    estimated: bool = True

    def needed(self, share: float) -> int:
        """Return how many of the most harmful parts have a share of the harm together."""
        return int(np.argmax(self.shares >= share)) + 1


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure, if harm was asked for.

    Raises:
        NothingToDraw: only the harm of layers is known.
    """
    if not source.report.harm:
        return
    modules = [ranked for scheme in source.report.harm if (ranked := _modules(source, scheme))]
    if not modules:
        raise NothingToDraw("the harm of modules was neither measured nor estimated")
    dimensions = [ranked for scheme in source.report.harm if (ranked := _dimensions(source, scheme))]
    figure = Figure(figsize=style.WIDE)
    left, right = figure.subplots(1, 2) if dimensions else (figure.subplots(), None)
    figure.suptitle("How far the harm is concentrated", fontsize=11.5)
    _draw_panel(source, left, modules, "modules, the most harmful first", "share of the modules' harms")
    if right is not None:
        _draw_panel(source, right, dimensions, "dimensions, the largest share first", "share of the estimated harm")
    yield Drawing(
        name="harm_shares",
        title="How far the harm is concentrated",
        parts=_caption(source, modules, dimensions),
        alt=" ".join(["Cumulative shares of the harm.", *(_said(one, "module") for one in modules)]),
        table=_TABLE,
        figure=figure,
    )


def _modules(source: Source, scheme: str) -> Ranked | None:
    rows = select(source.tables[_TABLE], scheme=scheme)
    modules = {name: values[rows["component"] != "block"] for name, values in rows.items()}
    column = shown_column(modules)
    if column is None:
        return None
    harms = modules[column]
    if column == "harm":
        harms = np.maximum(harms - np.nan_to_num(modules["noise_floor"]), 0)
    return _ranked(source, scheme, np.nan_to_num(harms), np.zeros(len(harms), dtype=bool), column != "harm")


def _dimensions(source: Source, scheme: str) -> Ranked | None:
    if _DIMENSIONS not in source.tables:
        return None
    rows = select(source.tables[_DIMENSIONS], scheme=scheme, inputs="residual stream")
    if not len(rows["share"]) or not np.isfinite(rows["share"]).all():
        return None
    return _ranked(source, scheme, rows["share"], rows["definitions"] != "", True, whole=1.0)


def _ranked(
    source: Source,
    scheme: str,
    harms: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    estimated: bool,
    whole: float | None = None,
) -> Ranked | None:
    whole = float(harms.sum()) if whole is None else whole
    if whole <= 0:
        return None
    order = np.argsort(-harms, kind="stable")
    label = style.scheme_label(scheme, source.report.schemes[scheme])
    return Ranked(scheme, label, np.cumsum(harms[order]) / whole, flagged[order], estimated)


def _draw_panel(source: Source, axes: Axes, ranked: Sequence[Ranked], x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    schemes = list(source.report.schemes)
    for one in ranked:
        look = style.mark(schemes.index(one.scheme))
        count = np.arange(1, len(one.shares) + 1)
        axes.plot(count, one.shares, color=look.color, linestyle=look.line, label=one.label, gid=f"shares_{one.scheme}")
        if one.flagged.any():
            axes.plot(
                count[one.flagged],
                one.shares[one.flagged],
                linestyle="none",
                marker=look.marker,
                markersize=4,
                color=look.color,
                label=f"{one.label}, flagged as outlier",
                gid=f"flagged_{one.scheme}",
            )
    if not ranked:
        leave_empty(axes, "n/a")
    axes.set_xscale("log")
    axes.set_xlim(0.9, max(len(one.shares) for one in ranked) * 1.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(0, color=style.MUTED, linewidth=0.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.08), fontsize=8)


def _caption(source: Source, modules: Sequence[Ranked], dimensions: Sequence[Ranked]) -> Caption:
    definition = ["Modules: harm of replacing each alone, over the sum of all; estimated unless all were measured."]
    if dimensions:
        definition.append(
            "Dimensions: share_j = sum over modules of E[a_mj a_m] over that of E[a_m^2], of modules that read the "
            "residual stream; the rest up to 100% is of other inputs. Shares may be negative, so that a line can fall."
        )
    notes = [_said(one, "module") for one in modules]
    for one in dimensions:
        facts = (source.report.harm or {})[one.scheme].dimensions
        if facts is not None:
            flagged = counted(facts.flagged_dimensions, "flagged dimension")
            notes.append(
                f"{one.label}: {flagged} {percent(facts.flagged.value)}, the others {percent(facts.unflagged.value)}, "
                f"other inputs {percent(facts.other_inputs.value)}."
            )
    return Caption(
        "Cumulative share of the harm, the most harmful parts first; log scale of their number.",
        tuple(definition),
        "A line that rises at once means that few parts do most of the harm.",
        tuple(notes),
        provenance(source.report, _TABLE, [one.scheme for one in modules]),
    )


def _said(one: Ranked, what: str) -> str:
    half = one.needed(0.5)
    return f"{one.label}: half of the harm is that of {counted(half, what)} of {len(one.shares):,}."
