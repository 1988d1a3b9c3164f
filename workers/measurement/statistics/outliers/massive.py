"""Finds massive activations (Sun et al., arXiv 2402.17762): the few values thousands of times the typical one.

A value of the residual stream is massive when it is larger than a magnitude and at least a multiple of the median
magnitude. The median is taken two ways, and both are kept: over the sequence's whole hidden state, and over the
token's own vector.

    S tokens of one sequence, d hidden dimensions
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import rows
from workers.measurement.statistics.order import median_magnitude
from workers.measurement.statistics.reduction import F32, F64, I64
from workers.measurement.statistics.transfers import HostCopies

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


@dataclass(frozen=True)
class Limits:
    """When a value is massive."""

    magnitude: float
    """abs(x) must be larger."""
    ratio: float
    """abs(x) must be at least this multiple of the median magnitude."""


def massive_activations(
    x: torch.Tensor,
    token_abs_max: F32,
    limits: Limits,
    copies: HostCopies,
    use: Callable[[list[MassiveActivation]], None],
) -> None:
    """Call `use` with the massive activations of one sequence, by position and dimension, once they are known.

    Args:
        x: [S, d] at block.output. Values that are not finite are left out, of the medians too.
        token_abs_max: [S], each token's largest magnitude; tokens that do not exceed the limit are not looked at.
        limits: what makes a value massive.
        copies: brings what is massive from the device to the host.
        use: takes the result; at once, where x is in host memory.
    """
    positions = np.flatnonzero(token_abs_max > limits.magnitude)
    if not positions.size:
        use([])
        return
    peaks = token_abs_max[positions].astype(np.float64)

    def find_candidates(median: float) -> None:
        vectors = torch.from_numpy(rows(x, positions)) if copies.on_host else _rows_of(x, positions).float()
        bounds = _bounds(peaks, limits.ratio)
        below, finite = _counts_on_host(vectors, bounds) if copies.on_host else _counts(vectors, bounds)

        def choose(below: I64, finite: I64) -> None:
            # No value can be that multiple of its token's median where more than half of the token is over that part of
            # the token's largest; to count costs less than to sort.
            chosen = np.flatnonzero((peaks >= limits.ratio * median) | (2 * below >= finite))
            copies.add(
                (_rows_of(vectors, chosen),), lambda tokens: use(_all(positions[chosen], tokens, median, limits))
            )

        copies.add((below, finite), choose)

    median_magnitude(x, copies, find_candidates)


def _rows_of(x: torch.Tensor, positions: I64) -> torch.Tensor:
    return x[torch.from_numpy(positions).to(x.device, non_blocking=True)]


def _bounds(peaks: F64, ratio: float) -> F32:
    """Return the largest medians of which peaks [p] can be the multiple, [p]."""
    with np.errstate(over="ignore"):
        return (peaks / ratio * (1 + _ROUNDING)).astype(np.float32)


def _counts(vectors: torch.Tensor, bounds: F32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many magnitudes of vectors [p, d] are at most a bound, [p], and how many are finite."""
    limit = torch.from_numpy(bounds).to(vectors.device, non_blocking=True)[:, None]
    return (vectors.abs() <= limit).sum(dim=1), vectors.isfinite().sum(dim=1)


def _counts_on_host(vectors: torch.Tensor, bounds: F32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `_counts` does, by numpy, which leaves torch's threads alone."""
    magnitudes = np.abs(vectors.numpy())
    below, finite = np.count_nonzero(magnitudes <= bounds[:, None], axis=1), np.isfinite(magnitudes).sum(axis=1)
    return torch.from_numpy(below), torch.from_numpy(finite)


def _all(positions: I64, vectors: F32, median_tensor: float, limits: Limits) -> list[MassiveActivation]:
    """Return the massive values of tokens [p, d] at some positions [p]."""
    activations = []
    for position, vector in zip(positions.tolist(), vectors, strict=True):
        activations += _of_token(position, vector, median_tensor, limits.magnitude, limits.ratio)
    return activations


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
