"""Puts the tables together from the layers' files, and the definitions that speak of all layers."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from service.contracts import report as contract
from service.contracts.outliers import (
    HeadDamage,
    HeadFacts,
    LayerwiseDimension,
    LlmInt8Dimension,
    LlmInt8Outliers,
    MassiveActivation,
    MassiveOutliers,
    MedianQuantileOutliers,
    Outliers,
    VarianceOutliers,
)
from service.contracts.request import Analysis
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.layer_rows import PER_LAYER, Row, largest
from workers.measurement.results.surface import write_surface
from workers.measurement.results.tables import TableWriter
from workers.measurement.statistics.llm_int8 import outlier_dimensions

MASSIVE_IN_SUMMARY = 100
WORST_SITES = 10

Describe = Callable[[int, int], tuple[int, str | None]]
"""From sequence and position to the token's id and its text."""


@dataclass(frozen=True)
class Assembled:
    """What the summary needs of all layers."""

    outliers: Outliers
    massive_activations: tuple[MassiveActivation, ...]
    heads: HeadFacts
    surface: contract.SurfaceFacts
    worst_sites: dict[str, tuple[contract.WorstSite, ...]]
    """By scheme."""
    saved_bytes: dict[str, int]
    """By scheme: bytes by which the quantised weights are smaller."""
    paths: dict[str, str]
    """By scheme: the code paths that computed it."""
    left: dict[str, tuple[tuple[int, str], ...]]
    """By scheme: layers and names of the projections that it had no way of replacing."""


def assemble(
    files: LayerFiles,
    layers: int,
    positions: int,
    analysis: Analysis,
    tables: Mapping[str, TableWriter],
    describe: Describe,
) -> Assembled:
    """Write every table that grew layer by layer, and return what the summary says of all layers.

    Args:
        files: of the layers, all done.
        layers: how many there are.
        positions: measured token positions.
        analysis: thresholds.
        tables: writers by name.
        describe: names tokens.
    """
    for layer, name in itertools.product(range(layers), PER_LAYER):
        if name != "massive_activations":
            tables[name].append_table(files.table(layer, name))
    massive = _massive_activations(files, layers, describe)
    tables["massive_activations"].append_rows(massive)
    outliers = _outliers(files, layers, positions, analysis)
    tables["outlier_dimensions"].append_rows(_rows_over_all_layers(outliers))
    facts = [files.facts(layer) for layer in range(layers)]
    names = analysis.scheme_names
    return Assembled(
        outliers=outliers,
        massive_activations=tuple(MassiveActivation(**row) for row in massive[:MASSIVE_IN_SUMMARY]),
        heads=_heads(files, layers, analysis),
        surface=write_surface(files, layers, tables["surface"]),
        worst_sites={name: _worst_sites(files, layers, name) for name in names},
        saved_bytes={name: sum(f.saved_bytes[name] for f in facts) for name in names},
        paths={name: "; ".join(sorted({p for f in facts for p in f.paths[name]})) for name in names},
        left={name: tuple((i, m) for i, f in enumerate(facts) for m in f.left[name]) for name in names},
    )


def _massive_activations(files: LayerFiles, layers: int, describe: Describe) -> list[Row]:
    rows = largest(row for layer in range(layers) for row in files.table(layer, "massive_activations").to_pylist())
    for row in rows:
        row["token_id"], row["token"] = describe(row["sequence"], row["position"])
    return rows


def _outliers(files: LayerFiles, layers: int, positions: int, analysis: Analysis) -> Outliers:
    limits = analysis.llm_int8
    over_all = outlier_dimensions(
        files.llm_int8,
        layers,
        positions,
        limits.layers_fraction,
        limits.positions_fraction,
    )
    by_layer = _layerwise(files, layers)
    return Outliers(
        llm_int8=LlmInt8Outliers(thresholds=limits, dimensions=tuple(LlmInt8Dimension(**vars(d)) for d in over_all)),
        massive_tensor=MassiveOutliers(thresholds=analysis.massive, dimensions=by_layer["massive_tensor"]),
        massive_token=MassiveOutliers(thresholds=analysis.massive, dimensions=by_layer["massive_token"]),
        median_quantile=MedianQuantileOutliers(
            thresholds=analysis.median_quantile, dimensions=by_layer["median_quantile"]
        ),
        variance=VarianceOutliers(thresholds=analysis.variance, dimensions=by_layer["variance"]),
    )


def _layerwise(files: LayerFiles, layers: int) -> dict[str, tuple[LayerwiseDimension, ...]]:
    """Return, by definition, the dimensions that some layer flags, in ascending order."""
    peaks: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer in range(layers):
        for row in files.table(layer, "outlier_dimensions").to_pylist():
            peaks[row["definition"]][row["dimension"]].append(row["abs_max"])
    found = {
        definition: tuple(
            LayerwiseDimension(dimension=j, layers_fraction=len(p) / layers, abs_max=max(p))
            for j, p in sorted(dimensions.items())
        )
        for definition, dimensions in peaks.items()
    }
    return defaultdict(tuple, found)


def _rows_over_all_layers(outliers: Outliers) -> list[Row]:
    rows: list[Row] = []
    for definition in type(outliers).model_fields:
        for dimension in getattr(outliers, definition).dimensions:
            row = {"definition": definition} | dimension.model_dump()
            if quartiles := row.pop("quartiles", None):
                row |= dict(zip(("q25", "q50", "q75"), quartiles, strict=True))
            rows.append(row)
    return rows


def _heads(files: LayerFiles, layers: int, analysis: Analysis) -> HeadFacts:
    heads = measured = 0
    damaged, outliers = dict.fromkeys(analysis.scheme_names, 0), dict.fromkeys(analysis.scheme_names, 0)
    for layer in range(layers):
        table = files.table(layer, "heads")
        heads += table.num_rows
        measured += pc.sum(table["measured_outlier"]).as_py() or 0
        for scheme in analysis.scheme_names:
            # A head without a ratio is exact or silent, and not damaged.
            below = pc.fill_null(pc.less(table[f"sqnr_db_{scheme}"], analysis.heads.damaged_sqnr_db), False)
            damaged[scheme] += pc.sum(below).as_py() or 0
            outliers[scheme] += pc.sum(pc.and_(below, table["measured_outlier"])).as_py() or 0
    return HeadFacts(
        thresholds=analysis.heads,
        heads=heads,
        measured_outliers=measured,
        schemes={s: HeadDamage(damaged=damaged[s], damaged_outliers=outliers[s]) for s in analysis.scheme_names},
    )


def _worst_sites(files: LayerFiles, layers: int, scheme: str) -> tuple[contract.WorstSite, ...]:
    chosen = (pc.field("scheme") == scheme) & (pc.field("mode") == "isolated") & pc.field("relative_l2").is_valid()
    rows: list[dict[str, Any]] = []
    for layer in range(layers):
        rows += files.table(layer, "errors").filter(chosen).to_pylist()
    rows.sort(key=lambda row: -row["relative_l2"])
    return tuple(
        contract.WorstSite(**{key: row[key] for key in ("layer", "component", "relative_l2", "sqnr_db")})
        for row in rows[:WORST_SITES]
    )
