"""`divergence`: how far each scheme moves the prediction, token by token.

A mean hides what users notice: most tokens hardly move, and a few move by orders of magnitude. So every scheme gets
the whole distribution of its Kullback-Leibler divergence from the reference, on a logarithmic axis, one row each.

The divergence is never negative; in floating point it can come out as zero or within rounding of it, on either side.
A logarithm has no place for such values: they are counted in a bar of their own.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, name_bins, provenance
from workers.reporting.drawing.svg import Hover
from workers.reporting.loading import Source, select
from workers.reporting.text import counted, number, percent

ROUNDING = 1e-12
"""Nats up to which a divergence is rounding: sums over a vocabulary, in double precision, of numbers near 1."""
BINS = 64
"""Bins over the whole of the axis."""
_HEIGHT = 0.82
"""Of the highest bar, in rows."""
_MAX_TICKS = 9


class Spread(NamedTuple):
    """What one scheme does to the scored positions."""

    scheme: str
    label: str
    """What the figure calls it."""
    kl: NDArray[np.float64]
    """Nats, of every scored position."""
    same_top: float
    """Share of the positions at which both give the same most likely token; NaN without any."""

    @property
    def away(self) -> NDArray[np.float64]:
        """The divergences that are more than rounding."""
        return self.kl[self.kl > ROUNDING]

    @property
    def at_zero(self) -> int:
        """Positions whose divergence is zero, or rounding."""
        return int((self.kl <= ROUNDING).sum())

    @property
    def mean(self) -> float:
        """Over all scored positions; NaN without any."""
        return float(self.kl.mean()) if self.kl.size else float("nan")

    @property
    def p99(self) -> float:
        """The 99th percentile, linear between order statistics; NaN without any."""
        return float(np.quantile(self.kl, 0.99)) if self.kl.size else float("nan")


class Scale(NamedTuple):
    """The axis: bins that are equal in the logarithm, and the bar at zero to the left of them."""

    edges: NDArray[np.float64]
    zero: tuple[float, float]
    """Left and right of the bar at zero."""

    @property
    def zero_tick(self) -> float:
        """The middle of the bar at zero."""
        return float(np.sqrt(self.zero[0] * self.zero[1]))


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure, unless the report has no scheme."""
    spreads = [_spread(source, scheme) for scheme in source.report.schemes]
    if not spreads:
        return
    scale = _scale(spreads)
    figure = Figure(
        figsize=(style.WIDE[0], 1.5 + 0.68 * len(spreads) if len(spreads) <= 6 else 2.2 + 0.55 * len(spreads))
    )
    axes = figure.add_subplot()
    axes.set(title="Divergence from the reference, token by token", xlabel="KL(reference || scheme), nats")
    axes.set_xscale("log")
    _axis(axes, spreads, scale)
    highest = max((_shares(spread, scale).max(initial=0.0) for spread in spreads), default=0.0) or 1.0
    hover: dict[str, Sequence[str]] = {}
    for row, spread in enumerate(spreads):
        hover |= _row(axes, spread, row, scale, _HEIGHT / highest)
    _legend(figure, spreads)
    yield Drawing(
        name="divergence",
        title="Divergence from the reference, token by token",
        parts=_caption(source, spreads, scale),
        alt="Distributions on a logarithmic axis. " + " ".join(f"{_summary(spread)}." for spread in spreads),
        table="tokens",
        figure=figure,
        hover=hover,
    )


def _spread(source: Source, scheme: str) -> Spread:
    rows = select(source.tables["tokens"], scheme=scheme)
    kl = rows["kl_divergence"].astype(np.float64)
    scored = np.isfinite(kl)
    same = rows["same_top"][scored].astype(np.float64)
    same_top = float(same.mean()) if same.size else float("nan")
    return Spread(scheme, style.scheme_label(scheme, source.report.schemes[scheme]), kl[scored], same_top)


def _scale(spreads: Sequence[Spread]) -> Scale:
    away = np.concatenate([spread.away for spread in spreads])
    low, high = (float(away.min()), float(away.max())) if away.size else (1e-6, 1.0)
    if high / low < 10:
        low, high = low / 3, high * 3
    edges = np.geomspace(low, high, BINS + 1)
    edges[[0, -1]] = low, high  # which geomspace may miss by a rounding
    decades = np.log10(high / low)
    return Scale(edges, (low / 10 ** (0.07 * decades), low / 10 ** (0.03 * decades)))


def _shares(spread: Spread, scale: Scale) -> NDArray[np.float64]:
    """Return the share of the positions at zero, then in every bin."""
    return _counts(spread, scale) / (spread.kl.size or 1)


def _counts(spread: Spread, scale: Scale) -> NDArray[np.int64]:
    counts, _ = np.histogram(spread.away, scale.edges)
    return np.concatenate([[spread.at_zero], counts])


