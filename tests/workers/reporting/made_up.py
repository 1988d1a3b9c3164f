"""Made-up rows of the tables about heads and labeled prompts, and what report.json says of the latter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Rows = list[dict[str, Any]]

NOISE = {"int8": 0.05, "nf4": 0.6}
"""Standard deviation that a scheme adds to a labelled value."""
SQNR = {"int8": 31.0, "nf4": 17.0}
"""Mean of a head's ratio under a scheme, dB."""


def head_rows(
    random: np.random.Generator, layers: int, heads: int, schemes: Sequence[str], outliers: bool = True
) -> Rows:
    """Return rows of table `heads`; with `outliers` about one head in six is one."""
    rows = []
    for layer in range(layers):
        for head in range(heads):
            hidden = float(random.normal())
            relative = float(8 * np.exp(0.9 * hidden)) if outliers else 8.0
            ratios = {f"sqnr_db_{s}": float(random.normal(SQNR.get(s, 24.0) - 2 * hidden, 6)) for s in schemes}
            rows.append(
                {
                    "layer": layer, "head": head, "abs_max": relative, "rms": 1.0, "crest_db": 20 * np.log10(relative),
                    "relative_peak": relative, "predicted_peak": None, "measured_outlier": relative >= 20,
                    "predicted_outlier": None, **ratios,
                }
            )  # fmt: skip
    return rows


def labelled_rows(random: np.random.Generator, records: int, dimensions: Sequence[int], schemes: Sequence[str]) -> Rows:
    """Return rows of table `labelled`: two in three are true, and later dimensions separate them less."""
    rows = []
    for record in range(records):
        row: dict[str, Any] = {"record": record, "label": record % 3 != 0, "score": None}
        for place, dimension in enumerate(dimensions):
            side = (1 if row["label"] else -1) * (-1) ** place
            value = float(np.float32(random.normal(side * (1.5 - 0.3 * place) - 8, 1)))
            row[f"reference_{dimension}"] = value
            for scheme in schemes:
                row[f"{scheme}_{dimension}"] = float(np.float32(value + random.normal(0, NOISE.get(scheme, 0.3))))
        rows.append(row)
    return rows


def labelled_section(rows: Rows, dimensions: Sequence[int], schemes: Sequence[str]) -> dict[str, Any] | None:
    """Return what report.json says of these rows; None where there are none."""
    if not rows:
        return None
    return {
        "source": "statements.jsonl", "fingerprint": "sha256:" + "c" * 64, "records": len(rows),
        "true_records": sum(row["label"] for row in rows), "given": "label", "threshold": None, "depth": None,
        "adds_bos": True, "ranked_by": "auroc",
        "dimensions": [
            {
                "dimension": dimension,
                "reference": separation(rows, f"reference_{dimension}"),
                "schemes": {scheme: separation(rows, f"{scheme}_{dimension}") for scheme in schemes},
            }
            for dimension in dimensions
        ],
    }  # fmt: skip


def separation(rows: Rows, column: str) -> dict[str, float]:
    """Return the figures of one column, as SciPy has them."""
    values = np.array([row[column] for row in rows])
    labels = np.array([row["label"] for row in rows])
    wins = stats.mannwhitneyu(values[labels], values[~labels]).statistic
    return {
        "spearman_rho": float(stats.spearmanr(values, labels).statistic),
        "auroc": float(wins / (labels.sum() * (~labels).sum())),
    }


def error(value: float, standard_error: float) -> dict[str, Any]:
    """Return how sure a figure is, over 16 sequences: two standard errors to either side will do."""
    return {
        "standard_error": standard_error,
        "interval": [value - 2 * standard_error, value + 2 * standard_error],
        "degrees_of_freedom": 15,
        "units": "sequences",
        "unit_count": 16,
    }
