"""Chooses a measured mix: one that beats the best control on text that chose nothing.

Differences are paired position by position and clustered by sequence. Several mixes are tried, so each must be better
at 0.05 divided by their number (Bonferroni). The control with the lowest mean stands for all of them.

    n scored positions
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.contracts.report import Estimate
from service.evaluation.uncertainty import mean, upper_tail
from workers.measurement.predictions.metrics import by_sequence

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

LEVEL = 0.05
"""Probability of choosing any mix where none is better."""


class Choice(NamedTuple):
    """What was chosen, and against what."""

    chosen: str | None
    """A mix that is better than the best control; None where none is."""
    best_control: str
    mix: str | None
    """The chosen mix, else the one with the lowest mean; None where there is no mix."""
    difference: Estimate | None
    """KL divergence of `mix` minus the best control's: nats, paired."""


def choose(mixes: Mapping[str, F64], controls: Mapping[str, F64], sequence: I64) -> Choice:
    """Return the mix of the lowest mean that is better than the best control.

    Args:
        mixes: by name, KL divergence at each position, [n]; finite.
        controls: likewise, one at least.
        sequence: [n], which sequence each position is of; ascending.
    """
    best_control = min(controls, key=lambda name: float(controls[name].mean()))
    ordered = sorted(mixes, key=lambda name: float(mixes[name].mean()))
    differences = {name: difference(mixes[name], controls[best_control], sequence) for name in ordered}
    chosen = next((name for name in ordered if _is_below_zero(differences[name], len(mixes))), None)
    shown = chosen or (ordered[0] if ordered else None)
    return Choice(chosen, best_control, shown, differences[shown] if shown else None)


def difference(one: F64, other: F64, sequence: I64) -> Estimate:
    """Return the mean of one minus other, clustered by sequence; one, other, sequence: [n]."""
    return mean(by_sequence(one - other, sequence))


def _is_below_zero(of: Estimate, tried: int) -> bool:
    """Whether a difference is below 0 at the corrected level, two-sided."""
    if of.standard_error is None or of.degrees_of_freedom is None or of.value >= 0:
        return False
    if of.standard_error == 0:
        return True
    return 2 * upper_tail(-of.value / of.standard_error, of.degrees_of_freedom) * tried <= LEVEL
