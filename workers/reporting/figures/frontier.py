"""`frontier`: predicted KL divergence against bytes, with the mixes and controls that were measured.

One figure for each scheme. The line is the least predicted KL divergence of all mixes of a size. The points were
measured on held-out sequences, with 95% intervals.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from service.contracts.harm.recommendation import MixFacts, Recommendation
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, provenance
from workers.reporting.drawing.label_placement import spread
from workers.reporting.loading import Source
from workers.reporting.text import counted, data_size, number

_MEGABYTE = 1e6
_DASHED: dict[str, Any] = {"color": style.MUTED, "linestyle": (0, (4, 3)), "linewidth": 1, "gid": "target"}
_NAME_HEIGHT = 0.04
"""Of a mix's name, as a part of the figure's height."""
_TOGETHER = 0.06
"""Points less far apart, as a part of the figure's width, have their names in one column."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield a figure for every scheme whose mixes were measured."""
    for scheme, recommended in (source.report.recommendation or {}).items():
        if recommended.mixes and recommended.frontier:
            yield _drawing(source, scheme, recommended)


def _drawing(source: Source, scheme: str, recommended: Recommendation) -> Drawing:
    title = f"Mixes of {style.scheme_title(scheme, source.report.schemes[scheme])}"
    figure = Figure(figsize=style.WIDE)
    axes = figure.subplots()
    axes.set(title=title, xlabel="size of the model, MB", ylabel="mean KL divergence, nats")
    _draw_frontier(axes, recommended)
    for place, (label, mixes) in enumerate(_kinds(recommended)):
        _draw_points(axes, mixes, label, style.mark(place + 1))
    _mark_chosen(axes, recommended)
    axes.set_ylim(bottom=0)
    _name_points(axes, recommended.mixes)
    axes.legend(loc="upper right", fontsize=8)
    return Drawing(
        name=f"frontier_{scheme}",
        title=title,
        parts=_caption(source, scheme, recommended),
        alt=_alt(scheme, recommended),
        table="mixes",
        figure=figure,
    )


def _kinds(recommended: Recommendation) -> Iterator[tuple[str, list[MixFacts]]]:
    """Yield the mixes and the controls, each under its name in the legend."""
    mixes = [mix for mix in recommended.mixes if not mix.control]
    if mixes:
        yield "mixes, measured", mixes
    yield "controls, measured", [mix for mix in recommended.mixes if mix.control]


def _draw_frontier(axes: Axes, recommended: Recommendation) -> None:
    sizes = [point.bytes / _MEGABYTE for point in recommended.frontier]
    axes.plot(
        sizes,
        [point.predicted_kl for point in recommended.frontier],
        color=style.mark(0).color,
        label="frontier, predicted",
        gid="frontier",
    )
    target = recommended.target
    if target is not None:
        if target.kind == "max_kl" and target.value is not None:
            axes.axhline(target.value, label="target", **_DASHED)
        else:
            what = "knee of the frontier" if target.kind == "knee" else "target"
            axes.axvline(target.bytes / _MEGABYTE, label=what, **_DASHED)


def _draw_points(axes: Axes, mixes: list[MixFacts], label: str, look: style.Mark) -> None:
    axes.errorbar(
        [mix.bytes / _MEGABYTE for mix in mixes],
        [mix.kl.value for mix in mixes],
        yerr=[(mix.kl.interval[1] - mix.kl.value) if mix.kl.interval else np.nan for mix in mixes],
        linestyle="none",
        marker=look.marker,
        markersize=5,
        color=look.color,
        capsize=2,
        elinewidth=1,
        label=label,
    )


def _name_points(axes: Axes, mixes: Sequence[MixFacts]) -> None:
    """Write the name of every mix and control beside its point, those that lie together in a column with lines to them.

    Names are moved up or down where they would overlap.
    """
    (left, right), top = axes.get_xlim(), axes.get_ylim()[1]
    sizes = np.array([mix.bytes / _MEGABYTE for mix in mixes])
    beside = offset_copy(axes.transData, axes.get_figure(root=True), x=20, units="points")
    heights = spread([mix.kl.value for mix in mixes], [top * _NAME_HEIGHT] * len(mixes), 0, top)
    for mix, size, height in zip(mixes, sizes, heights, strict=True):
        column = sizes[sizes - size < _TOGETHER * (right - left)].max()
        axes.annotate(
            mix.name,
            (size, mix.kl.value),
            (column, height),
            textcoords=beside,
            fontsize=7.5,
            va="center",
            color=style.INK,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.5, "shrinkB": 3},
        )


def _mark_chosen(axes: Axes, recommended: Recommendation) -> None:
    """Ring the mix that was chosen."""
    if recommended.chosen is None:
        return
    mix = recommended.mix(recommended.chosen)
    axes.plot(
        [mix.bytes / _MEGABYTE],
        [mix.kl.value],
        linestyle="none",
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=style.INK,
        label="chosen",
        gid="chosen",
    )


def _caption(source: Source, scheme: str, recommended: Recommendation) -> Caption:
    held_out = counted(recommended.held_out_sequences, "held-out sequence")
    whole = " that keep fused groups whole" if source.report.analysis.recommend.whole_groups else ""
    return Caption(
        "Predicted KL divergence against the size of the model, and what was measured.",
        (
            f"Line: least predicted KL divergence of all mixes{whole} of a size, scaled so that the uniform scheme's "
            "is what was measured.",
            f"Points: mean KL divergence on {held_out}, with 95% intervals.",
        ),
        "Lower is better at equal size. A mix is chosen only if it is below the best control beyond the noise.",
        (recommended.reason,),
        provenance(source.report, "mixes", [scheme]),
    )


def _alt(scheme: str, recommended: Recommendation) -> str:
    points = (f"{mix.name}: {data_size(mix.bytes)}, {number(mix.kl.value)} nats" for mix in recommended.mixes)
    return f"Chart of KL divergence against size for {scheme}. {'; '.join(points)}."
