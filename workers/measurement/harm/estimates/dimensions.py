"""Divides the estimated harm of a scheme among the dimensions of the residual stream.

For modules that read it, a_m is a sum over input channels j of a_mj. With the sums of `products` by sequence n,

    share of j  =  sum over n of C_nj / sum over n of D_n

where C_nj is the sum over these modules of the mean over draws of a_mj a_m, and D_n that of a_m^2 over all modules.
Shares of dimensions and of the other modules add up to 1; a share may be negative. Standard errors are those of a
ratio of two sums over sequences, linearized.

    N sequences, d dimensions
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.evaluation.uncertainty import upper_tail

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
LEVEL = 0.05
"""Of Holm's method over all dimensions."""


@dataclass(frozen=True)
class Shares:
    """Shares, with their standard errors."""

    values: F64
    errors: F64
    """Standard errors, clustered by sequence; NaN with fewer than 2."""


@dataclass(frozen=True)
class Division:
    """The estimated harm of a scheme by sequence, divided among input channels."""

    channels: F64
    """C, [N, d]."""
    others: F64
    """[N]: the part of D that is of modules which do not read the residual stream."""

    def dimensions(self) -> Shares:
        """Return the share of every dimension, [d]."""
        return self._shares(self.channels)

    def other_inputs(self) -> Shares:
        """Return the share of the modules that do not read the residual stream, [1]."""
        return self._shares(self.others[:, None])

    def together(self, dimensions: Collection[int]) -> Shares:
        """Return the share of some dimensions together, [1]."""
        return self._shares(self.channels[:, sorted(dimensions)].sum(axis=1, keepdims=True))

    def _shares(self, parts: F64) -> Shares:
        """Return the shares of parts [N, k]; NaN where nothing does any harm."""
        wholes = self.channels.sum(axis=1) + self.others
        count, total = len(wholes), wholes.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            values = parts.sum(axis=0) / total
            squares = np.square(parts - values * wholes[:, None]).sum(axis=0)
            errors = np.sqrt(squares * count / (count - 1)) / total if count > 1 else np.full(len(values), np.nan)
        return Shares(values, errors)


def significant(shares: Shares, sequences: int) -> Bools:
    """Return which shares differ from 0 by Holm's method at `LEVEL` (two-sided t tests), [d]."""
    flags = np.zeros(len(shares.values), dtype=bool)
    if sequences < 2:
        return flags
    with np.errstate(invalid="ignore", divide="ignore"):
        statistics = np.abs(shares.values) / shares.errors
    p_values = np.array([2 * upper_tail(t, sequences - 1) if t == t else 1.0 for t in statistics.tolist()])
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > LEVEL / (len(p_values) - rank):
            break
        flags[place] = True
    return flags
