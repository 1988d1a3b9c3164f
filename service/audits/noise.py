"""Estimates how much limited figures vary with the calibration text, and the false alarms to expect from that.

From reports of one model on several seeds, each limit's chance to be broken by text alone is worked out, as if the
model of a run were as good as the baseline's and each had been measured on a text of its own. Numbers are taken as
normal with unknown mean and variance, so that a new one follows Student's t; verdicts and sets of dimensions are
counted over the reports. Audits measure both models on the same text, and find no difference at all where weights,
text and software are the same: the true rates are lower.
"""

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from statistics import fmean, stdev

from service.audits.evidence import position_mean
from service.audits.figures import read
from service.audits.judgment import ALPHA
from service.audits.levels import level_of
from service.audits.limits import LEVELS, Limit, holds
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import Calibration, LimitNoise
from service.errors import InvalidRequest
from service.evaluation.numbers import number
from service.evaluation.uncertainty import upper_tail
from service.evaluation.verdict import Level

FEWEST_REPORTS = 3
"""Reports from which a spread can be estimated."""
TIGHT = 0.05
"""A limit that one new text breaks more often than this lies inside the figure's noise."""
_WIDEST = 1e6
"""Factors of the baseline that are looked through for a suggestion."""
_STEPS = 200
"""Halvings of that range, which end in neighboring floats."""


def calibrate(
    limits: Sequence[Limit], reports: Sequence[ComparableReport], runs_per_year: float, reruns: int = 1
) -> Calibration:
    """Return the noise of every limit.

    Args:
        limits: As `limits.parse_all` gives them.
        reports: Of one model on different calibration seeds, the baseline first; 3 or more.
        runs_per_year: Of the schedule.
        reruns: Seeds on which a broken figure is measured again.

    Raises InvalidRequest for fewer than 3 reports, and for reports of other weights or of one text.
    """
    if len(reports) < FEWEST_REPORTS:
        allowed = f"{FEWEST_REPORTS - 1} or more further seeds, for a spread of {FEWEST_REPORTS} reports"
        raise InvalidRequest("calibrate", max(0, len(reports) - 1), allowed)
    names = [side.name for side in reports]
    if len({side.report.model.fingerprint for side in reports}) > 1:
        raise InvalidRequest(
            "calibrate", names, "reports of the same weights", problem="are reports of different weights"
        )
    if len({side.report.calibration.fingerprint for side in reports}) < len(reports):
        raise InvalidRequest("calibrate", names, "reports of different texts", problem="holds one text twice")
    listed = tuple(_noise(limit, reports, runs_per_year, reruns) for limit in limits)
    return Calibration(
        seeds=tuple(side.report.calibration.seed for side in reports),
        runs_per_year=runs_per_year,
        limits=listed,
        alarms_per_year=math.fsum(one.alarms_per_year or 0.0 for one in listed),
    )


def _noise(limit: Limit, reports: Sequence[ComparableReport], runs_per_year: float, reruns: int) -> LimitNoise:
    values = [read(limit.figure, side) for side in reports]
    numbers = [value for value in values if isinstance(value, float)]
    chance = _chance(limit, reports, values, numbers)
    tight = chance is not None and chance > TIGHT
    alarms = None if chance is None else runs_per_year * _chance_called_broken(limit, chance) ** (1 + reruns)
    return LimitNoise(
        limit=limit.text,
        figure=limit.figure.path,
        values=tuple(float(len(value)) if isinstance(value, frozenset) else value for value in values),
        mean=fmean(numbers) if numbers else None,
        standard_deviation=stdev(numbers) if len(numbers) > 1 else None,
        chance=chance,
        alarms_per_year=alarms,
        tight=tight,
        suggestion=_suggestion(limit, numbers) if tight and limit.figure.kind == "number" else None,
    )


