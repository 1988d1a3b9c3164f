"""Puts the tables together from the layers' files, and the definitions that speak of all layers."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from service.contracts import report as contract
from service.contracts.outliers import (
    HeadDamage,
    HeadFacts,
    LayerwiseDimension,
    LlmInt8Dimension,
    LlmInt8Outliers,
    LlmInt8RelativeOutliers,
    MassiveActivation,
    MassiveOutliers,
    MedianQuantileOutliers,
    Outliers,
    VarianceOutliers,
    discriminating,
)
from service.contracts.request import Analysis
from workers.measurement.results.layer_files import HITS, LayerFiles
from workers.measurement.results.layer_rows import PER_LAYER, Row, largest
from workers.measurement.results.surface import write_surface
from workers.measurement.results.typical import massive_dimensions, with_typical
from workers.measurement.runtime.table_writer import TableWriter
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
    fp16_columns: dict[str, contract.Fp16ColumnFacts]
    """By scheme: what int8 computes in 16 bits; only those of that kernel."""
    saved_bytes: dict[str, int]
    """By scheme: bytes by which the quantized weights are smaller."""
    paths: dict[str, str]
    """By scheme: the code paths that computed it."""
    left: dict[str, tuple[tuple[int, str], ...]]
    """By scheme: layers and names of the projections that it had no way of replacing."""


def assemble(
    files: LayerFiles,
    layers: int,
    positions: int,
    hidden_size: int,
    analysis: Analysis,
    tables: Mapping[str, TableWriter],
    describe: Describe,
) -> Assembled:
    """Write every table that grew layer by layer, and return what the summary says of all layers.

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
    outliers = _outliers(files, layers, positions, analysis, hidden_size)
    tables["outlier_dimensions"].append_rows(_rows_over_all_layers(outliers))
    facts = [files.facts(layer) for layer in range(layers)]
    names = analysis.scheme_names
    return Assembled(
        outliers=outliers,
        massive_activations=tuple(MassiveActivation(**row) for row in massive[:MASSIVE_IN_SUMMARY]),
        heads=_heads(files, layers, analysis),
        surface=write_surface(files, layers, tables["surface"]),
        worst_sites={name: _worst_sites(files, layers, name) for name in names},
        fp16_columns=_fp16_columns(files, layers),
        saved_bytes={name: sum(f.saved_bytes[name] for f in facts) for name in names},
        paths={name: "; ".join(sorted({p for f in facts for p in f.paths[name]})) for name in names},
        left={name: tuple((i, m) for i, f in enumerate(facts) for m in f.left[name]) for name in names},
    )


def _append_layers(files: LayerFiles, layers: int, tables: Mapping[str, TableWriter]) -> None:
    """Write the layers' rows of the tables, but for massive activations, which are ranked over all layers."""
    left_out = massive_dimensions(files, layers)
    for layer, name in itertools.product(range(layers), PER_LAYER):
        if name == "errors":
            tables[name].append_table(with_typical(files.table(layer, name), files.channel_errors(layer), left_out))
        elif name != "massive_activations":
            tables[name].append_table(files.table(layer, name))


def _massive_activations(files: LayerFiles, layers: int, describe: Describe) -> list[Row]:
    rows = largest(row for layer in range(layers) for row in files.table(layer, "massive_activations").to_pylist())
    for row in rows:
        row["token_id"], row["token"] = describe(row["sequence"], row["position"])
    return rows


def _outliers(files: LayerFiles, layers: int, positions: int, analysis: Analysis, hidden_size: int) -> Outliers:
    found: dict[str, tuple[Any, ...]] = {
        **_layerwise(files, layers),
        **{name: _over_all_layers(files, name, layers, positions, analysis) for name in HITS},
    }

    def of(definition: str, thresholds: str) -> dict[str, Any]:
        dimensions = found.get(definition, ())
        tells = discriminating(len(dimensions), hidden_size)
        return {"thresholds": getattr(analysis, thresholds), "dimensions": dimensions, "discriminates": tells}

    return Outliers(
        llm_int8=LlmInt8Outliers(**of("llm_int8", "llm_int8")),
        llm_int8_relative=LlmInt8RelativeOutliers(**of("llm_int8_relative", "llm_int8_relative")),
        massive_tensor=MassiveOutliers(**of("massive_tensor", "massive")),
        massive_token=MassiveOutliers(**of("massive_token", "massive")),
        median_quantile=MedianQuantileOutliers(**of("median_quantile", "median_quantile")),
        variance=VarianceOutliers(**of("variance", "variance")),
    )


def _over_all_layers(
    files: LayerFiles, definition: str, layers: int, positions: int, analysis: Analysis
) -> tuple[LlmInt8Dimension, ...]:
    """Return the dimensions that a definition of `HITS` flags."""
    limits = getattr(analysis, definition)
    hits_of = functools.partial(files.hits, definition)
    flagged = outlier_dimensions(hits_of, layers, positions, limits.layers_fraction, limits.positions_fraction)
    return tuple(LlmInt8Dimension(**vars(dimension)) for dimension in flagged)


def _layerwise(files: LayerFiles, layers: int) -> dict[str, tuple[LayerwiseDimension, ...]]:
    """Return, by definition, the dimensions that some layer flags, in ascending order."""
    peaks: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer in range(layers):
        for row in files.table(layer, "outlier_dimensions").to_pylist():
            peaks[row["definition"]][row["dimension"]].append(row["abs_max"])
    return {
        definition: tuple(
            LayerwiseDimension(dimension=j, layers_fraction=len(p) / layers, abs_max=max(p))
            for j, p in sorted(dimensions.items())
        )
        for definition, dimensions in peaks.items()
    }


def _rows_over_all_layers(outliers: Outliers) -> list[Row]:
    rows: list[Row] = []
    for definition, found in outliers.present().items():
        for dimension in found.dimensions:
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


def _fp16_columns(files: LayerFiles, layers: int) -> dict[str, contract.Fp16ColumnFacts]:
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for layer in range(layers):
        for row in files.table(layer, "fp16_columns").to_pylist():
            rows[row["scheme"]].append(row)
    return {scheme: _column_facts(of_scheme) for scheme, of_scheme in rows.items()}


def _column_facts(rows: list[Row]) -> contract.Fp16ColumnFacts:
    """Return what a scheme's rows say together."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        shares[row["component"]].append(row["prefill"])
    most = max(rows, key=lambda row: row["prefill"])
    return contract.Fp16ColumnFacts(
        prefill=fmean(row["prefill"] for row in rows),
        decode=fmean(row["decode"] for row in rows),
        components={component: fmean(of_component) for component, of_component in shares.items()},
        largest=contract.LargestShare(**{key: most[key] for key in contract.LargestShare.model_fields}),
    )
