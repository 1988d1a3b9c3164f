"""`component_heatmap`: layers by components, one map for each metric of the reference and of every scheme.

A column that is orange throughout is a kind of component that a scheme quantizes badly; such a row is a layer to
leave in 16 bits. White is the median cell.

q, k and v have the same input, which is measured once, and so do gate and up; a map of inputs repeats its values in
each of their columns.
"""

from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import logarithmic
from workers.reporting.drawing.component_map import COMPONENTS, cells_of, draw_map, largest_cell
from workers.reporting.drawing.figure import Caption, Drawing, provenance
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
    """Label of the color bar."""
    definition: str
    """A sentence."""


OF_SCHEMES = (
    Metric(
        "weight_error",
        "Weight error",
        "output",
        "weight_error (relative Frobenius norm)",
        "weight_error = norm_F(W - Q(W)) / norm_F(W), with Q(W) the dequantized weight.",
    ),
    Metric(
        "relative_l2",
        "Isolated output error",
        "output",
        "relative_l2 (isolated, at the output)",
        "relative_l2 = norm2(y - q) / norm2(y) of the output, with the quantized component applied to the reference's "
        "input.",
    ),
)
"""Of the `errors` table, for each scheme."""
OF_REFERENCE = (
    Metric(
        "range_bits",
        "Range of the inputs",
        "input",
        "range_bits (bits, at the input)",
        "range_bits = log2(abs_max / median_abs) of the input.",
    ),
    Metric(
        "crest_db",
        "Crest factor of the inputs",
        "input",
        "crest_db (dB, at the input)",
        "crest_db = 20 log10(abs_max / rms) of the input.",
    ),
    Metric(
        "abs_max",
        "Largest magnitude of the outputs",
        "output",
        "abs_max (at the output)",
        "abs_max = largest abs(x) of the output.",
    ),
)
"""Of the `sites` table."""
SHARED = "q, k and v have one input, measured as attn.q; so do up and gate, measured as mlp.up."
SHARED_WITHOUT_GATE = "q, k and v have one input, measured as attn.q."


class Map(NamedTuple):
    """One map and what it is about."""

    metric: Metric
    rows: Columns
    """The rows of the table that it is drawn from."""
    cells: NDArray[np.float64]
    """[layers, components]; NaN where the table has no value."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the maps of the reference, then two for each scheme."""
    for metric in OF_REFERENCE:
        shown = reference_map(source, metric)
        yield _drawing(source, shown, "sites", metric.column, f"{metric.title}, reference", ())
    for scheme, facts in source.report.schemes.items():
        for metric in OF_SCHEMES:
            title = f"{metric.title}: {style.scheme_title(scheme, facts)}"
            shown = scheme_map(source, metric, scheme)
            yield _drawing(source, shown, "errors", f"{scheme}_{metric.column}", title, (scheme,))


def reference_map(source: Source, metric: Metric) -> Map:
    """Return the map of one of `OF_REFERENCE`."""
    return _map(source, "sites", select(source.tables["sites"], port=metric.port), metric)


def scheme_map(source: Source, metric: Metric, scheme: str) -> Map:
    """Return the map of one of `OF_SCHEMES` for a scheme of the report."""
    rows = select(source.tables["errors"], scheme=scheme, mode="isolated", port=metric.port)
    return _map(source, "errors", rows, metric)


def _map(source: Source, table: str, rows: Columns, metric: Metric) -> Map:
    cells = cells_of(source, table, rows, metric.column)
    if metric.port == "input":
        _share_inputs(source, cells)
    return Map(metric, rows, cells)


def _share_inputs(source: Source, cells: NDArray[np.float64]) -> None:
    """Put the input that several components share into the column of each that the layer has."""
    outputs = select(source.tables["sites"], port="output")
    layers = source.layers_of("sites", outputs)
    for component, measured in SHARED_INPUTS.items():
        there = np.zeros(len(cells), dtype=bool)
        there[layers[outputs["component"] == component]] = True
        column, shared = COMPONENTS.index(component), cells[:, COMPONENTS.index(measured)]
        cells[:, column] = np.where(there & np.isnan(cells[:, column]), shared, cells[:, column])


def _drawing(source: Source, shown: Map, table: str, name: str, title: str, schemes: tuple[str, ...]) -> Drawing:
    inputs = shown.metric.port == "input"
    seen_as = [f"{c} (measured as {SHARED_INPUTS[c]})" if inputs and c in SHARED_INPUTS else c for c in COMPONENTS]
    figure, hover = draw_map(shown.cells, title, shown.metric.bar, tuple(seen_as))
    return Drawing(
        name=f"component_heatmap_{name}",
        title=title,
        parts=_caption(source, shown, table, schemes),
        alt=_alt(shown, title),
        table=table,
        figure=figure,
        hover=hover,
    )


def _caption(source: Source, shown: Map, table: str, schemes: tuple[str, ...]) -> Caption:
    metric, values = shown.metric, shown.cells[np.isfinite(shown.cells)]
    definition = [metric.definition]
    if metric.port == "input":
        gate = np.isfinite(shown.cells[:, COMPONENTS.index("mlp.gate")]).any()
        definition.append(SHARED if gate else SHARED_WITHOUT_GATE)
    notes = []
    if values.size:
        low, middle, high = np.quantile(values, (0, 0.5, 1)).tolist()
        notes.append(f"White: {number(middle)}.")
        notes.append("Logarithmic colors." if logarithmic(low, high) else "")
    if values.size < shown.cells.size:
        other = "has no finite value" if table == "sites" else "is not quantized"
        notes.append(f"Hatched, n/a: the component does not exist or {other}.")
    about, use = ("Range of the reference's activations", "are harder to quantize, blue ones easier")
    if schemes:
        about, use = "Error that a scheme makes", "have larger errors"
    return Caption(
        f"{about}, by layer and component.",
        tuple(definition),
        f"White is a map's median; orange components {use}.",
        (*notes, *_others(shown)),
        provenance(source.report, table, schemes),
    )


def _others(shown: Map) -> Iterator[str]:
    """Yield a sentence about measured components without a column of their own, the largest value first."""
    worst: dict[str, float] = {}
    for component, value in zip(shown.rows["component"], shown.rows[shown.metric.column], strict=True):
        if component not in (*COMPONENTS, "block") and np.isfinite(value):
            worst[component] = max(value, worst.get(component, -np.inf))
    if worst:
        ranked = sorted(worst, key=lambda name: (-worst[name], name))
        named = listing(f"{visible(name)} ({number(worst[name])})" for name in ranked)
        yield f"Other components, with the largest value over layers: {named}."


def _alt(shown: Map, title: str) -> str:
    cells, column = shown.cells, shown.metric.column
    if not np.isfinite(cells).any():
        return f"Heat map, {title}: no value of {column} for any of the seven components."
    low, middle, high = np.nanquantile(cells, (0, 0.5, 1)).tolist()
    return (
        f"Heat map, {title}, {cells.shape[0]} layers by {cells.shape[1]} components: {column} from {number(low)} to "
        f"{number(high)}, median {number(middle)}; largest at {largest_cell(cells)}."
    )
