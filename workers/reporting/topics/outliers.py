"""The outlier dimensions: every dimension that a definition flags, and the massive activations."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from service.contracts.report import Report
from service.contracts.sections.outliers import (
    Definition,
    LayerwiseDimension,
    LlmInt8Dimension,
    LlmInt8Outliers,
    LlmInt8RelativeOutliers,
    MassiveActivation,
    Outliers,
)
from workers.reporting.loading import Source
from workers.reporting.text import ABSENT, listing, number, percent, ranges
from workers.reporting.topics.records import Fact, Grid, Topic, joined

LISTED_DIMENSIONS = 12
"""Dimensions in a table; tables/outlier_dimensions.parquet has all."""
LISTED_ACTIVATIONS = 8
"""Rows of massive activations; tables/massive_activations.parquet has each activation."""
UNFLAGGED = "-"
_SITES = "inputs of attn.q and mlp.up"
"""Where the definitions after LLM.int8() look."""
_SCALES = {"llm_int8": "", "llm_int8_relative": " times the token's root mean square"}
"""By definition after LLM.int8(): what its magnitude is multiplied by."""

Flagged = Mapping[str, Mapping[int, LlmInt8Dimension | LayerwiseDimension]]
"""By definition, what it says of each dimension that it flags."""


def topic(source: Source) -> Topic:
    """Return the section on outlier dimensions."""
    report = source.report
    flagged = flagged_dimensions(report)
    every = by_definition(report)
    grids = [every] if every.rows else []
    grids += [_quartiles(name, of) for name, of in _after_llm_int8(report).items() if of.dimensions][:1]
    grids += massive_activations(source)
    return Topic(
        name="outliers",
        title="Outlier dimensions",
        lead=lead(report),
        notes=_others(flagged),
        terms=definitions(report.outliers),
        grids=tuple(grids),
    )


def flagged_dimensions(report: Report) -> Flagged:
    """Return what every definition says of the dimensions that it flags; those that do not discriminate are left out.

    One that flags more than half of the dimensions does not distinguish outliers.
    """
    named = report.outliers.named(report.model.hidden_size)
    return {name: {one.dimension: one for one in of.dimensions} for name, of in named.items()}


def _after_llm_int8(report: Report) -> dict[str, LlmInt8Outliers | LlmInt8RelativeOutliers]:
    """Return the definitions after LLM.int8() that discriminate, the fixed magnitude first."""
    named = report.outliers.named(report.model.hidden_size)
    return {n: of for n, of in named.items() if isinstance(of, LlmInt8Outliers | LlmInt8RelativeOutliers)}


def lead(report: Report) -> str:
    """Say which definitions do not discriminate, then which dimensions are outliers."""
    unnamed = report.outliers.unnamed(report.model.hidden_size)
    width = f"{report.model.hidden_size:,}"
    sentences = [
        f"{name} flags {count:,} of {width} dimensions, so it does not discriminate." for name, count in unnamed.items()
    ]
    return " ".join([*sentences, _outliers(report, width)])


def _outliers(report: Report, width: str) -> str:
    """Say what the definitions that discriminate flag."""
    flagged = flagged_dimensions(report)
    for name in _after_llm_int8(report):
        if dimensions := sorted(flagged[name]):
            verb = "meets" if len(dimensions) == 1 else "meet"
            how = " relative to the token's size" if name == "llm_int8_relative" else ""
            return (
                f"{len(dimensions):,} of {width} dimensions {verb} LLM.int8()'s definition{how}: {_names(dimensions)}."
            )
    every = sorted(set().union(*flagged.values()))
    looked_for = all(warning.code != "unknown-architecture" for warning in report.warnings)
    whole = len(flagged) == len(report.outliers.present())
    if not every and looked_for:
        which = "any definition" if whole else "another definition"
        return f"None of the {width} hidden dimensions is an outlier by {which}."
    without = (
        "No dimension meets LLM.int8()'s definition."
        if looked_for
        else "LLM.int8()'s definition was not applied, because Headroom does not know this architecture."
    )
    if not every:
        return f"{without} None of the {width} hidden dimensions is an outlier by another definition."
    verb = "meets" if len(every) == 1 else "meet"
    return f"{without} {len(every):,} of {width} dimensions {verb} another definition: {_names(every)}."


def _names(dimensions: list[int]) -> str:
    return listing([str(dimension) for dimension in dimensions], 10)


def _others(flagged: Flagged) -> tuple[str, ...]:
    clauses = [
        f"{name} flags {len(dimensions):,} ({_names(sorted(dimensions))})"
        for name, dimensions in flagged.items()
        if dimensions and name != "llm_int8"
    ]
    none = [name for name, dimensions in flagged.items() if not dimensions]
    if none and len(none) < len(flagged):
        clauses.append(f"{joined(none)} {'flags' if len(none) == 1 else 'flag'} none")
    return (f"{'; '.join(clauses)}.",) if clauses else ()


def _ranked(flagged: Flagged) -> list[int]:
    """Return the dimensions that the most definitions flag first, of those the widest spread, and then the largest."""

    def rank(dimension: int) -> tuple[int, float, float, int]:
        flags = [by[dimension] for by in flagged.values() if dimension in by]
        return -len(flags), -max(f.layers_fraction for f in flags), -max(f.abs_max for f in flags), dimension

    return sorted(set().union(*flagged.values()), key=rank)


def by_definition(report: Report) -> Grid:
    """Return the table of all outlier dimensions, a column for each definition that discriminates.

    No rows where there are none.
    """
    flagged = flagged_dimensions(report)
    ranked = _ranked(flagged)
    rows = []
    for dimension in ranked[:LISTED_DIMENSIONS]:
        flags = [of.get(dimension) for of in flagged.values()]
        peak = max(f.abs_max for f in flags if f)
        rows.append((str(dimension), *map(_flag, flags), number(peak)))
    more = f" The first {LISTED_DIMENSIONS} of {len(ranked):,}." if len(ranked) > LISTED_DIMENSIONS else ""
    return Grid(
        f"Share of the layers that flag each dimension{_also_of_positions(report, flagged)}. Last column: the "
        f"largest of the flagging definitions.{more}",
        ("Dimension", *flagged, "abs max where flagged"),
        tuple(rows),
    )


def _also_of_positions(report: Report, flagged: Flagged) -> str:
    """Name the definitions whose cells also have the share of the positions."""
    names = [name for name in _after_llm_int8(report) if flagged[name]]
    return f"; for {joined(names)}, also of all positions" if names else ""


def _flag(flag: LlmInt8Dimension | LayerwiseDimension | None) -> str:
    if flag is None:
        return UNFLAGGED
    layers = percent(flag.layers_fraction, 0)
    return f"{layers}, {percent(flag.positions_fraction, 0)}" if isinstance(flag, LlmInt8Dimension) else layers


def definitions(outliers: Outliers) -> tuple[Fact, ...]:
    """Return every definition with the thresholds that the report used."""
    massive = outliers.massive_tensor.thresholds
    of_massive = f"block.output: over {massive.magnitude:g} and at least {massive.ratio:g} times the median"
    quantile = 100 * outliers.median_quantile.thresholds.quantile
    ratio = outliers.variance.thresholds.ratio
    return (
        *((name, _after(of)) for name, of in outliers.present().items() if name in _SCALES),
        ("massive_tensor", f"{of_massive} magnitude of the sequence"),
        ("massive_token", f"{of_massive} magnitude of the token"),
        ("median_quantile", f"block.output: median magnitude above the layer's {quantile:g}th percentile"),
        ("variance", f"block.output: variance at least {ratio:g} times the layer's mean"),
    )


def _after(of: Definition) -> str:
    """Return when a dimension meets a definition after LLM.int8()."""
    assert isinstance(of, LlmInt8Outliers | LlmInt8RelativeOutliers)
    limits = of.thresholds
    return (
        f"{_SITES}: abs(x) of {_magnitude(of)} or more in at least {percent(limits.layers_fraction, 0)} of the layers; "
        f"at least {percent(limits.positions_fraction, 0)} of all positions have it in one layer or more"
    )


def _magnitude(of: LlmInt8Outliers | LlmInt8RelativeOutliers) -> str:
    relative = isinstance(of, LlmInt8RelativeOutliers)
    return f"{of.thresholds.magnitude:g}{_SCALES['llm_int8_relative' if relative else 'llm_int8']}"


def _quartiles(name: str, of: LlmInt8Outliers | LlmInt8RelativeOutliers) -> Grid:
    rows = tuple(
        (
            str(outlier.dimension),
            "one" if outlier.one_sided else "both",
            *(number(quartile) for quartile in outlier.quartiles),
            number(outlier.abs_max),
        )
        for outlier in of.dimensions[:LISTED_DIMENSIONS]
    )
    return Grid(
        f"Quartiles of the values of magnitude {_magnitude(of)} or more at the {_SITES} ({name})",
        ("Dimension", "Signs", "First quartile", "Median", "Third quartile", "abs max"),
        rows,
    )


class _Carried(NamedTuple):
    """Massive activations of one dimension at one position."""

    dimension: int
    position: int
    layers: list[int]
    sequences: int
    tokens: list[str]
    low: float
    high: float
    ratio: float
    """The largest ratio to the median magnitude of the sequence; NaN if none was recorded."""


def massive_activations(source: Source) -> list[Grid]:
    """Return the table of massive activations, one row for each dimension and position with its range of layers."""
    rows = sorted(_carried(_recorded(source)), key=lambda one: -max(abs(one.low), abs(one.high)))
    if not rows:
        return []
    more = f" The first {LISTED_ACTIVATIONS} of {len(rows):,} rows." if len(rows) > LISTED_ACTIVATIONS else ""
    return [
        Grid(
            f"Massive activations by dimension and position, the largest first.{more}",
            ("Dimension", "Position", "Layers", "Sequences", "Token", "Values", "Largest ratio to the median"),
            tuple(map(_activation, rows[:LISTED_ACTIVATIONS])),
        )
    ]


def _recorded(source: Source) -> Iterable[MassiveActivation]:
    """Return the activations of the table, or for a report without it, the largest hundred of report.json."""
    if "massive_activations" not in source.tables:
        return source.report.massive_activations
    table = source.tables["massive_activations"]
    names = list(MassiveActivation.model_fields)
    rows = zip(*(table[name].tolist() for name in names), strict=True)
    return [MassiveActivation.model_construct(**dict(zip(names, row, strict=True))) for row in rows]


def _carried(activations: Iterable[MassiveActivation]) -> Iterator[_Carried]:
    by_place: dict[tuple[int, int], list[MassiveActivation]] = {}
    for one in activations:
        by_place.setdefault((int(one.dimension), int(one.position)), []).append(one)
    for (dimension, position), ones in by_place.items():
        values = [one.value for one in ones]
        yield _Carried(
            dimension,
            position,
            sorted({int(one.layer) for one in ones}),
            len({one.sequence for one in ones}),
            sorted({one.token for one in ones if isinstance(one.token, str)}),
            min(values),
            max(values),
            max((r for one in ones if (r := one.ratio_tensor) is not None and math.isfinite(r)), default=math.nan),
        )


def _activation(one: _Carried) -> tuple[str, ...]:
    low, high = number(one.low), number(one.high)
    return (
        f"{one.dimension}",
        f"{one.position}",
        ranges(one.layers),
        f"{one.sequences:,}",
        f"“{one.tokens[0]}”" if len(one.tokens) == 1 else f"{len(one.tokens)} tokens" if one.tokens else ABSENT,
        low if low == high else f"{low} to {high}",
        number(one.ratio),
    )
