"""Standard errors and 95% intervals of means over token positions.

Tokens of one sequence depend on one another: a hard passage is hard at many positions in a row. Sequences are taken
as independent, so that a mean is a ratio of two sums over sequences, and its standard error is that of the linearized
ratio estimator, clustered by sequence (Cochran, Sampling Techniques, section 2.11 and chapter 9A):

    m = sum S_s / sum n_s        se^2 = N / (N - 1) * sum (S_s - n_s m)^2 / (sum n_s)^2

with the sum S_s of a figure over the n_s scored positions of sequence s. Intervals use Student's t with N - 1 degrees
of freedom. With fewer than 8 sequences that many degrees of freedom say little; the sequences are then cut into
blocks, which count as independent in their place. Blocks next to one another are not quite independent, so whoever
shows such an interval says what it is of.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Literal, NamedTuple

from service.contracts.report import Estimate

MIN_UNITS = 8
"""Sequences, or else blocks, that an interval needs."""
MIN_BLOCK_POSITIONS = 2
"""Scored positions that every block needs."""
CONFIDENCE = 0.95
_EXPANDED_FROM = 500
"""Degrees of freedom from which the expansion about the normal quantile is exact to 1e-12."""
_LARGEST_EXPONENT = 709.0
"""Exp of more overflows."""

Positions = Sequence[float]
"""One sequence's figure at each scored position, in order."""


class Unit(NamedTuple):
    """What is taken as independent of the others: a sequence, or a block of one."""

    total: float
    """Sum of the figure over the positions."""
    positions: int
    """Scored positions, one at least."""


def mean(sequences: Sequence[Positions]) -> Estimate:
    """Return the mean over all positions; sequences without a scored position do not count.

    Raises ValueError where there is no position at all. The standard error is None where `units_of` gives no units.
    """
    value = _value(Unit(math.fsum(values), len(values)) for values in sequences)
    units = units_of(sequences)
    if units is None:
        return Estimate(value=value, standard_error=None)
    return estimate(units[1], units[0], value)


def mean_exp(sequences: Sequence[Positions]) -> Estimate:
    """Return exp of the mean over all positions: a perplexity, or a ratio of two; the interval is exp of the mean's.

    What is too large for a float64 becomes the largest that the exponential gives.
    """
    of_log = mean(sequences)
    value = exp(of_log.value)
    if of_log.standard_error is None or of_log.interval is None:
        return of_log.model_copy(update={"value": value})
    changed = {
        "value": value,
        "standard_error": value * of_log.standard_error,
        "interval": (exp(of_log.interval[0]), exp(of_log.interval[1])),
    }
    return of_log.model_copy(update=changed)


def moved(of: Estimate, value: float) -> Estimate:
    """Return an estimate with the error of another one, around `value`."""
    shift = value - of.value
    interval = of.interval and (of.interval[0] + shift, of.interval[1] + shift)
    return of.model_copy(update={"value": value, "interval": interval})


def units_of(sequences: Sequence[Positions]) -> tuple[Literal["sequences", "blocks"], list[Unit]] | None:
    """Return what stands for independent observations: the sequences, or where they are fewer than 8 their blocks.

    Every sequence is cut into the same number of blocks, the fewest that give 8 in all; blocks of one sequence are
    equally long, or differ by one position where its length does not divide. None where one has fewer than 2.
    """
    scored = [values for values in sequences if len(values)]
    if len(scored) >= MIN_UNITS:
        return "sequences", [Unit(math.fsum(values), len(values)) for values in scored]
    if not scored:
        return None
    blocks = [block for values in scored for block in _blocks(values, -(-MIN_UNITS // len(scored)))]
    if min(len(block) for block in blocks) < MIN_BLOCK_POSITIONS:
        return None
    return "blocks", [Unit(math.fsum(block), len(block)) for block in blocks]


def estimate(units: Sequence[Unit], name: Literal["sequences", "blocks"], value: float | None = None) -> Estimate:
    """Return the mean with its clustered standard error, from two units or more.

    Args:
        units: What is independent.
        name: What they are.
        value: The mean, where it is known already.
    """
    count, positions = len(units), sum(unit.positions for unit in units)
    value = _value(units) if value is None else value
    squares = math.fsum((unit.total - unit.positions * value) ** 2 for unit in units)
    error = math.sqrt(count / (count - 1) * squares) / positions
    reach = student_t(count - 1) * error
    return Estimate(
        value=value,
        standard_error=error,
        interval=(value - reach, value + reach),
        degrees_of_freedom=count - 1,
        units=name,
        unit_count=count,
    )


@cache
def student_t(degrees_of_freedom: int) -> float:
    """Return how many standard errors a 95% interval reaches to either side: the 0.975 quantile of Student's t.

    The distribution function at whole degrees of freedom is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4),
    which is solved for its angle by bisection. Where there are many degrees of freedom, the expansion about the
    normal quantile (26.7.5) is as exact and does not grow with them.
    """
    if degrees_of_freedom < 1:
        raise ValueError(f"degrees_of_freedom: {degrees_of_freedom} is not allowed; 1 or more is")
    if degrees_of_freedom >= _EXPANDED_FROM:
        return _expansion(NormalDist().inv_cdf((1 + CONFIDENCE) / 2), degrees_of_freedom)
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _inside(middle, degrees_of_freedom) < CONFIDENCE else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(middle)


def upper_tail(t: float, degrees_of_freedom: int) -> float:
    """Return the probability that Student's t is over `t`, to an absolute error of about 1e-15; NaN gives NaN.

    The sum is as long as there are degrees of freedom.
    """
    if degrees_of_freedom < 1:
        raise ValueError(f"degrees_of_freedom: {degrees_of_freedom} is not allowed; 1 or more is")
    one_side = (1 - _inside(math.atan(abs(t) / math.sqrt(degrees_of_freedom)), degrees_of_freedom)) / 2
    return max(one_side, 0.0) if t > 0 else 1 - one_side


def _inside(angle: float, freedom: int) -> float:
    """Return the probability that abs(t) is at most sqrt(freedom) * tan(angle)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else cosine if odd else 1.0
    for step in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _expansion(x: float, freedom: int) -> float:
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))


def exp(x: float) -> float:
    """Return e to the power of x, at most the largest float."""
    return math.exp(min(x, _LARGEST_EXPONENT))


def _value(units: Iterable[Unit]) -> float:
    known = tuple(units)
    positions = sum(unit.positions for unit in known)
    if not positions:
        raise ValueError("sequences: no scored position; one or more is needed")
    return math.fsum(unit.total for unit in known) / positions


def _blocks(values: Positions, count: int) -> Iterator[Positions]:
    ends = [len(values) * number // count for number in range(count + 1)]
    return (values[start:end] for start, end in pairwise(ends))
