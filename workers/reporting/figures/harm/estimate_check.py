"""`estimate_check`: estimated against measured harm, one figure for each scheme that has both.

Points near the line mean that the estimate can be trusted where nothing was measured.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from service.contracts.harm.facts import EstimateCheck, HarmFacts
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, provenance
from workers.reporting.loading import Columns, Source, select
from workers.reporting.text import counted, number

_TABLE = "harm"
_LEAST = 1e-3
"""Of the largest harm: what is less is drawn there."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield a figure for every scheme of which some harms were measured and estimated."""
    for scheme, facts in (source.report.harm or {}).items():
        if facts.check is None:
            continue
        rows = _both(select(source.tables[_TABLE], scheme=scheme), facts.check)
        name = style.scheme_title(scheme, source.report.schemes[scheme])
        figure = Figure(figsize=(style.NARROW, 5.2))
        _draw(figure.add_subplot(), rows, f"Estimate of harm: {name}\n{_agreement(facts, facts.check)}")
        yield Drawing(
            name=f"estimate_check_{scheme}",
            title=f"Estimate of harm: {name}",
            parts=_caption(source, scheme, facts, facts.check, drawn=bool(rows["at_random"].any())),
            alt=f"Scatter plot of estimated against measured harm, {counted(facts.check.swaps, 'point')}. "
            f"{_agreement(facts, facts.check)}.",
            table=_TABLE,
            figure=figure,
        )


def _both(rows: Columns, check: EstimateCheck) -> Columns:
    """Return the rows that have both figures: of modules, or of layers."""
    of_layers = rows["component"] == "block"
    both = np.isfinite(rows["harm"]) & np.isfinite(rows["estimated_harm"])
    keep = both & (of_layers if check.of == "layers" else ~of_layers)
    return {name: values[keep] for name, values in rows.items()}


def _agreement(facts: HarmFacts, check: EstimateCheck) -> str:
    return f"Spearman {number(check.spearman)}, additivity {number(facts.additivity)}"


def _draw(axes: Axes, rows: Columns, title: str) -> None:
    measured = np.maximum(rows["harm"] - np.nan_to_num(rows["noise_floor"]), 0)
    estimated = rows["estimated_harm"]
    high = float(max(measured.max(), estimated.max())) or 1.0
    least = high * _LEAST
    low = max(least, min(float(v[v > 0].min()) if (v > 0).any() else least for v in (measured, estimated)))
    x, y = np.maximum(measured, low), np.maximum(estimated, low)
    reach = np.array([low / 1.5, high * 1.5])
    axes.plot(reach, reach, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), label="equal", gid="equality")
    at_random = rows["at_random"].astype(bool)
    for chosen, label, look in ((~at_random, "chosen", style.mark(0)), (at_random, "drawn at random", style.mark(1))):
        if chosen.any():
            axes.errorbar(
                x[chosen],
                y[chosen],
                xerr=_bars(x, rows["standard_error"], chosen, low),
                yerr=_bars(y, rows["estimated_standard_error"], chosen, low),
                linestyle="none",
                marker=look.marker,
                markersize=4,
                color=look.color,
                elinewidth=0.6,
                label=label,
            )
    axes.set(
        title=title,
        xlabel="measured harm less the noise floor, nats",
        ylabel="estimated harm, nats",
        xscale="log",
        yscale="log",
        xlim=reach,
        ylim=reach,
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", fontsize=8)


def _bars(
    values: NDArray[np.float64], errors: NDArray[np.float64], chosen: NDArray[np.bool_], low: float
) -> NDArray[np.float64]:
    """Return how far the error bars reach down and up, [2, k]; not below the axis."""
    reach = np.nan_to_num(errors[chosen])
    return np.stack([np.minimum(reach, values[chosen] - low / 2), reach])


def _caption(source: Source, scheme: str, facts: HarmFacts, check: EstimateCheck, *, drawn: bool) -> Caption:
    notes = [f"{counted(check.swaps, 'swap')}: {check.of}."]
    if check.measured_over_estimated is not None:
        whose = "of those drawn at random" if drawn else "of all"
        notes.append(f"Measured over estimated, {whose}: {number(check.measured_over_estimated)}.")
    if facts.noise_floor is not None:
        floors = [floor for floor in facts.noise_floor if floor is not None]
        notes.append(f"Noise floor, largest of a layer: {number(max(floors, default=None))} nats.")
    return Caption(
        "Estimated against measured harm of single parts, log scales.",
        (
            "Bars: one standard error, by sequence. Harms of less than a thousandth of the largest are drawn there.",
            "Additivity: measured KL divergence of the whole scheme over the sum of its parts' harms.",
        ),
        "Points near the line, and an additivity near 1, mean that the estimates can be trusted.",
        tuple(notes),
        provenance(source.report, _TABLE, (scheme,)),
    )
