"""How far the schemes' predictions lie apart in two reports, with standard errors.

Two reports on the same tokens share the luck of the text: a hard passage is hard in both. So the standard error of
a difference comes from the differences position by position wherever both reports score the same tokens, and is
much smaller than two independent errors combined. The quotient of two perplexities is linearised for that:
exp(mean d) moves by exp(mean d) times the mean's own change (the delta method, as in the report itself).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from service.contracts.comparison.records import Change
from service.contracts.comparison.sides import Side
from service.contracts.report import Estimate, SchemeFacts

INTERVAL = 1.96
"""Standard errors to either side of a value in a 95 % interval."""
_COLUMNS = ("scheme", "sequence", "position", "token_id", "nll_reference", "nll_scheme", "kl_divergence", "same_top")


class Pair(NamedTuple):
    """One position under one scheme in both reports; each pair is the baseline's figure and the other's."""

    kl: tuple[float, float]
    log_ratio: tuple[float, float]
    """Negative log likelihood under the scheme less that under the reference."""
    same_top: tuple[float, float]
    nll: tuple[float, float]
    """Under the reference."""


def pairs(baseline: Side, other: Side, scheme: str) -> list[Pair]:
    """Return every position that both reports score; none where they do not run the same tokens."""
    if baseline.report.calibration.fingerprint != other.report.calibration.fingerprint:
        return []
    before, after = _positions(baseline, scheme), _positions(other, scheme)
    return [Pair(*zip(before[place], after[place], strict=True)) for place in before if place in after]


def kl_change(before: SchemeFacts, after: SchemeFacts, paired: Sequence[Pair]) -> Change:
    """Return the change of the mean KL divergence."""
    sides = [
        Estimate(value=facts.kl_divergence.mean, standard_error=facts.kl_divergence.standard_error)
        if facts.kl_divergence
        else None
        for facts in (before, after)
    ]
    return change(sides[0], sides[1], [pair.kl[1] - pair.kl[0] for pair in paired])


def same_top_change(before: SchemeFacts, after: SchemeFacts, paired: Sequence[Pair]) -> Change:
    """Return the change of the share of positions with the same most likely token."""
    differences = [pair.same_top[1] - pair.same_top[0] for pair in paired]
    return change(before.same_top_token, after.same_top_token, differences)


def ratio_change(before: SchemeFacts, after: SchemeFacts, paired: Sequence[Pair]) -> Change:
    """Return the change of the perplexity's ratio to the reference's."""
    return _change_of_exp(before.perplexity_ratio, after.perplexity_ratio, [pair.log_ratio for pair in paired])


def reference_change(before: Estimate | None, after: Estimate | None, paired: Sequence[Pair]) -> Change:
    """Return the change of the reference's own perplexity."""
    sides = [side and Estimate(value=side.value, standard_error=side.standard_error) for side in (before, after)]
    return _change_of_exp(sides[0], sides[1], [pair.nll for pair in paired])


def change(before: Estimate | None, after: Estimate | None, differences: Sequence[float]) -> Change:
    """Return the change of a mean; `differences`, one for each position, make it a paired one."""
    if before is None or after is None:
        return Change(baseline=before, other=after, difference=None, paired=False, positions=None, clear=None)
    paired = len(differences) > 1
    difference = _mean(differences) if paired else _independent(before, after)
    return Change(
        baseline=before,
        other=after,
        difference=difference,
        paired=paired,
        positions=len(differences) if paired else None,
        clear=_is_clear(difference),
    )


def _change_of_exp(before: Estimate | None, after: Estimate | None, logs: Sequence[tuple[float, float]]) -> Change:
    """Return the change of exp(mean log)."""
    if before is None or after is None or len(logs) < 2:
        return change(before, after, ())
    values = [_exp(_mean([pair[side] for pair in logs]).value) for side in (0, 1)]
    moved = [values[1] * pair[1] - values[0] * pair[0] for pair in logs]
    difference = Estimate(value=values[1] - values[0], standard_error=_mean(moved).standard_error)
    return Change(
        baseline=before,
        other=after,
        difference=difference,
        paired=True,
        positions=len(logs),
        clear=_is_clear(difference),
    )


def _positions(side: Side, scheme: str) -> dict[tuple[int, int, int], tuple[float, float, float, float]]:
    """Return the figures of every position with finite predictions, by sequence, position and token."""
    rows = side.read("tokens", _COLUMNS)
    found: dict[tuple[int, int, int], tuple[float, float, float, float]] = {}
    if rows is None:
        return found
    for name, *place, reference, nll, kl, same in zip(*(rows[column] for column in _COLUMNS), strict=True):
        if name == scheme and None not in (reference, nll, kl, same) and math.isfinite(reference + nll + kl):
            found[place[0], place[1], place[2]] = (kl, nll - reference, float(same), reference)
    return found


def _independent(before: Estimate, after: Estimate) -> Estimate:
    errors = before.standard_error, after.standard_error
    error = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])
    return Estimate(value=after.value - before.value, standard_error=error)


def _mean(values: Sequence[float]) -> Estimate:
    """Return the mean of two values or more, with its standard error."""
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(value=mean, standard_error=math.sqrt(variance / count))


def _is_clear(difference: Estimate) -> bool | None:
    error = difference.standard_error
    return None if error is None else abs(difference.value) > INTERVAL * error


def _exp(x: float) -> float:
    """Exp that ends in the largest float rather than in an error."""
    return math.exp(min(x, 709.0))
