"""Massive activations (Sun et al., arXiv 2402.17762): the few values that are thousands of times the typical one.

A value of the residual stream is massive when it is larger than a magnitude and at least so many times the median
magnitude. The median is taken two ways, and both are kept: over the sequence's whole hidden state, and over the
token's own vector.

    S tokens of one sequence, d hidden dimensions
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.statistics.order import median_magnitude
from workers.measurement.statistics.patterns import rows
from workers.measurement.statistics.reduction import F32, F64, I64

_ROUNDING = 1e-6
"""By less than this are quotients of float32 too small."""


@dataclass(frozen=True)
class MassiveActivation:
    """One value that is massive by either median."""

    position: int
    dimension: int
    value: float
    ratio_tensor: float | None
    """abs(value) over the median of the whole hidden state; None where that is 0."""
    ratio_token: float | None
    """abs(value) over the median of the token's vector; None where that is 0."""
    massive_tensor: bool
    massive_token: bool


def massive_activations(x: torch.Tensor, token_abs_max: F32, magnitude: float, ratio: float) -> list[MassiveActivation]:
    """Return the massive activations of one sequence, by position and dimension.

    Args:
        x: [S, d] at block.output. Values that are not finite are left out, of the medians too.
        token_abs_max: [S], each token's largest magnitude; tokens that do not exceed `magnitude` are not looked at.
        magnitude: abs(x) must be larger.
        ratio: abs(x) must be at least so many times the median magnitude.
    """
    positions = np.flatnonzero(token_abs_max > magnitude)
    if not positions.size:
        return []
    peaks = token_abs_max[positions].astype(np.float64)
    median_tensor = median_magnitude(x)
    vectors = _tokens(x, positions)
    found = []
    for row in np.flatnonzero((peaks >= ratio * median_tensor) | _may_stand_out(vectors, peaks, ratio)):
        found += _of_token(int(positions[row]), vectors[row], median_tensor, magnitude, ratio)
    return found


def _tokens(x: torch.Tensor, positions: I64) -> F32:
    """Return some tokens of x [S, d], [p, d]."""
    if x.device.type == "cpu":
        return rows(x, positions)
    vectors: F32 = x[torch.from_numpy(positions).to(x.device)].float().cpu().numpy()
    return vectors


def _may_stand_out(vectors: F32, peaks: F64, ratio: float) -> npt.NDArray[np.bool_]:
    """Whether a vector's largest magnitude can be so many times its median: [p], of vectors [p, d] and peaks [p].

    It cannot where more than half of the vector is over that part of the largest; to count costs less than to sort.
    """
    with np.errstate(over="ignore"):
        bound = (peaks / ratio * (1 + _ROUNDING)).astype(np.float32)[:, None]
    below: npt.NDArray[np.intp] = np.count_nonzero(np.abs(vectors) <= bound, axis=1)
    finite: npt.NDArray[np.intp] = np.count_nonzero(np.isfinite(vectors), axis=1)
    return 2 * below >= finite


def _of_token(
    position: int, vector: F32, median_tensor: float, magnitude: float, ratio: float
) -> list[MassiveActivation]:
    finite = np.isfinite(vector)
    magnitudes = np.where(finite, np.abs(vector), 0).astype(np.float64)
    median_token = float(np.median(magnitudes[finite]))
    large = magnitudes > magnitude
    by_tensor = large & (magnitudes >= ratio * median_tensor)
    by_token = large & (magnitudes >= ratio * median_token)
    return [
        MassiveActivation(
            position=position,
            dimension=j,
            value=float(vector[j]),
            ratio_tensor=float(magnitudes[j] / median_tensor) if median_tensor else None,
            ratio_token=float(magnitudes[j] / median_token) if median_token else None,
            massive_tensor=bool(by_tensor[j]),
            massive_token=bool(by_token[j]),
        )
        for j in np.flatnonzero(by_tensor | by_token).tolist()
    ]
