"""Steps in a series: against dynamic programming, and by simulation of false steps and of power."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from service.audits.history.steps import FEWEST, Value, level, noise, penalty, steps


def series(values, reach=None):
    return [Value(float(v), None if reach is None else (v - reach, v + reach)) for v in values]


def found(values, **how):
    return steps([float(v) for v in values], noise(series(values, **how), exact=False))


def cheapest(values, cost):
    """Return the start of every segment but the first in the cheapest segmentation, by dynamic programming."""
    count = len(values)
    sums, squares = np.cumsum([0, *values]), np.cumsum([0, *np.square(values)])
    best, last = [-cost] + [math.inf] * count, [0] * (count + 1)
    for end in range(1, count + 1):
        for start in range(end):
            inside = squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start)
            if best[start] + cost + inside < best[end]:
                best[end], last[end] = best[start] + cost + inside, start
    starts = []
    while count:
        starts.append(last[count])
        count = last[count]
    return starts[-2::-1]


@pytest.mark.parametrize("seed", range(12))
def test_the_segmentation_is_the_cheapest_one(seed):
    random = np.random.default_rng(seed)
    values = random.normal(size=60) - np.repeat(random.choice([0, 2, 4, 8], 6), 10)
    of = noise(series(values), exact=False)
    assert steps(values.tolist(), of) == cheapest(values / of.standard_deviation, penalty(of))


@pytest.mark.parametrize("count", [8, 12, 20, 60, 365])
def test_noise_gives_a_false_step_in_some_hundred_values_at_most(count):
    random = np.random.default_rng(count)
    repeats = 20_000 // count
    false = sum(len(found(random.normal(5, 0.1, count))) for _ in range(repeats))
    assert false / (repeats * count) < 1 / 300
    at_the_end = sum(count - 1 in found(random.normal(5, 0.1, count)) for _ in range(2000))
    assert at_the_end / 2000 < 1 / 200


@pytest.mark.parametrize("count", [2, 5, 7])
def test_noise_known_from_intervals_gives_no_more(count):
    random = np.random.default_rng(count)
    repeats = 60_000 // count
    false = sum(len(found(random.normal(5, 0.1, count), reach=0.196)) for _ in range(repeats))
    assert false / (repeats * count) < 1 / 300


@pytest.mark.parametrize("before", [60, 200])
def test_a_step_of_three_deviations_that_stays_is_found_within_two_values(before):
    random = np.random.default_rng(before)
    hits = {1: 0, 2: 0, 3: 0}
    for _ in range(1000):
        values = random.normal(size=before + 3)
        values[before:] += 3
        for after in hits:
            places = found(values[: before + after])
            hits[after] += any(abs(place - before) <= 1 for place in places)
    # With c = 10 * (1 + 6 / n) one value needs sqrt(c), about 3.3, and is 3 off; the mean of two is 4.24 off.
    assert hits[1] > 300
    assert hits[2] > 700
    assert hits[3] > 900


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_the_noise_is_that_of_the_values_whatever_steps_there_are(count):
    random = np.random.default_rng(count)
    estimates = []
    for _ in range(400):
        values = random.normal(-3, 0.5, count) + 100 * (np.arange(count) >= count // 2)
        estimates.append(noise(series(values), exact=False).standard_deviation ** 2)
    # The step's difference, one of count - 1, is among those left out, in the place of one of noise alone.
    assert np.mean(estimates) == pytest.approx(0.25, rel=0.03 + 6 / count)


def test_the_noise_of_few_values_is_that_of_their_intervals():
    few = noise(series([1, 2, 3], reach=1.96), exact=False)
    assert (few.source, few.measurements) == ("intervals", 3)
    assert (few.relative, few.standard_deviation) == (True, pytest.approx(1 / 2, abs=1e-4))
    around = noise(series([-1, 0, 1], reach=1.96), exact=False)
    assert (around.relative, around.standard_deviation) == (False, pytest.approx(1, abs=1e-4))
    assert noise(series([1, 2, 3]), exact=False) is None
    assert noise(series(range(FEWEST), reach=1.96), exact=False).source == "series"


def test_noise_that_grows_with_the_figure_gives_no_step_after_a_step_up():
    random = np.random.default_rng(11)
    values = 0.03 * np.exp(0.05 * random.normal(size=200)) * np.where(np.arange(200) < 100, 1, 7)
    assert found(values) == [100]
    of = noise(series(values), exact=False)
    assert (of.relative, of.standard_deviation) == (True, pytest.approx(0.05, rel=0.2))
    mean, interval = level(values[:100].tolist(), of)
    assert mean == pytest.approx(stats.gmean(values[:100]))
    reach = stats.t.ppf(0.975, 199) * of.standard_deviation / 10
    assert interval == pytest.approx((mean * math.exp(-reach), mean * math.exp(reach)))


def test_a_figure_without_noise_steps_wherever_it_changes():
    values = [4.0, 4.0, 5.0, 5.0, 4.0]
    assert steps(values, noise(series(values), exact=True)) == [2, 4]
    assert steps([4.0], noise(series([4.0]), exact=True)) == []


def test_a_figure_that_changed_once_steps_there():
    values = [7.0] * 12 + [9.0] * 3
    assert found(values) == [12]
    assert found([7.0] * 12) == []


def test_large_and_small_figures_keep_their_digits():
    jitter = np.random.default_rng(3).normal(size=30) + 6 * (np.arange(30) >= 20)
    for scale, offset in ((1e-12, 0), (1e150, 0), (1, 1e9), (1e300, 0)):
        assert found(offset + scale * jitter) == [20], (scale, offset)


def test_importing_the_service_loads_no_numeric_library():
    loaded = "sys.exit(bool({'numpy', 'ruptures', 'scipy'} & set(sys.modules)))"
    program = f"import sys, service.audits.history.series; {loaded}"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