def _chance(
    limit: Limit, reports: Sequence[ComparableReport], values: Sequence[object], numbers: Sequence[float]
) -> float | None:
    """Return the probability that one new text breaks a limit; None where a report lacks the figure."""
    if None in values:
        return None
    if limit.figure.kind == "number":
        return chance_to_break(limit, limit.bound, numbers)
    return _counted(limit, reports, values)


def _chance_called_broken(limit: Limit, chance: float) -> float:
    """Return the probability that a measurement calls a limit broken beyond noise.

    What can be told from noise is called so in 5% of the runs at most, unless the model itself breaks the limit.
    """
    is_weighed = limit.figure.kind == "level" or position_mean(limit.figure) is not None
    return min(chance, ALPHA) if is_weighed and chance <= 0.5 else chance


def chance_to_break(limit: Limit, bound: float, values: Sequence[float]) -> float:
    """Return the probability that a figure on a new text is beyond `bound`, or beyond it times another new text's.

    With mean m and standard deviation s of n values, x - bound of a new x has the variance s^2 (1 + 1/n). With a
    factor c and a new b, x - c b has s^2 (1 + c^2 + (1 - c)^2 / n).

    Args:
        limit: Says whether the baseline gives the bound, and which side is allowed.
        bound: The number or the factor, in place of the limit's own.
        values: Of the figure, two or more.
    """
    count, mean, deviation = len(values), fmean(values), stdev(values)
    if limit.against_baseline:
        beyond = limit.sign * (mean - bound * mean)
        spread = deviation * math.sqrt(1 + bound * bound + (1 - bound) ** 2 / count)
    else:
        beyond = limit.sign * (mean - bound)
        spread = deviation * math.sqrt(1 + 1 / count)
    if spread == 0:
        return float(beyond > 0)
    return upper_tail(-beyond / spread, count - 1)


def _suggestion(limit: Limit, values: Sequence[float]) -> str | None:
    """Return the closest limit of the same kind that lies outside of the noise; None where there is none."""
    mean, deviation = fmean(values), stdev(values)
    if limit.against_baseline:
        far = _WIDEST if limit.sign > 0 else 1 / _WIDEST
        near = 1.0
    else:
        near = mean
        far = mean + limit.sign * deviation * _WIDEST
    if chance_to_break(limit, far, values) > TIGHT:
        return None
    bound = _closest(lambda at: chance_to_break(limit, at, values) <= TIGHT, near, far)
    written = number(_away(bound, limit.sign), 3).replace(",", "")
    return f"{limit.figure.path.removeprefix('schemes.')} {limit.relation} " + (
        f"baseline * {written}" if limit.against_baseline else written
    )


def _closest(fits: Callable[[float], bool], near: float, far: float) -> float:
    """Return the bound closest to `near` that fits, between it and `far`, which does."""
    for _ in range(_STEPS):
        middle = (near + far) / 2
        near, far = (near, middle) if fits(middle) else (middle, far)
    return far


def _away(bound: float, sign: int) -> float:
    """Return a bound of three digits that is no closer."""
    if bound == 0:
        return bound
    unit = 10.0 ** (math.floor(math.log10(abs(bound))) - 2)
    return (math.ceil if sign > 0 else math.floor)(bound / unit) * unit


def _counted(limit: Limit, reports: Sequence[ComparableReport], values: Sequence[object]) -> float | None:
    """Return the share of reports, or of ordered pairs of them, in which a verdict or a set breaks the limit.

    None where a report's figures do not determine its level.
    """
    if limit.figure.kind == "level":
        scheme = limit.figure.scheme or ""
        ranks = [level_of(side, scheme, side).level for side in reports]
        if Level.unjudged in ranks:
            return None
        if not limit.against_baseline:
            allowed = Level[LEVELS[int(limit.bound)]]
            return fmean(not holds(limit, rank, allowed) for rank in ranks)
        return fmean(after > before for before, after in permutations(ranks, 2))
    sets = [value for value in values if isinstance(value, frozenset)]
    return fmean(bool(after - before) for before, after in permutations(sets, 2))
