"""Picks the hidden-state vector that a report shows in full: that of the token with the largest max-to-median ratio.

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
        ratio, position = _standing_out(sequence)
        if best is None or ratio > best[0]:
            best = (ratio, number, position, sequence[position].float().cpu().numpy().copy())
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


def _standing_out(x: torch.Tensor) -> tuple[float, int]:
    """Return the largest max_to_median of the tokens of x [S, d], and the token's position; -1 where none has one."""
    magnitudes, d = x.float().abs(), x.shape[-1]
    if x.device.type == "cpu":  # numpy finds a median without sorting
        medians = torch.from_numpy(np.median(magnitudes.numpy(), axis=1))
    else:
        ordered = magnitudes.sort(dim=1).values
        medians = (ordered[:, (d - 1) // 2] + ordered[:, d // 2]) / 2
    ratios = magnitudes.amax(dim=1) / medians
    best = torch.where(ratios.isfinite(), ratios, -1.0).max(dim=0)
    return float(best.values), int(best.indices)
