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


def massive_activations(
    x: torch.Tensor, token_abs_max: npt.NDArray[np.float32], magnitude: float, ratio: float
) -> list[MassiveActivation]:
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
    median_tensor = _median_magnitude(x.float().cpu().numpy())
    found = []
    for position in positions.tolist():
        vector = x[position].float().cpu().numpy()
        median_token = _median_magnitude(vector)
        magnitudes = np.where(np.isfinite(vector), np.abs(vector), 0).astype(np.float64)
        by_tensor = (magnitudes > magnitude) & (magnitudes >= ratio * median_tensor)
        by_token = (magnitudes > magnitude) & (magnitudes >= ratio * median_token)
        found += [
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
    return found


def _median_magnitude(x: npt.NDArray[np.float32]) -> float:
    finite = x[np.isfinite(x)]
    return float(np.median(np.abs(finite)))
