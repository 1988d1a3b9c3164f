"""The attention heads: which of them peak, which of them the weights alone predict, and how many of both."""

import numpy as np

from workers.reporting.loading import Source
from workers.reporting.text import ABSENT, counted, number
from workers.reporting.topics.records import Grid, Topic

SHOWN = 30
"""Heads in the table; the rest is in tables/heads.parquet."""
_TITLE = "Attention heads"


def topic(source: Source) -> Topic:
    """Return the section on heads."""
    heads = source.report.heads
    limits = heads.thresholds
    if not heads.heads:
        return Topic("heads", _TITLE, "No attention heads were measured: the architecture has none that are known.")
    lead = (
        f"{_measured(heads.measured_outliers, heads.heads)}, with a peak of "
        f"{limits.relative_peak:g} times the layer's root mean square or more."
    )
    if heads.predicted_outliers is None:
        note = "The weights allow no prediction: the architecture gives no norm before the projections."
    else:
        predicted = heads.predicted_outliers
        both = f", {heads.both or 0:,} of them measured" if predicted else ""
        note = (
            f"The weights alone predict {counted(predicted, 'outlier head') if predicted else 'no outlier head'} (a "
            f"value channel of {limits.predicted_peak:g} times the layer's typical norm or more){both}."
        )
    return Topic("heads", _TITLE, lead, (note,), grids=(_highest(source),) if "heads" in source.tables else ())


def _measured(outliers: int, heads: int) -> str:
    if heads == 1:
        return f"The one attention head is {'a' if outliers else 'no'} measured outlier"
    verb = "is a measured outlier" if outliers <= 1 else "are measured outliers"
    return f"{f'{outliers:,}' if outliers else 'None'} of the {heads:,} attention heads {verb}"


def _highest(source: Source) -> Grid:
    """Return the heads with the highest measured peaks."""
    heads = source.tables["heads"]
    layers = source.layers_of("heads", heads)
    peaks = np.nan_to_num(np.asarray(heads["relative_peak"], dtype=np.float64), nan=-np.inf)
    order = np.lexsort((heads["head"], layers, -peaks))[:SHOWN]
    rows = tuple(
        (
            f"layer {layers[row]}, head {heads['head'][row]}",
            number(float(heads["relative_peak"][row])),
            _yes(heads["measured_outlier"][row]),
            number(float(heads["predicted_peak"][row])),
            _yes(heads["predicted_outlier"][row]),
            number(float(heads["abs_max"][row])),
            number(float(heads["crest_db"][row])),
        )
        for row in order
    )
    return Grid(
        f"The heads with the highest peaks{f', {len(order)} of {peaks.size:,}' if peaks.size > len(order) else ''}",
        ("Head", "Relative peak", "Measured", "Predicted peak", "Predicted", "abs max", "Crest, dB"),
        rows,
        folded=True,
    )


def _yes(flag: object) -> str:
    value = float(flag)  # type: ignore[arg-type]  # a boolean, or NaN where there is none
    return ABSENT if np.isnan(value) else "outlier" if value else "no"
