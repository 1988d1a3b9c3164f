"""The dynamic range: how far the largest values lie above the typical one, and where."""

import numpy as np
from numpy.typing import NDArray

from workers.reporting.loading import Columns, Source
from workers.reporting.text import ABSENT, counted, number
from workers.reporting.topics.records import Grid, Topic, without

FP16_LARGEST = 65504
_TITLE = "Dynamic range"
_COLUMNS = ("abs_max", "p99_9_abs", "p99_abs", "median_abs", "max_to_median", "range_bits", "kurtosis")


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
        return "No layer's output has a median magnitude above zero, so that no range can be given."
    return (
        f"The residual stream's peak stands out most after layer {layers[row]}: {_cell(sites, 'abs_max', row)} is "
        f"{_cell(sites, 'max_to_median', row)} times its median magnitude, so that "
        f"{_cell(sites, 'range_bits', row)} bits of a symmetric integer grid lie above the typical value."
    )


def _widest_input(sites: Columns, layers: NDArray[np.int64]) -> tuple[str, ...]:
    row = _largest(sites["range_bits"], (sites["component"] != "block") & (sites["port"] == "input"))
    if row is None:
        return ()
    return (
        f"Of what enters a projection, layer {layers[row]} {sites['component'][row]} has the widest range: "
        f"{_cell(sites, 'range_bits', row)} bits, with a peak of {_cell(sites, 'abs_max', row)}.",
    )


def _largest(values: NDArray[np.float64], among: NDArray[np.bool_]) -> int | None:
    rows = np.flatnonzero(among & np.isfinite(values))
    return int(rows[np.argmax(values[rows])]) if rows.size else None


def _cell(sites: Columns, column: str, row: int) -> str:
    return number(float(sites[column][row]))


def over_fp16(sites: Columns) -> str:
    """Say how many values a cast to fp16 would make infinite, and where the most are."""
    over = sites["over_fp16"]
    if not over.size or not over.sum() > 0:
        return f"No value at any site lies beyond fp16's largest, {FP16_LARGEST:,}."
    most = int(np.argmax(over))
    return (
        f"Values beyond fp16's largest, {FP16_LARGEST:,}, occur at {counted(int((over > 0).sum()), 'site')}; "
        f"most at {_name(sites, most)}: {int(over[most]):,}."
    )


def _nonfinite(sites: Columns) -> tuple[str, ...]:
    count = sites["nonfinite"]
    if not count.size or not count.sum() > 0:
        return ()
    most = int(np.argmax(count))
    return (
        f"NaN or infinite values occur at {counted(int((count > 0).sum()), 'site')} and are left out of every other "
        f"figure; most at {_name(sites, most)}: {int(count[most]):,}.",
    )


def _name(sites: Columns, row: int) -> str:
    return f"layer {sites['layer'][row]} {sites['component'][row]}.{sites['port'][row]}"


def _by_layer(sites: Columns, layers: NDArray[np.int64], stream: NDArray[np.bool_], depth: int) -> Grid:
    rows = []
    for layer in range(depth):
        here = np.flatnonzero(stream & (layers == layer))
        figures = [_cell(sites, name, here[0]) if here.size else ABSENT for name in _COLUMNS]
        rows.append((str(layer), *figures, _widest(sites, np.flatnonzero(~stream & (layers == layer)))))
    return Grid(
        "The stream after each layer (block.output), and the site with the most range_bits inside the layer",
        ("Layer", "abs max", "p99.9", "p99", "median", "max / median", "range bits", "kurtosis", "widest site, bits"),
        tuple(rows),
    )


def _widest(sites: Columns, rows: NDArray[np.int64]) -> str:
    bits = np.asarray(sites["range_bits"][rows], dtype=np.float64)
    if not np.isfinite(bits).any():
        return ABSENT
    row = rows[int(np.nanargmax(bits))]
    return f"{sites['component'][row]}.{sites['port'][row]} {number(float(sites['range_bits'][row]))}"
