"""`comparison_heatmap`: layers by components, the change from the baseline to another report of the same depth.

White is no change, orange more and blue less: of range in the reference, of error under each shared scheme.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.reporting.comparison.gathering import Gathered
from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import centered_norm
from workers.reporting.drawing.component_map import COMPONENTS, LABELS, draw_map
from workers.reporting.drawing.figure import Caption, Drawing
from workers.reporting.figures import component_heatmap
from workers.reporting.loading import Source
from workers.reporting.text import number, plain, visible

_RANGE = next(metric for metric in component_heatmap.OF_REFERENCE if metric.column == "range_bits")
_ERROR = next(metric for metric in component_heatmap.OF_SCHEMES if metric.column == "relative_l2")


def draw_ranges(gathered: Gathered) -> Iterator[Drawing]:
    """Yield a map of the change of range_bits for each report that has the baseline's depth."""
    for place, label, other in _others(gathered):
        before, after = (
            component_heatmap.reference_map(source, _RANGE).cells for source in (gathered.sources[0], other)
        )
        yield _drawing(
            after - before,
            name=f"comparison_heatmap_range_bits_{place}",
            title=f"Change of the inputs' range: {plain(label, 40)}",
            bar="range_bits, difference (bits)",
            parts=Caption(
                "Change of the range of the inputs, by layer and component.",
                ("Compared report minus baseline.", _RANGE.definition, component_heatmap.SHARED),
                "White is no change; orange components became harder to quantize, blue ones easier.",
                (f"{visible(label)} minus {visible(gathered.labels[0])}.",),
            ),
        )


def draw_errors(gathered: Gathered) -> Iterator[Drawing]:
    """Yield a map of the change of the isolated error for each such report and each scheme that it shares."""
    for place, label, other in _others(gathered):
        for scheme, facts in gathered.sources[0].report.schemes.items():
            if scheme in other.report.schemes:
                yield _drawing(
                    error_change(gathered.sources[0], other, scheme),
                    name=f"comparison_heatmap_{scheme}_relative_l2_{place}",
                    title=f"Change of the isolated error: {style.scheme_title(scheme, facts)}, {plain(label, 40)}",
                    bar="relative_l2, ratio (dB)",
                    parts=Caption(
                        "Change of the isolated error of a shared scheme, by layer and component.",
                        ("20 log10 of compared report / baseline, in dB.", _ERROR.definition),
                        "White is no change; orange components have more error, blue ones less.",
                        (f"{visible(label)} relative to {visible(gathered.labels[0])}.",),
                    ),
                )


def error_change(baseline: Source, other: Source, scheme: str) -> NDArray[np.float64]:
    """Return 20 log10 of the ratio of two isolated errors, [layers, components]; NaN where there is none."""
    before, after = (component_heatmap.scheme_map(source, _ERROR, scheme).cells for source in (baseline, other))
    both = (before > 0) & (after > 0)
    ratio = np.divide(after, before, out=np.ones_like(before), where=both)
    return np.where(both, 20 * np.log10(ratio), np.nan)


def _others(gathered: Gathered) -> Iterator[tuple[int, str, Source]]:
    """Yield the place, label and report of every further report with as many layers as the baseline."""
    depth = gathered.sources[0].report.model.layers
    for place, (label, source) in enumerate(zip(gathered.labels, gathered.sources, strict=True)):
        if place and source.report.model.layers == depth:
            yield place, label, source


def _drawing(cells: NDArray[np.float64], *, name: str, title: str, bar: str, parts: Caption) -> Drawing:
    figure, hover = draw_map(cells, title, bar, COMPONENTS, centered_norm)
    hatched = "" if np.isfinite(cells).all() else "Hatched, n/a: a report has no value, or an error is 0."
    return Drawing(
        name=name,
        title=title,
        parts=parts._replace(notes=(*parts.notes, hatched)),
        alt=_alt(cells, title),
        table="",
        figure=figure,
        hover=hover,
    )


def _alt(cells: NDArray[np.float64], title: str) -> str:
    if not np.isfinite(cells).any():
        return f"Heat map, {title}: no component has a value in both reports."
    layer, component = np.unravel_index(np.nanargmax(np.abs(cells)), cells.shape)
    return (
        f"Heat map, {title}, {cells.shape[0]} layers by {cells.shape[1]} components: from "
        f"{number(float(np.nanmin(cells)))} to {number(float(np.nanmax(cells)))}; the largest change is at layer "
        f"{layer}, {LABELS[component]}."
    )
