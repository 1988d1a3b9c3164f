"""The dynamic range: the ratio of the largest to the typical values, and where it is largest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.reporting.loading import Columns, Source
from workers.reporting.text import ABSENT, counted, number, ranges
from workers.reporting.topics.records import Grid, Topic, without

FP16_MAX = float(np.finfo(np.float16).max)
_INT8_BITS, _INT4_BITS = np.log2(2 * 127), np.log2(2 * 7)
"""A symmetric grid with this many steps up to the peak rounds the median to zero if it is under half a step."""
_TITLE = "Dynamic range"
_COLUMNS = ("abs_max", "median_abs", "range_bits", "kurtosis")
MAX_RUNS = 10
"""Rows of the table of layers; more only where layers without a finite peak stand between others."""
_WIDEST_TOLERANCE = 64.0
"""Bits between peaks in one run at which no more layers are joined."""


def topic(source: Source) -> Topic:
    """Return the section on the dynamic range."""
    if "sites" not in source.tables:
        return Topic("range", _TITLE, without("sites"))
    sites = source.tables["sites"]
    layers = source.layers_of("sites", sites)
    stream = (sites["component"] == "block") & (sites["port"] == "output")
    notes = (*_widest_input(sites, layers), over_fp16(sites), *_nonfinite(sites))
    grid = _by_layer(sites, layers, stream, source.report.model.layers)
    return Topic("range", _TITLE, _lead(sites, layers, stream), notes, grids=(grid,))


def _lead(sites: Columns, layers: NDArray[np.int64], stream: NDArray[np.bool_]) -> str:
    row = _largest(sites["range_bits"], stream)
    if row is None:
        return "No layer's output has a median magnitude above zero, so no range can be computed."
    peak = (
        f"The residual stream has its widest range after layer {layers[row]}: the peak of "
        f"{_cell(sites, 'abs_max', row)} is {_cell(sites, 'max_to_median', row)} times the median magnitude."
    )
    return f"{peak} {_consequence(float(sites['range_bits'][row]))}"


def _consequence(bits: float) -> str:
    """Say what the range means for integer grids whose scale is the peak over 2^(b-1) - 1."""
    if bits > _INT8_BITS:
        return "An int8 grid scaled to this peak rounds the typical value to zero."
    if bits > _INT4_BITS:
        return "An int4 grid scaled to this peak rounds the typical value to zero; an int8 grid does not."
    return "An int8 or int4 grid scaled to this peak still represents the typical value."


def _widest_input(sites: Columns, layers: NDArray[np.int64]) -> tuple[str, ...]:
    row = _largest(sites["range_bits"], (sites["component"] != "block") & (sites["port"] == "input"))
    if row is None:
        return ()
    return (
        f"The projection input with the widest range is at layer {layers[row]} {sites['component'][row]}: "
        f"{_cell(sites, 'range_bits', row)} bits, with a peak of {_cell(sites, 'abs_max', row)}.",
    )


def _largest(values: NDArray[np.float64], among: NDArray[np.bool_]) -> int | None:
    rows = np.flatnonzero(among & np.isfinite(values))
    return int(rows[np.argmax(values[rows])]) if rows.size else None


def _cell(sites: Columns, column: str, row: int) -> str:
    return number(float(sites[column][row]))


def over_fp16(sites: Columns) -> str:
    """Say how many values a cast to fp16 would make infinite, and where most of them are."""
    over = sites["over_fp16"]
    if not over.size or not over.sum() > 0:
        return f"No value exceeds {FP16_MAX:,.0f}, the largest fp16 value."
    most = int(np.argmax(over))
    return (
        f"Values over {FP16_MAX:,.0f}, the largest fp16 value, occur at {counted(int((over > 0).sum()), 'site')}, "
        f"most of them at {_name(sites, most)} ({int(over[most]):,}). Run this model in bfloat16."
    )


def _nonfinite(sites: Columns) -> tuple[str, ...]:
    count = sites["nonfinite"]
    if not count.size or not count.sum() > 0:
        return ()
    most = int(np.argmax(count))
    return (
        f"NaN or infinite values occur at {counted(int((count > 0).sum()), 'site')}, most of them at "
        f"{_name(sites, most)} ({int(count[most]):,}). All other figures exclude them.",
    )


def _name(sites: Columns, row: int) -> str:
    return f"layer {sites['layer'][row]} {sites['component'][row]}.{sites['port'][row]}"


def _by_layer(sites: Columns, layers: NDArray[np.int64], stream: NDArray[np.bool_], depth: int) -> Grid:
    """Return the stream after the layers, a row for each run of neighboring layers with about the same peak."""
    place = {int(layers[row]): int(row) for row in np.flatnonzero(stream)}
    peaks = [float(sites["abs_max"][place[layer]]) if layer in place else np.nan for layer in range(depth)]
    factor, runs = runs_of(peaks)
    rows = []
    for run in runs:
        here = [place[layer] for layer in run if layer in place]
        inside = np.flatnonzero(~stream & (layers >= run[0]) & (layers <= run[-1]))
        rows.append((ranges(run), *(_span(sites[name][here]) for name in _COLUMNS), _widest(sites, layers, inside)))
    return Grid(
        f"The residual stream. A row joins neighboring layers whose peaks are within a factor of {factor:.2g}",
        ("Layers", "Peak", "Median", "Range, bits", "Kurtosis", "Widest projection site, bits"),
        tuple(rows),
    )


def runs_of(peaks: Sequence[float]) -> tuple[float, list[list[int]]]:
    """Split layers into runs of neighbors whose peaks lie within a factor, and return the factor with the runs.

    The factor is 2^(1/4), squared until there are at most `MAX_RUNS` runs. Neighboring layers whose peaks are all
    zero or all not finite are a run.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.log2(np.asarray(peaks, dtype=np.float64))
    tolerance = 0.25
    while len(runs := _runs(bits, tolerance)) > MAX_RUNS and tolerance < _WIDEST_TOLERANCE:
        tolerance *= 2
    return 2.0**tolerance, runs


def _runs(bits: NDArray[np.float64], tolerance: float) -> list[list[int]]:
    runs: list[list[int]] = []
    for layer, value in enumerate(bits):
        inside = bits[runs[-1]] if runs else np.empty(0)
        if inside.size and np.isfinite([*inside, value]).all():
            joins = max(inside.max(), value) - min(inside.min(), value) <= tolerance
        else:
            joins = bool(inside.size) and not np.isfinite([*inside, value]).any()
        if joins:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _span(values: NDArray[np.float64]) -> str:
    """Return the smallest and the largest of the values: `1.87 to 2.11`; one where they are written alike."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ABSENT
    low, high = number(float(finite.min())), number(float(finite.max()))
    return low if low == high else f"{low} to {high}"


def _widest(sites: Columns, layers: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    row = _largest(sites["range_bits"], np.isin(np.arange(len(layers)), rows))
    if row is None:
        return ABSENT
    return f"layer {layers[row]} {sites['component'][row]}.{sites['port'][row]}, {_cell(sites, 'range_bits', row)}"
