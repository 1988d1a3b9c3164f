"""Predicts the KL divergence of a mix from the inner products of gradients and isolated errors.

With a_m of `harm.reverse_sweep`, quantizing a set of modules causes, to second order,

    1/2 E[(sum over the set of a_m)^2] / positions  =  sum over m, n of the set of G_mn,   G = E[a a^T] / (2 positions)

The diagonal of G is the harm of each module, the rest are interactions. With fewer draws than modules the interactions
are mostly noise, and whoever minimizes over sets picks what the noise makes small. Scaling them by a weight from 0 to 1
keeps G positive semidefinite: 0 is the sum of harms, 1 the estimate as it is.

    R draws over all sequences, M modules, U units
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.measurement.mixes.units import Unit

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prediction:
    """The quadratic form that predicts the KL divergence, nats per position, of every set of parts."""

    matrix: F64
    """G, symmetric."""

    def divergence(self, kept: Bools) -> float:
        """Return the prediction where `kept` stay in 16 bits and all others are quantized."""
        replaced = (~kept).astype(np.float64)
        return float(replaced @ self.matrix @ replaced)

    @property
    def uniform(self) -> float:
        """The prediction where all are quantized."""
        return float(self.matrix.sum())

    def scaled(self, measured: float) -> "Prediction":
        """Return the prediction times one factor, so that `uniform` is what was measured."""
        return Prediction(self.matrix * (measured / self.uniform)) if self.uniform > 0 else self

    def of_units(self, units: Sequence[Unit]) -> "Prediction":
        """Return the same for units of the parts in place of the parts, which each belong to one unit."""
        incidence = np.zeros((len(units), len(self.matrix)))
        for row, unit in zip(incidence, units, strict=True):
            row[list(unit.members)] = 1
        return Prediction(incidence @ self.matrix @ incidence.T)


def predicted(products: F64, positions: int, interaction_weight: float) -> Prediction:
    """Return the prediction for single modules.

    Args:
        products: a_m by sequence, draw and module, [N, S, M].
        positions: scored positions of a sequence.
        interaction_weight: from 0 to 1, what the interactions are multiplied by.
    """
    rows = products.reshape(-1, products.shape[-1])
    matrix = rows.T @ rows / (2 * len(rows) * positions)
    weights = np.full_like(matrix, interaction_weight)
    np.fill_diagonal(weights, 1)
    return Prediction(matrix * weights)
