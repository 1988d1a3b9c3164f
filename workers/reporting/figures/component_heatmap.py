"""`component_heatmap`: layers by components, one map for each metric of the reference and of every scheme.

Read it by column for a kind of module that a scheme handles badly, and by row for a layer to leave in 16 bits.
White is the median cell, so that blue and orange mean less and more than this model's ordinary module.

What enters q, k and v is one tensor, measured once, and so is what enters gate and up; a map of inputs shows it in
each of their columns.
"""

from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.reporting.figures import style
from workers.reporting.figures.component_map import COMPONENTS, LABELS, draw_map
from workers.reporting.figures.drawing import Drawing, provenance, scheme_settings
from workers.reporting.figures.scales import logarithmic
from workers.reporting.loading import Columns, Source, select
from workers.reporting.text import listing, number, visible

SHARED_INPUTS = MappingProxyType({"attn.k": "attn.q", "attn.v": "attn.q", "mlp.gate": "mlp.up"})
"""From a component to the one under which the tensor that enters both is measured."""


class Metric(NamedTuple):
    """A column that is drawn as a map."""

    column: str
    title: str
    port: str
    bar: str
    """What the color bar says."""
    definition: str


OF_SCHEMES = (
    Metric(
        "weight_error",
        "Weight error",
        "output",
        "weight_error (relative Frobenius norm)",
        "weight_error is norm_F(W - Q(W)) / norm_F(W), Q(W) the dequantized weight",
    ),
    Metric(
        "relative_l2",
        "Isolated output error",
        "output",
        "relative_l2 (isolated, at the output)",
        "relative_l2 is norm2(y - q) / norm2(y) at the component's output, with the quantized module applied to the "
        "reference's input",
    ),
)
"""Of the `errors` table, for each scheme."""
OF_REFERENCE = (
    Metric(
        "range_bits",
        "Range of the inputs",
        "input",
        "range_bits (bits, at the input)",
        "range_bits is log2(abs_max / median_abs) of the tensor that enters the component: the bits of a symmetric "
        "integer grid that lie above the typical value",
    ),
    Metric(
        "crest_db",
        "Crest factor of the inputs",
        "input",
        "crest_db (dB, at the input)",
        "crest_db is 20 log10(abs_max / rms) of the tensor that enters the component",
    ),
    Metric(
        "abs_max",
        "Largest magnitude of the outputs",
        "output",
        "abs_max (at the output)",
        "abs_max is the largest magnitude of the tensor that leaves the component",
    ),
)
"""Of the `sites` table."""


class Map(NamedTuple):
    """One map and what it is about."""

    metric: Metric
    subject: str
    """What was measured, in a caption: a scheme and its settings, or the reference."""
    rows: Columns
    """The rows of the table that it is drawn from."""
    cells: NDArray[np.float64]
    """[layers, components]; NaN where the table has no value."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the maps of the reference, then two for each scheme."""
    for metric in OF_REFERENCE:
        found = reference_map(source, metric)
        yield _drawing(source, found, "sites", metric.column, f"{metric.title}, reference")
    for scheme, facts in source.report.schemes.items():
        for metric in OF_SCHEMES:
            title = f"{metric.title}: {style.scheme_title(scheme, facts)}"
            yield _drawing(source, scheme_map(source, metric, scheme), "errors", f"{scheme}_{metric.column}", title)


def reference_map(source: Source, metric: Metric) -> Map:
    """Return the map of one of `OF_REFERENCE`."""
    return _map(source, "sites", select(source.tables["sites"], port=metric.port), metric, "the reference")


def scheme_map(source: Source, metric: Metric, scheme: str) -> Map:
    """Return the map of one of `OF_SCHEMES` for a scheme of the report."""
    rows = select(source.tables["errors"], scheme=scheme, mode="isolated", port=metric.port)
    return _map(source, "errors", rows, metric, scheme_settings(source.report, scheme))


