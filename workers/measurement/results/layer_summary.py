"""Summarizes all layers from their files: outlier dimensions, damaged heads, worst sites and columns in 16 bits."""

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from service.contracts import report as contract
from service.contracts.request import Analysis
from service.contracts.sections.outliers import (
    HeadDamage,
    HeadFacts,
    LayerwiseDimension,
    LlmInt8Dimension,
    LlmInt8Outliers,
    LlmInt8RelativeOutliers,
    MassiveOutliers,
    MedianQuantileOutliers,
    Outliers,
    VarianceOutliers,
    discriminating,
)
from workers.measurement.harm.copies import Module
from workers.measurement.results.layer_files import HITS, LayerFiles
from workers.measurement.results.layer_rows import Row
from workers.measurement.statistics.outliers.llm_int8 import outlier_dimensions

WORST_SITES = 10
"""Sites with the largest errors that a report names, for each scheme."""


@dataclass(frozen=True)
class CopiesFacts:
    """One scheme's copies of all layers."""

    saved_bytes: int
    """Bytes by which the quantized weights are smaller."""
    paths: str
    """The code paths that computed the projections, separated by semicolons."""
    left: tuple[tuple[int, str], ...]
    """Layers and names of the projections that the scheme had no way of replacing."""


def summarize_copies(files: LayerFiles, layers: int, schemes: Iterable[str]) -> dict[str, CopiesFacts]:
    """Add up what the layers' files say of every scheme's copies."""
    facts = [files.facts(layer) for layer in range(layers)]
    return {
        name: CopiesFacts(
            saved_bytes=sum(sum(layer.saved[name].values()) for layer in facts),
            paths="; ".join(sorted({path for layer in facts for path in layer.paths[name]})),
            left=tuple((index, module) for index, layer in enumerate(facts) for module in layer.left[name]),
        )
        for name in schemes
    }


def replaced_modules(files: LayerFiles, layers: int, schemes: Iterable[str]) -> dict[str, dict[Module, int]]:
    """Return by scheme the modules of the layers that it replaced, and the bytes by which each is smaller."""
    saved = [files.facts(layer).saved for layer in range(layers)]
    return {
        scheme: {Module(layer, name): size for layer, of in enumerate(saved) for name, size in of[scheme].items()}
        for scheme in schemes
    }


def find_outliers(files: LayerFiles, layers: int, positions: int, analysis: Analysis, hidden_size: int) -> Outliers:
    """Return the dimensions that each definition flags in all `layers`, of a residual stream of `hidden_size`.

    positions: measured token positions.
    """
    flagged: dict[str, tuple[Any, ...]] = {
        **_layerwise(files, layers),
        **{name: _over_all_layers(files, name, layers, positions, analysis) for name in HITS},
    }

    def of(definition: str, thresholds: str) -> dict[str, Any]:
        dimensions = flagged.get(definition, ())
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
    dimensions = outlier_dimensions(hits_of, layers, positions, limits.layers_fraction, limits.positions_fraction)
    return tuple(LlmInt8Dimension(**vars(dimension)) for dimension in dimensions)


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


def head_facts(files: LayerFiles, layers: int, analysis: Analysis) -> HeadFacts:
    """Count the heads of all layers, those with measured outliers, and those that each scheme damages."""
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


def worst_sites(files: LayerFiles, layers: int, scheme: str) -> tuple[contract.WorstSite, ...]:
    """Return the sites where a scheme's isolated error is the largest, the worst first."""
    chosen = (pc.field("scheme") == scheme) & (pc.field("mode") == "isolated") & pc.field("relative_l2").is_valid()
    rows: list[dict[str, Any]] = []
    for layer in range(layers):
        rows += files.table(layer, "errors").filter(chosen).to_pylist()
    rows.sort(key=lambda row: -row["relative_l2"])
    return tuple(
        contract.WorstSite(**{key: row[key] for key in ("layer", "component", "relative_l2", "sqnr_db")})
        for row in rows[:WORST_SITES]
    )


def fp16_columns(files: LayerFiles, layers: int) -> dict[str, contract.Fp16ColumnFacts]:
    """Return, by scheme of the int8 kernel, the shares of the input columns that it computes in 16 bits."""
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for layer in range(layers):
        for row in files.table(layer, "fp16_columns").to_pylist():
            rows[row["scheme"]].append(row)
    return {scheme: _column_facts(of_scheme) for scheme, of_scheme in rows.items()}


def _column_facts(rows: list[Row]) -> contract.Fp16ColumnFacts:
    """Average a scheme's rows of the `fp16_columns` table: over all of them, and by component."""
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
