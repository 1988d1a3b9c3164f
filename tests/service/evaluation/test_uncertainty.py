"""Errors by sequence: against scipy, NumPy and the jackknife, and by how often the intervals hold the truth."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.evaluation.uncertainty import mean, mean_exp, moved, student_t, upper_tail


@pytest.mark.parametrize("freedom", [*range(1, 60), 63, 64, 99, 100, 255, 256, 499, 500, 501, 1000, 10**5, 10**7])
def test_the_quantile_is_students(freedom):
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-11)


@pytest.mark.parametrize("freedom", [0, -1])
def test_the_quantile_needs_a_degree_of_freedom(freedom):
    with pytest.raises(ValueError, match=f"degrees_of_freedom: {freedom} is not allowed; 1 or more is"):
        student_t(freedom)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 8, 15, 16, 63, 64, 499, 1000, 10_000])
@pytest.mark.parametrize("t", [-40.0, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.3, 1.0, 1.753, 2.6, 5.0, 12.0, 400.0])
def test_the_upper_tail_is_students(t, freedom):
    assert upper_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), abs=2e-13)
    assert upper_tail(t, freedom) + upper_tail(-t, freedom) == pytest.approx(1, abs=1e-15)


def test_the_upper_tail_at_its_ends():
    assert (upper_tail(math.inf, 7), upper_tail(-math.inf, 7)) == pytest.approx((0.0, 1.0), abs=1e-15)
    assert math.isnan(upper_tail(math.nan, 7))
    assert upper_tail(student_t(15), 15) == pytest.approx(0.025, rel=1e-11)
    with pytest.raises(ValueError, match="degrees_of_freedom: 0 is not allowed; 1 or more is"):
        upper_tail(1.0, 0)


def text(random, count, *, equal=True, effect=1.0):
    """Return sequences whose positions share the luck of their sequence; the truth is a mean of 3."""
    lengths = np.full(count, 20) if equal else random.integers(12, 29, count)
    lucks = random.normal(3.0, effect, count)
    return [random.normal(luck, 1.0, length).tolist() for luck, length in zip(lucks, lengths, strict=True)]


def cluster_robust(sequences):
    """The definition, with NumPy."""
    sums, counts = np.array([np.sum(one) for one in sequences]), np.array([len(one) for one in sequences])
    m, count = sums.sum() / counts.sum(), len(sequences)
    return m, math.sqrt(count / (count - 1) * ((sums - counts * m) ** 2).sum() / counts.sum() ** 2)


@pytest.mark.parametrize("count", [8, 9, 16, 64])
@pytest.mark.parametrize("equal", [True, False])
def test_the_definition(count, equal):
    sequences = text(np.random.default_rng(count), count, equal=equal)
    result = mean(sequences)
    m, error = cluster_robust(sequences)
    assert (result.value, result.standard_error) == pytest.approx((m, error), rel=1e-12)
    reach = stats.t.ppf(0.975, count - 1) * error
    assert result.interval == pytest.approx((m - reach, m + reach), rel=1e-12)
    assert (result.degrees_of_freedom, result.units, result.unit_count) == (count - 1, "sequences", count)


def test_the_jackknife_agrees():
    sequences = text(np.random.default_rng(1), 40, equal=False)
    left = [np.concatenate([one for other, one in enumerate(sequences) if other != gone]).mean() for gone in range(40)]
    jackknife = math.sqrt(39 / 40 * ((np.array(left) - np.mean(left)) ** 2).sum())
    assert mean(sequences).standard_error == pytest.approx(jackknife, rel=0.03)


def test_equal_sequences_have_the_standard_error_of_their_means():
    sequences = text(np.random.default_rng(2), 12)
    means = np.array([np.mean(one) for one in sequences])
    assert mean(sequences).standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(12), rel=1e-12)


@pytest.mark.parametrize("count", [8, 16, 64])
@pytest.mark.parametrize("equal", [True, False])
def test_intervals_hold_the_truth_as_often_as_they_say(count, equal):
    random = np.random.default_rng([7, count, equal])
    covered = naive = 0
    for _ in range(2000):
        sequences = text(random, count, equal=equal)
        low, high = mean(sequences).interval
        covered += low <= 3.0 <= high
        values = np.concatenate(sequences)
        naive += abs(values.mean() - 3.0) <= 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert 0.93 <= covered / 2000 <= 0.97
    assert naive / 2000 < 0.6  # what taking positions as independent gives


def test_an_exponential_has_the_interval_of_its_logarithm():
    sequences = text(np.random.default_rng(3), 10)
    of_log, result = mean(sequences), mean_exp(sequences)
    assert result.value == pytest.approx(math.exp(of_log.value), rel=1e-14)
    assert result.standard_error == pytest.approx(result.value * of_log.standard_error, rel=1e-14)
    assert result.interval == pytest.approx(tuple(map(math.exp, of_log.interval)), rel=1e-14)
    assert (result.units, result.unit_count, result.degrees_of_freedom) == ("sequences", 10, 9)


def test_a_perplexity_too_large_for_a_float_is_the_largest():
    result = mean_exp([[800.0, 900.0]] * 8)
    assert result.value == math.exp(709)
    assert result.interval[1] == math.exp(709)


@pytest.mark.parametrize(("count", "cut"), [(1, 8), (2, 4), (3, 3), (4, 2), (5, 2), (6, 2), (7, 2)])
def test_fewer_than_eight_sequences_are_cut_into_eight_blocks_or_more(count, cut):
    sequences = text(np.random.default_rng(count), count, equal=False)
    result = mean(sequences)
    blocks = [part for one in sequences for part in blocks_of(one, cut)]
    assert count * cut >= 8
    assert (result.units, result.unit_count, result.degrees_of_freedom) == ("blocks", count * cut, count * cut - 1)
    assert (result.value, result.standard_error) == pytest.approx(cluster_robust(blocks), rel=1e-12)
    assert result.interval[1] == pytest.approx(
        result.value + stats.t.ppf(0.975, count * cut - 1) * result.standard_error, rel=1e-12
    )


def blocks_of(values, cut):
    """Neighboring positions in `cut` blocks as equally long as they can be."""
    ends = [len(values) * number // cut for number in range(cut + 1)]
    parts = [values[start:end] for start, end in pairwise(ends)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    return parts


@pytest.mark.parametrize(
    ("lengths", "known"), [((16,), True), ((15,), False), ((4, 4, 4, 4), True), ((4, 4, 4, 3), False)]
)
def test_blocks_have_two_positions_or_there_is_no_error(lengths, known):
    sequences = [[float(place) for place in range(length)] for length in lengths]
    for result in (mean(sequences), mean_exp(sequences)):
        error = (result.standard_error, result.interval, result.degrees_of_freedom, result.units, result.unit_count)
        assert (None not in error) is known
        assert error == (None,) * 5 or known
    assert mean(sequences).value == pytest.approx(np.concatenate(sequences).mean())


def test_sequences_without_a_scored_position_do_not_count():
    sequences = text(np.random.default_rng(5), 8)
    assert mean([*sequences, []]) == mean(sequences)
    assert mean([[], *sequences[1:]]).units == "blocks"
    with pytest.raises(ValueError, match="no scored position"):
        mean([[], []])


def test_sequences_that_agree_leave_no_error():
    result = mean([[0.25] * 5] * 9)
    assert (result.value, result.standard_error, result.interval) == (0.25, 0.0, (0.25, 0.25))


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6), min_size=8, max_size=20), st.floats(-10, 10))
def test_the_order_of_sequences_and_a_shift_change_nothing_else(sequences, shift):
    result, turned = mean(sequences), mean(sequences[::-1])
    assert result == turned
    shifted = moved(result, result.value + shift)
    assert shifted.standard_error == result.standard_error
    assert np.allclose(np.array(shifted.interval) - result.interval, shift, atol=1e-9)