def _map(source: Source, table: str, rows: Columns, metric: Metric, subject: str) -> Map:
    layers = source.layers_of(table, rows)
    cells = np.full((source.report.model.layers, len(COMPONENTS)), np.nan)
    for position, component in enumerate(COMPONENTS):
        here = rows["component"] == component
        cells[layers[here], position] = rows[metric.column][here]
    if metric.port == "input":
        _share_inputs(source, cells)
    return Map(metric, subject, rows, cells)


def _share_inputs(source: Source, cells: NDArray[np.float64]) -> None:
    """Put the input that several components share into the column of each that the layer has."""
    outputs = select(source.tables["sites"], port="output")
    layers = source.layers_of("sites", outputs)
    for component, measured in SHARED_INPUTS.items():
        there = np.zeros(len(cells), dtype=bool)
        there[layers[outputs["component"] == component]] = True
        column, shared = COMPONENTS.index(component), cells[:, COMPONENTS.index(measured)]
        cells[:, column] = np.where(there & np.isnan(cells[:, column]), shared, cells[:, column])


def _drawing(source: Source, found: Map, table: str, name: str, title: str) -> Drawing:
    inputs = found.metric.port == "input"
    seen_as = [f"{c} (measured as {SHARED_INPUTS[c]})" if inputs and c in SHARED_INPUTS else c for c in COMPONENTS]
    figure, hover = draw_map(found.cells, title, found.metric.bar, tuple(seen_as))
    return Drawing(
        name=f"component_heatmap_{name}",
        title=title,
        caption=_caption(source, found, table),
        alt=_alt(found, title),
        table=table,
        figure=figure,
        hover=hover,
    )


def _caption(source: Source, found: Map, table: str) -> str:
    metric, finite = found.metric, found.cells[np.isfinite(found.cells)]
    parts = [f"{metric.title} of {found.subject}, layers by components. {metric.definition}."]
    if metric.port == "input":
        parts.append(
            "What enters q, k and v is one tensor, measured once, as the input of attn.q: their three columns show it."
        )
        if np.isfinite(found.cells[:, COMPONENTS.index("mlp.gate")]).any():
            parts.append("So does gate's column with that of up.")
    if finite.size:
        low, middle, high = np.quantile(finite, (0, 0.5, 1)).tolist()
        log = " (colors follow the logarithm)" if logarithmic(low, high) else ""
        parts.append(f"White is the median, {number(middle)}; blue is smaller, orange larger{log}.")
    if finite.size < found.cells.size:
        other = "there is no such figure of it" if table == "sites" else "the scheme leaves it as it is"
        parts.append(f"Hatched, n/a: the model has no such component there, or {other}.")
    parts.extend(_others(found))
    parts.append(provenance(source.report, table))
    return " ".join(parts)


def _others(found: Map) -> Iterator[str]:
    """Say which components were measured that have no column of their own, those with the largest value first."""
    worst: dict[str, float] = {}
    for component, value in zip(found.rows["component"], found.rows[found.metric.column], strict=True):
        if component not in (*COMPONENTS, "block") and np.isfinite(value):
            worst[component] = max(value, worst.get(component, -np.inf))
    if worst:
        ranked = sorted(worst, key=lambda name: (-worst[name], name))
        named = listing(f"{visible(name)} ({number(worst[name])})" for name in ranked)
        yield f"Also measured, with the largest value over layers: {named}."


def _alt(found: Map, title: str) -> str:
    cells, column = found.cells, found.metric.column
    if not np.isfinite(cells).any():
        return f"Heat map, {title}: no value of {column} for any of the seven components."
    layer, component = np.unravel_index(np.nanargmax(cells), cells.shape)
    low, middle, high = np.nanquantile(cells, (0, 0.5, 1)).tolist()
    return (
        f"Heat map, {title}, {cells.shape[0]} layers by {cells.shape[1]} components: {column} from {number(low)} to "
        f"{number(high)}, median {number(middle)}; largest at layer {layer}, {LABELS[component]}."
    )
