"""The outlier dimensions: every dimension that any definition flags, with what each definition says of it."""

from collections.abc import Mapping

from service.contracts.outliers import (
    Definition,
    LayerwiseDimension,
    LlmInt8Dimension,
    LlmInt8Outliers,
    LlmInt8RelativeOutliers,
    MassiveActivation,
    Outliers,
)
from service.contracts.report import Report
from workers.reporting.text import ABSENT, counted, listing, number, percent
from workers.reporting.topics.records import Fact, Grid, Topic, joined

SHOWN = 60
"""Dimensions in the table; the rest is in tables/outlier_dimensions.parquet."""
ACTIVATIONS = 20
"""Massive activations in the table; the rest is in tables/massive_activations.parquet."""
UNFLAGGED = "-"
_SCALES = {"llm_int8": "", "llm_int8_relative": " times the token's root mean square"}
"""By definition after LLM.int8(): what its magnitude is multiplied by."""

Flagged = Mapping[str, Mapping[int, LlmInt8Dimension | LayerwiseDimension]]
"""By definition, what it says of each dimension that it flags."""


def topic(report: Report) -> Topic:
    """Return the section on outlier dimensions."""
    flagged = flagged_dimensions(report)
    every = by_definition(report)
    grids = [every] if every.rows else []
    grids += [_quartiles(name, of) for name, of in _after_llm_int8(report).items() if of.dimensions]
    grids += [_activations(report.massive_activations)] if report.massive_activations else []
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

    One that flags more than half of the dimensions tells nothing of any of them.
    """
    named = report.outliers.named(report.model.hidden_size)
    return {name: {found.dimension: found for found in of.dimensions} for name, of in named.items()}


def _after_llm_int8(report: Report) -> dict[str, LlmInt8Outliers | LlmInt8RelativeOutliers]:
    """Return the definitions after LLM.int8() that discriminate, the fixed magnitude first."""
    named = report.outliers.named(report.model.hidden_size)
    return {n: of for n, of in named.items() if isinstance(of, LlmInt8Outliers | LlmInt8RelativeOutliers)}


def lead(report: Report) -> str:
    """Say which dimensions are outliers, and first which definitions cannot tell."""
    unnamed = report.outliers.unnamed(report.model.hidden_size)
    width = f"{report.model.hidden_size:,}"
    told = [
        f"{name} flags {count:,} of {width} dimensions, so it does not discriminate" for name, count in unnamed.items()
    ]
    return "; ".join([*told, _found(report, width)])


def _found(report: Report, width: str) -> str:
    """Say what the definitions that discriminate flag."""
    flagged = flagged_dimensions(report)
    for name in _after_llm_int8(report):
        if found := sorted(flagged[name]):
            verb = "meets" if len(found) == 1 else "meet"
            how = " relative to the token's size" if name == "llm_int8_relative" else ""
            return f"{len(found):,} of {width} dimensions {verb} LLM.int8()'s definition{how}: {_names(found)}."
    every = sorted(set().union(*flagged.values()))
    looked_for = all(warning.code != "unknown-architecture" for warning in report.warnings)
    whole = len(flagged) == len(report.outliers.present())
    if not every and looked_for:
        which = "any definition" if whole else "another definition"
        return f"None of the {width} hidden dimensions is an outlier by {which}."
    without = (
        "No dimension meets LLM.int8()'s definition" if looked_for else "LLM.int8()'s definition was not looked for"
    )
    if not every:
        return f"{without}; none of the {width} hidden dimensions is an outlier by another."
    verb = "meets" if len(every) == 1 else "meet"
    return f"{without}; {len(every):,} of {width} {verb} another: {_names(every)}."


def _names(dimensions: list[int]) -> str:
    return listing([str(dimension) for dimension in dimensions], 10)


def _others(flagged: Flagged) -> tuple[str, ...]:
    found = [
        f"{name} flags {len(dimensions):,}: {_names(sorted(dimensions))}"
        for name, dimensions in flagged.items()
        if dimensions and name != "llm_int8"
    ]
    none = [name for name, dimensions in flagged.items() if not dimensions]
    if none and len(none) < len(flagged):
        found.append(f"none {'meets' if len(none) == 1 else 'meet'} {joined(none)}")
    return (f"By definition: {'; '.join(found)}.",) if found else ()


def _ranked(flagged: Flagged) -> list[int]:
    """Return the dimensions that the most definitions flag first, of those the widest spread, and then the largest."""

    def rank(dimension: int) -> tuple[int, float, float, int]:
        found = [by[dimension] for by in flagged.values() if dimension in by]
        return -len(found), -max(f.layers_fraction for f in found), -max(f.abs_max for f in found), dimension

    return sorted(set().union(*flagged.values()), key=rank)


def by_definition(report: Report) -> Grid:
    """Return the table of all outlier dimensions, a column for each definition that discriminates.

    No rows where there are none.
    """
    flagged = flagged_dimensions(report)
    ranked = _ranked(flagged)
    rows = []
    for dimension in ranked[:SHOWN]:
        found = [of.get(dimension) for of in flagged.values()]
        peak = max(f.abs_max for f in found if f)
        rows.append((str(dimension), *map(_flag, found), number(peak)))
    more = f"; the first {SHOWN} of {len(ranked):,}" if len(ranked) > SHOWN else ""
    return Grid(
        "Dimensions by definition: the share of the layers that flag each, and after LLM.int8() also of the positions"
        f"{more}",
        ("Dimension", *flagged, "abs max"),
        tuple(rows),
    )


def _flag(found: LlmInt8Dimension | LayerwiseDimension | None) -> str:
    if found is None:
        return UNFLAGGED
    layers = percent(found.layers_fraction, 0)
    return f"{layers}, {percent(found.positions_fraction)}" if isinstance(found, LlmInt8Dimension) else layers


def definitions(outliers: Outliers) -> tuple[Fact, ...]:
    """Return every definition with the thresholds that the report used."""
    massive = outliers.massive_tensor.thresholds
    of_massive = (
        f"at block.output, over {massive.magnitude:g} and at least {massive.ratio:g} times the median magnitude"
    )
    return (
        *((name, _after(of)) for name, of in outliers.present().items() if name in _SCALES),
        ("massive_tensor", f"{of_massive} of the sequence"),
        ("massive_token", f"{of_massive} of the token"),
        (
            "median_quantile",
            "at block.output, a median magnitude over tokens above the layer's "
            f"{100 * outliers.median_quantile.thresholds.quantile:g}th percentile",
        ),
        (
            "variance",
            f"at block.output, a variance at least {outliers.variance.thresholds.ratio:g} times the mean of the "
            "layer's dimensions",
        ),
    )


def _after(of: Definition) -> str:
    """Say when a dimension meets a definition after LLM.int8()."""
    assert isinstance(of, LlmInt8Outliers | LlmInt8RelativeOutliers)
    limits = of.thresholds
    return (
        f"at attn.q.input or mlp.up.input, {_magnitude(of)} or more in at least {percent(limits.layers_fraction, 0)} "
        f"of the layers, and at {percent(limits.positions_fraction, 0)} of the positions or more in one layer at least"
    )


def _magnitude(of: LlmInt8Outliers | LlmInt8RelativeOutliers) -> str:
    relative = isinstance(of, LlmInt8RelativeOutliers)
    return f"{of.thresholds.magnitude:g}{_SCALES['llm_int8_relative' if relative else 'llm_int8']}"


def _quartiles(name: str, of: LlmInt8Outliers | LlmInt8RelativeOutliers) -> Grid:
    rows = tuple(
        (
            str(found.dimension),
            "one" if found.one_sided else "both",
            *(number(quartile) for quartile in found.quartiles),
            number(found.abs_max),
        )
        for found in of.dimensions[:SHOWN]
    )
    return Grid(
        f"{name}: signs and quartiles of the values of magnitude {_magnitude(of)} or more",
        ("Dimension", "Signs", "First quartile", "Median", "Third quartile", "abs max"),
        rows,
    )


def _activations(found: tuple[MassiveActivation, ...]) -> Grid:
    rows = tuple(
        (
            f"layer {one.layer}, dimension {one.dimension}",
            f"{one.sequence}",
            f"{one.position}",
            ABSENT if one.token is None else f"“{one.token}”",
            number(one.value),
            number(one.ratio_tensor),
            number(one.ratio_token),
        )
        for one in found[:ACTIVATIONS]
    )
    more = f"; the first {ACTIVATIONS} of the {counted(len(found), 'activation')} in report.json"
    return Grid(
        f"Massive activations, the largest first{more if len(found) > ACTIVATIONS else ''}",
        ("Where", "Sequence", "Position", "Token", "Value", "over the sequence's median", "over the token's median"),
        rows,
    )
