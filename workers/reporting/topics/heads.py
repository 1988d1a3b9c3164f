"""The attention heads: which of them are outliers, and which the schemes damage."""

import numpy as np

from service.contracts.sections.outliers import HeadDamage, HeadFacts
from workers.reporting.loading import Source
from workers.reporting.text import ABSENT, counted, number
from workers.reporting.topics.records import Grid, Topic

LISTED_HEADS = 8
"""Heads in the table; tables/heads.parquet has all."""
_TITLE = "Attention heads"


def topic(source: Source) -> Topic:
    """Return the section on heads."""
    heads = source.report.heads
    limits = heads.thresholds
    if not heads.heads:
        return Topic(
            "heads",
            _TITLE,
            "No attention heads were measured: Headroom does not know where this architecture has its heads.",
        )
    lead = (
        f"{_measured(heads.measured_outliers, heads.heads)}: a peak of at least {limits.relative_peak:g} times the "
        "layer's root mean square."
    )
    notes = tuple(_damage(scheme, heads, damage) for scheme, damage in heads.schemes.items())
    return Topic("heads", _TITLE, lead, notes, grids=(_highest(source),) if "heads" in source.tables else ())


def _measured(outliers: int, heads: int) -> str:
    if heads == 1:
        return f"The only attention head is {'an' if outliers else 'not an'} outlier"
    verb = "is an outlier" if outliers <= 1 else "are outliers"
    return f"{f'{outliers:,}' if outliers else 'None'} of the {heads:,} attention heads {verb}"


def _damage(scheme: str, heads: HeadFacts, damage: HeadDamage) -> str:
    """Say how many heads a scheme damages, and whether outlier heads have a larger share of damage than others."""
    damage_text = (
        f"{scheme} damages {damage.damaged:,} of {counted(heads.heads, 'head')} "
        f"(SQNR below {heads.thresholds.damaged_sqnr_db:g} dB)"
    )
    outliers, others = heads.measured_outliers, heads.heads - heads.measured_outliers
    if not (damage.damaged and outliers and others):
        return f"{damage_text}."
    hit, other_hit = damage.damaged_outliers, damage.damaged - damage.damaged_outliers
    separates = hit * others > other_hit * outliers
    return (
        f"{damage_text}: {hit:,} of {counted(outliers, 'outlier head')} and {other_hit:,} of "
        f"{counted(others, 'other')}."
        f"{'' if separates else ' The limit does not separate them.'}"
    )


def _highest(source: Source) -> Grid:
    """Return the heads with the highest measured peaks."""
    heads = source.tables["heads"]
    layers = source.layers_of("heads", heads)
    peaks = np.nan_to_num(np.asarray(heads["relative_peak"], dtype=np.float64), nan=-np.inf)
    order = np.lexsort((heads["head"], layers, -peaks))[:LISTED_HEADS]
    rows = tuple(
        (
            f"layer {layers[row]}, head {heads['head'][row]}",
            number(float(heads["relative_peak"][row])),
            _yes(heads["measured_outlier"][row]),
            *(number(float(heads[f"sqnr_db_{scheme}"][row])) for scheme in source.report.schemes),
            number(float(heads["abs_max"][row])),
            number(float(heads["crest_db"][row])),
        )
        for row in order
    )
    return Grid(
        f"The heads with the highest peaks{f', {len(order)} of {peaks.size:,}' if peaks.size > len(order) else ''}",
        ("Head", "Relative peak", "Outlier", *(f"SQNR {s}, dB" for s in source.report.schemes), "abs max", "Crest, dB"),
        rows,
    )


def _yes(flag: object) -> str:
    value = float(flag)  # type: ignore[arg-type]  # a boolean, or NaN where there is none
    return ABSENT if np.isnan(value) else "outlier" if value else "no"
