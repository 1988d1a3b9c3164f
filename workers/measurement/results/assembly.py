"""Writes the tables from the layers' files, and computes the part of the summary that is over all layers.

The column `sqnr_db_typical` is filled in here: the residual stream's error without the dimensions that are massive.
Which those are is known only when every layer is done, because one that is massive in any layer is left out of all.
"""

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.contracts import report as contract
from service.contracts.request import Analysis
from service.contracts.sections.outliers import HeadFacts, MassiveActivation, Outliers
from workers.measurement.layers.sites import BLOCK_OUTPUT
from workers.measurement.results import layer_summary
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.layer_rows import PER_LAYER, Row, largest
from workers.measurement.runtime.table_writer import TableWriter
from workers.measurement.statistics.deviation import sqnr_without

MASSIVE_IN_SUMMARY = 100
"""Massive activations that the summary lists, the largest first."""
_TYPICAL = "sqnr_db_typical"
_MASSIVE = ("massive_tensor", "massive_token")
"""The definitions of massive activations."""

Describe = Callable[[int, int], tuple[int, str | None]]
"""From sequence and position to the token's id and its text."""


@dataclass(frozen=True)
class Assembled:
    """The part of the summary that is about all layers."""

    outliers: Outliers
    massive_activations: tuple[MassiveActivation, ...]
    heads: HeadFacts
    surface: contract.SurfaceFacts
    worst_sites: dict[str, tuple[contract.WorstSite, ...]]
    """By scheme."""
    fp16_columns: dict[str, contract.Fp16ColumnFacts]
    """By scheme: what int8 computes in 16 bits; only those of that kernel."""
    copies: dict[str, layer_summary.CopiesFacts]
    """By scheme."""


def assemble(
    files: LayerFiles,
    layers: int,
    positions: int,
    hidden_size: int,
    analysis: Analysis,
    tables: Mapping[str, TableWriter],
    describe: Describe,
) -> Assembled:
    """Write every table that has rows for each layer, and return the summary over all layers.

    Args:
        files: of the layers, all done.
        layers: how many there are.
        positions: measured token positions.
        hidden_size: dimensions of the residual stream.
        analysis: thresholds.
        tables: writers by name.
        describe: names tokens.
    """
    _append_layers(files, layers, tables)
    massive = _massive_activations(files, layers, describe)
    tables["massive_activations"].append_rows(massive)
    outliers = layer_summary.find_outliers(files, layers, positions, analysis, hidden_size)
    tables["outlier_dimensions"].append_rows(_rows_over_all_layers(outliers))
    copies = layer_summary.summarize_copies(files, layers, analysis.scheme_names)
    return Assembled(
        outliers=outliers,
        massive_activations=tuple(MassiveActivation(**row) for row in massive[:MASSIVE_IN_SUMMARY]),
        heads=layer_summary.head_facts(files, layers, analysis),
        surface=_write_surface(files, layers, tables["surface"]),
        worst_sites={name: layer_summary.worst_sites(files, layers, name) for name in analysis.scheme_names},
        fp16_columns=layer_summary.fp16_columns(files, layers),
        copies=copies,
    )


def _append_layers(files: LayerFiles, layers: int, tables: Mapping[str, TableWriter]) -> None:
    """Write the layers' rows of the tables, but for massive activations, which are ranked over all layers."""
    massive = _massive_dimensions(files, layers)
    for layer, name in itertools.product(range(layers), PER_LAYER):
        if name == "errors":
            tables[name].append_table(with_typical(files.table(layer, name), files.channel_errors(layer), massive))
        elif name != "massive_activations":
            tables[name].append_table(files.table(layer, name))


def _massive_activations(files: LayerFiles, layers: int, describe: Describe) -> list[Row]:
    """Return the largest massive activations of all layers, with their tokens."""
    rows = largest(row for layer in range(layers) for row in files.table(layer, "massive_activations").to_pylist())
    for row in rows:
        row["token_id"], row["token"] = describe(row["sequence"], row["position"])
    return rows


def _rows_over_all_layers(outliers: Outliers) -> list[Row]:
    """Return one row for every definition and dimension that it flags over all layers."""
    rows: list[Row] = []
    for definition, flagged in outliers.present().items():
        for dimension in flagged.dimensions:
            row = {"definition": definition} | dimension.model_dump()
            if quartiles := row.pop("quartiles", None):
                row |= dict(zip(("q25", "q50", "q75"), quartiles, strict=True))
            rows.append(row)
    return rows


def _write_surface(files: LayerFiles, layers: int, table: TableWriter) -> contract.SurfaceFacts:
    """Write the `surface` table, and say which sequence and layer it holds."""
    layer = files.standing_out(layers)
    site, surface = files.block_output(layer), files.surface(layer)
    table.append({name: getattr(surface, name).reshape(-1) for name in ("position", "channel", "value")})
    return contract.SurfaceFacts(
        layer=layer,
        sequence=surface.sequence,
        positions=surface.positions,
        channels=surface.channels,
        positions_per_cell=surface.positions_per_cell,
        channels_per_cell=surface.channels_per_cell,
        median_abs=site["median_abs"],
        max_to_median=site["max_to_median"],
    )


def _massive_dimensions(files: LayerFiles, layers: int) -> frozenset[int]:
    """Return the dimensions that either definition of massive activations flags in any layer."""
    return frozenset(
        row["dimension"]
        for layer in range(layers)
        for row in files.table(layer, "outlier_dimensions").to_pylist()
        if row["definition"] in _MASSIVE
    )


def with_typical(errors: pa.Table, sums: Mapping[str, NDArray[np.float64]], massive: Collection[int]) -> pa.Table:
    """Return a layer's rows of the `errors` table with `sqnr_db_typical` filled in at block.output, accumulated.

    Args:
        errors: the rows.
        sums: by scheme, of y^2 and (y - q)^2 of every dimension at block.output, [2, d].
        massive: the dimensions to leave out.
    """
    ratios = {scheme: sqnr_without(of, massive) for scheme, of in sums.items()}
    where = errors.select(["scheme", "mode", "component", "port"]).to_pylist()
    column = [ratios.get(row["scheme"]) if _is_stream(row) else None for row in where]
    place = errors.schema.get_field_index(_TYPICAL)
    return errors.set_column(place, errors.schema.field(place), pa.array(column, errors.schema.field(place).type))


def _is_stream(row: Mapping[str, str]) -> bool:
    return row["mode"] == "accumulated" and (row["component"], row["port"]) == BLOCK_OUTPUT
