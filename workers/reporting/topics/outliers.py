"""The outlier dimensions: every dimension that any definition flags, with what each definition says of it."""

from collections.abc import Mapping

from service.contracts.outliers import LayerwiseDimension, LlmInt8Dimension, MassiveActivation, Outliers
from service.contracts.report import Report
from workers.reporting.text import ABSENT, counted, listing, number, percent
from workers.reporting.topics.records import Fact, Grid, Topic, joined

DEFINITIONS = ("llm_int8", "massive_tensor", "massive_token", "median_quantile", "variance")
SHOWN = 60
"""Dimensions in the table; the rest is in tables/outlier_dimensions.parquet."""
ACTIVATIONS = 20
"""Massive activations in the table; the rest is in tables/massive_activations.parquet."""
UNFLAGGED = "-"

Flagged = Mapping[str, Mapping[int, LlmInt8Dimension | LayerwiseDimension]]
"""By definition, what it says of each dimension that it flags."""


def topic(report: Report) -> Topic:
    """Return the section on outlier dimensions."""
    flagged = flagged_dimensions(report.outliers)
    every = by_definition(report.outliers)
    grids = [every] if every.rows else []
    grids += [_quartiles(report.outliers)] if flagged["llm_int8"] else []
    grids += [_activations(report.massive_activations)] if report.massive_activations else []
    return Topic(
        name="outliers",
        title="Outlier dimensions",
        lead=lead(report),
        notes=_others(flagged),
        terms=definitions(report.outliers),
        grids=tuple(grids),
    )


def flagged_dimensions(outliers: Outliers) -> Flagged:
    """Return what every definition says of the dimensions that it flags."""
    return {name: {found.dimension: found for found in getattr(outliers, name).dimensions} for name in DEFINITIONS}


def lead(report: Report) -> str:
    """Say in one sentence which dimensions are outliers."""
    width = f"{report.model.hidden_size:,}"
    flagged = flagged_dimensions(report.outliers)
    of_llm_int8 = sorted(flagged["llm_int8"])
    if of_llm_int8:
        verb = "meets" if len(of_llm_int8) == 1 else "meet"
        return f"{len(of_llm_int8):,} of {width} dimensions {verb} LLM.int8()'s definition: {_names(of_llm_int8)}."
    every = sorted(set().union(*flagged.values()))
    looked_for = all(warning.code != "unknown-architecture" for warning in report.warnings)
    if not every and looked_for:
        return f"None of the {width} hidden dimensions is an outlier by any of the five definitions."
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
    if none and len(none) < len(DEFINITIONS):
        found.append(f"none {'meets' if len(none) == 1 else 'meet'} {joined(none)}")
    return (f"By definition: {'; '.join(found)}.",) if found else ()


def _ranked(flagged: Flagged) -> list[int]:
    """Return the dimensions that the most definitions flag first, of those the widest spread, and then the largest."""

    def rank(dimension: int) -> tuple[int, float, float, int]:
        found = [by[dimension] for by in flagged.values() if dimension in by]
        return -len(found), -max(f.layers_fraction for f in found), -max(f.abs_max for f in found), dimension

    return sorted(set().union(*flagged.values()), key=rank)


def by_definition(outliers: Outliers) -> Grid:
    """Return the table of all outlier dimensions, a column for each definition; no rows where there are none."""
    flagged = flagged_dimensions(outliers)
    ranked = _ranked(flagged)
    rows = []
    for dimension in ranked[:SHOWN]:
        found = [flagged[name].get(dimension) for name in DEFINITIONS]
        peak = max(f.abs_max for f in found if f)
        rows.append((str(dimension), *map(_flag, found), number(peak)))
    more = f"; the first {SHOWN} of {len(ranked):,}" if len(ranked) > SHOWN else ""
    return Grid(
        "Dimensions by definition: the share of the layers that flag each, and for llm_int8 also of the positions"
        f"{more}",
        ("Dimension", *DEFINITIONS, "abs max"),
        tuple(rows),
    )


def _flag(found: LlmInt8Dimension | LayerwiseDimension | None) -> str:
    if found is None:
        return UNFLAGGED
    layers = percent(found.layers_fraction, 0)
    return f"{layers}, {percent(found.positions_fraction)}" if isinstance(found, LlmInt8Dimension) else layers


def definitions(outliers: Outliers) -> tuple[Fact, ...]:
    """Return every definition with the thresholds that the report used."""
    int8, massive = outliers.llm_int8.thresholds, outliers.massive_tensor.thresholds
    of_massive = (
        f"at block.output, over {massive.magnitude:g} and at least {massive.ratio:g} times the median magnitude"
    )
    return (
        (
            "llm_int8",
            f"at attn.q.input or mlp.up.input, {int8.magnitude:g} or more in at least "
            f"{percent(int8.layers_fraction, 0)} of the layers, and at {percent(int8.positions_fraction, 0)} of the "
            "positions or more in one layer at least",
        ),
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


def _quartiles(outliers: Outliers) -> Grid:
    rows = tuple(
        (
            str(found.dimension),
            "one" if found.one_sided else "both",
            *(number(quartile) for quartile in found.quartiles),
            number(found.abs_max),
        )
        for found in outliers.llm_int8.dimensions[:SHOWN]
    )
    magnitude = outliers.llm_int8.thresholds.magnitude
    return Grid(
        f"llm_int8: signs and quartiles of the values of magnitude {magnitude:g} or more",
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
