"""Estimates harm and interactions from the inner products of gradients and isolated errors.

With a_m as in `reverse_sweep`, for y drawn from the reference's predictions, to second order:

    harm of m                 1/2 E[a_m^2] / positions
    interaction of m and n    E[a_m a_n] / (2 positions)
    KL divergence of a set    1/2 E[(sum over the set of a_m)^2] / positions

where `positions` are the scored ones of a sequence. Standard errors take sequences as independent.

    N sequences, S draws for each, M modules
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Estimated(NamedTuple):
    """A mean over sequences, nats per position."""

    value: float
    standard_error: float
    """NaN with fewer than 2 sequences."""


def estimated_harm(products: F64, positions: int) -> list[Estimated]:
    """Return the estimated harm of every module.

    Args:
        products: [N, S, M].
        positions: scored positions of each sequence.
    """
    by_sequence = np.square(products).mean(axis=1) / (2 * positions)
    return [_over_sequences(values) for values in by_sequence.T]


def predicted_divergence(products: F64, positions: int, modules: npt.NDArray[np.bool_] | None = None) -> Estimated:
    """Return the KL divergence that replacing a set of modules together is predicted to cause.

    Args:
        products: [N, S, M].
        positions: scored positions of each sequence.
        modules: [M], which are replaced; None for all.
    """
    chosen = products if modules is None else products[:, :, modules]
    return _over_sequences(np.square(chosen.sum(axis=-1)).mean(axis=1) / (2 * positions))


def interactions(products: F64, positions: int) -> F64:
    """Return the interaction of every pair of modules, [M, M]; the harm of each on the diagonal."""
    rows = products.reshape(-1, products.shape[-1])
    matrix: F64 = rows.T @ rows / (2 * len(rows) * positions)
    return matrix


def _over_sequences(values: F64) -> Estimated:
    """Return the mean of [N] and its standard error."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimated(float(values.mean()), error)