def _axis(axes: Axes, spreads: Sequence[Spread], scale: Scale) -> None:
    zero = any(spread.at_zero for spread in spreads)
    low, high = float(scale.edges[0]), float(scale.edges[-1])
    margin = (high / low) ** 0.015
    axes.set_xlim((scale.zero[0] if zero else low) / margin, high * margin)
    powers = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    ticks = (10.0 ** powers[:: -(-len(powers) // _MAX_TICKS)]).tolist()
    axes.xaxis.set_major_locator(FixedLocator([scale.zero_tick, *ticks] if zero else ticks))
    as_powers = powers.size and powers[0] < -3
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: "0" if x < low else style.power_of_ten(x) if as_powers else f"{x:g}")
    )
    axes.tick_params(which="minor", length=0, labelbottom=False)
    axes.set_ylim(len(spreads) - 0.85, -1.0)
    axes.set_yticks(range(len(spreads)), [spread.label for spread in spreads])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _row(axes: Axes, spread: Spread, row: int, scale: Scale, unit: float) -> Hover:
    """Draw one scheme: the bar at zero, the bins, the mean as its marker and the 99th percentile as a stroke.

    Return what the bars say on hover.
    """
    look = style.mark(row)
    axes.axhline(row, color=style.GRID, linewidth=0.8, zorder=1)
    if not spread.kl.size:
        axes.annotate("no scored position", (0.5, row), xycoords=("axes fraction", "data"), ha="center", va="bottom")
        return {}
    shares = _shares(spread, scale) * unit
    said = [
        f"{spread.scheme}, {low:.3g} to {high:.3g} nats: {counted(int(count), 'position')}"
        for (low, high), count in zip(pairwise(scale.edges), _counts(spread, scale)[1:], strict=True)
    ]
    hover = name_bins(axes, scale.edges, said, f"bins_{spread.scheme}", (row, row - _HEIGHT))
    axes.stairs(
        row - shares[1:], scale.edges, baseline=row, fill=True, color=look.color, alpha=0.45, gid=f"kl_{spread.scheme}"
    )
    if spread.at_zero:
        axes.stairs(
            row - shares[:1], scale.zero, baseline=row, fill=True, color=look.color, gid=f"zero_{spread.scheme}"
        )
        hover[f"zero_{spread.scheme}"] = (f"{spread.scheme}, 0 nats: {counted(spread.at_zero, 'position')}",)
    place = spread.mean if spread.mean > ROUNDING else scale.zero_tick
    axes.plot([place], [row], marker=look.marker, color=look.color, markersize=6, gid=f"mean_{spread.scheme}")
    if spread.p99 > ROUNDING:
        axes.plot([spread.p99] * 2, [row, row - 0.42], color=look.color, linewidth=1.8, gid=f"p99_{spread.scheme}")
    return hover


def _summary(spread: Spread) -> str:
    name = spread.label
    if not spread.kl.size:
        return f"{name}: no scored position"
    same = f"same top token {percent(spread.same_top, 2)}" if np.isfinite(spread.same_top) else "same top token n/a"
    return f"{name}: mean {number(spread.mean)}, p99 {number(spread.p99)}, {same}"


def _legend(figure: Figure, spreads: Sequence[Spread]) -> None:
    """Name every scheme's mean, 99th percentile and same-top share, beneath the axes."""
    looks = [style.mark(row) for row in range(len(spreads))]
    handles = [Line2D([], [], linestyle="none", marker=look.marker, color=look.color, markersize=6) for look in looks]
    labels = [_summary(spread) for spread in spreads]
    title = "marker: mean; stroke: 99th percentile"
    figure.legend(
        handles, labels, loc="outside lower center", fontsize=8, title=title, title_fontsize=8, handletextpad=0.3
    )


def _caption(source: Source, spreads: Sequence[Spread], scale: Scale) -> Caption:
    per_decade = BINS / np.log10(scale.edges[-1] / scale.edges[0])
    zeros = [(spread.label, spread.at_zero) for spread in spreads if spread.at_zero]
    named = ", ".join(f"{name} {counted(count, 'position')}" for name, count in zeros)
    return Caption(
        "KL(reference || scheme) of the next-token distributions at the scored positions, log scale.",
        (
            f"Bar height: share of positions, {number(per_decade)} bars per decade, the same scale in all rows. Same "
            "top token: share of positions with the same most likely token.",
        ),
        "Smaller is better. A long right tail means that a few tokens change strongly.",
        (
            f"The bar at 0: KL of at most {ROUNDING:g}, zero or rounding ({named})." if zeros else "",
            f"Scored positions: {_scored(spreads)}.",
        ),
        provenance(source.report, "tokens", [spread.scheme for spread in spreads]),
    )


def _scored(spreads: Sequence[Spread]) -> str:
    """Return how many positions each scheme was scored at."""
    sizes = {spread.kl.size for spread in spreads}
    if len(sizes) == 1:
        return f"{sizes.pop():,}"
    return ", ".join(f"{spread.scheme} {spread.kl.size:,}" for spread in spreads)
