"""Picks the one hidden-state vector that a report shows in full: the token that stands out most.

N sequences of S tokens; d hidden dimensions
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from workers.measurement.statistics.reduction import F32


@dataclass(frozen=True)
class Profile:
    """A hidden-state vector after the last layer."""

    sequence: int
    position: int
    vector: F32
    """[d]."""
    median_abs: float
    p99_abs: float
    max_to_median: float | None
    kurtosis: float | None


def pick_profile(stream: Iterable[torch.Tensor]) -> Profile:
    """Return the token whose largest magnitude is farthest above its median.

    stream: the sequences' hidden states, [S, d] each.

    Tokens with a zero median or with values that are not finite rank last.
    """
    best: tuple[float, int, int, F32] | None = None
    for number, sequence in enumerate(stream):
        x = sequence.float().cpu().numpy()
        magnitudes = np.abs(x)
        with np.errstate(all="ignore"):
            ratios = magnitudes.max(axis=1) / np.median(magnitudes, axis=1)
        ratios = np.where(np.isfinite(ratios), ratios, -1.0)
        position = int(ratios.argmax())
        if best is None or ratios[position] > best[0]:
            best = (float(ratios[position]), number, position, x[position].copy())
    if best is None:
        raise ValueError("stream: no sequences; at least one is needed")
    ratio, number, position, vector = best
    values = vector[np.isfinite(vector)].astype(np.float64)
    deviations = values - values.mean() if values.size else values
    variance = float((deviations**2).mean()) if values.size else 0.0
    median, p99 = np.quantile(np.abs(values), (0.5, 0.99)).tolist() if values.size else (0.0, 0.0)
    return Profile(
        sequence=number,
        position=position,
        vector=vector,
        median_abs=median,
        p99_abs=p99,
        max_to_median=ratio if ratio >= 0 else None,
        kurtosis=float((deviations**4).mean()) / variance**2 if variance else None,
    )
