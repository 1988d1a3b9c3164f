"""Turns a layer's results into rows of the tables."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contracts.thresholds import HeadThresholds
from workers.measurement.layers.layer_results import LayerResults
from workers.measurement.layers.sites import BLOCK_OUTPUT
from workers.measurement.runtime.table_writer import Repeated, TableRows
from workers.measurement.statistics.order import occupied_bins

PER_LAYER = (
    "sites",
    "channels",
    "histograms",
    "outlier_dimensions",
    "massive_activations",
    "heads",
    "errors",
    "fp16_columns",
)
"""The tables that grow layer by layer."""
MAX_MASSIVE_ROWS = 10_000
"""Massive activations that the table holds, the largest first."""

Row = dict[str, Any]


def write_layer(writers: Mapping[str, TableRows], results: LayerResults, thresholds: HeadThresholds) -> None:
    """Append a layer's rows to every table of `PER_LAYER`."""
    _write_ranges(writers, results)
    writers["outlier_dimensions"].append_rows(list(_outlier_rows(results)))
    writers["massive_activations"].append_rows(largest(_massive_rows(results)))
    writers["heads"].append_rows(list(_head_rows(results, thresholds)))
    writers["errors"].append_rows(list(_error_rows(results)))
    writers["fp16_columns"].append_rows(list(_column_rows(results)))


def largest(massive: Iterable[Row]) -> list[Row]:
    """Return the rows of the largest massive activations, the largest first; ties in the order of the text."""
    return sorted(massive, key=lambda row: -abs(row["value"]))[:MAX_MASSIVE_ROWS]


def _write_ranges(writers: Mapping[str, TableRows], results: LayerResults) -> None:
    sites = []
    for site, statistics in results.ranges.items():
        place = {"layer": results.layer, "component": site.component, "port": site.port}
        sites.append(place | vars(statistics.range()))
        channels = vars(statistics.channels())
        channels |= {name: shortened(channels[name]) for name in ("mean", "variance")}
        width = len(channels["min"])
        writers["channels"].append(_repeated(place, width) | {"channel": np.arange(width)} | channels)
        low, high, count = occupied_bins(statistics.histogram)
        bins = {"bin_low": low, "bin_high": high, "count": count}
        writers["histograms"].append(_repeated(place, len(count)) | bins)
    writers["sites"].append_rows(sites)


def shortened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `values` without the last 20 of their 52 fraction bits: within 3e-10 of each, and half as large packed.

    Channels are most of a report. NaN and infinite values stay what they are.
    """
    return (values.view(np.uint64) & ~np.uint64((1 << 20) - 1)).view(np.float64)


def _outlier_rows(results: LayerResults) -> Iterable[Row]:
    abs_max = results.ranges[BLOCK_OUTPUT].channels().abs_max
    flagged = {
        "massive_tensor": {m.dimension for _, m in results.massive if m.massive_tensor},
        "massive_token": {m.dimension for _, m in results.massive if m.massive_token},
        "median_quantile": set(results.median_quantile),
        "variance": set(results.variance),
    }
    for definition, dimensions in flagged.items():
        for j in sorted(dimensions):
            yield {"definition": definition, "layer": results.layer, "dimension": j, "abs_max": float(abs_max[j])}


def _massive_rows(results: LayerResults) -> Iterable[Row]:
    for sequence, activation in results.massive:
        yield {"layer": results.layer, "sequence": sequence} | vars(activation)


def _head_rows(results: LayerResults, thresholds: HeadThresholds) -> Iterable[Row]:
    sqnr = {f"sqnr_db_{name}": s.heads.sqnr_db() for name, s in results.schemes.items() if s.heads is not None}
    for number, head in enumerate(results.heads):
        peak = head.relative_peak
        yield {
            "layer": results.layer,
            "head": number,
            **vars(head),
            "measured_outlier": peak is not None and peak >= thresholds.relative_peak,
            **{column: values[number] for column, values in sqnr.items()},
        }


def _error_rows(results: LayerResults) -> Iterable[Row]:
    for mode in ("isolated", "accumulated"):
        for name, scheme in results.schemes.items():
            weight_errors = scheme.weight_errors if mode == "isolated" else {}
            for site, statistics in getattr(scheme, mode).items():
                place = {"scheme": name, "layer": results.layer, "component": site.component, "port": site.port}
                weight_error = {"weight_error": weight_errors.get(site.component)}
                yield place | {"mode": mode} | vars(statistics.deviation()) | weight_error


def _column_rows(results: LayerResults) -> Iterable[Row]:
    for name, scheme in results.schemes.items():
        for component, columns in scheme.fp16_columns.items():
            if not math.isnan(columns.prefill):  # else the component did not run
                place = {"scheme": name, "layer": results.layer, "component": component}
                yield place | {"prefill": columns.prefill, "decode": columns.decode}


def _repeated(place: Row, times: int) -> Row:
    return {name: Repeated(value, times) for name, value in place.items()}
