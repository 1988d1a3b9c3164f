"""Measures the agreement of estimated with measured harms: rank correlation and ratios.

k parts that have both figures
"""

import numpy as np
import numpy.typing as npt

from workers.measurement.statistics.separation import average_ranks

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FEWEST_RANKED = 3
"""Parts that a rank correlation needs."""


def spearman(measured: F64, estimated: F64) -> float | None:
    """Return the rank correlation of two lists [k]; None with fewer than 3, or where one of them is constant."""
    if len(measured) < FEWEST_RANKED or np.ptp(measured) == 0 or np.ptp(estimated) == 0:
        return None
    return float(np.corrcoef(average_ranks(measured), average_ranks(estimated))[0, 1])


def ratio(above: float, below: float) -> float | None:
    """Return above / below; None where that is not finite."""
    value = above / below if below else float("nan")
    return value if np.isfinite(value) else None


def less_floor(harm: F64, floor: F64) -> F64:
    """Return the harms less the noise floor, at least 0."""
    return np.maximum(harm - floor, 0)


def measured_over_estimated(net: F64, estimated: F64, at_random: Bools) -> float | None:
    """Return the sum of measured harms over that of estimated ones, where both are known; None where nothing is.

    Args:
        net: measured less the noise floor, [k]; NaN where not measured.
        estimated: [k]; NaN where not estimated.
        at_random: [k], which parts were drawn at random; these alone count where there are any with both.
    """
    both = np.isfinite(net) & np.isfinite(estimated)
    chosen = both & at_random if (both & at_random).any() else both
    return ratio(float(net[chosen].sum()), float(estimated[chosen].sum())) if chosen.any() else None
