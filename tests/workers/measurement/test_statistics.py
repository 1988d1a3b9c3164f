"""Range statistics, histogram, deviation: invariants for any input, and the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import error_figures, site_figures

from workers.measurement.statistics.backends import reduce_sequences
from workers.measurement.statistics.deviation import DeviationStatistics
from workers.measurement.statistics.order import magnitude_quantiles, occupied_bins
from workers.measurement.statistics.reduction import BINS, Reduction, bin_edges
from workers.measurement.statistics.site import SiteStatistics

FINITE = st.floats(-(2.0**40), 2.0**40, width=32)
EVERYTHING = st.floats(width=32)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 12))


def tensors(elements: st.SearchStrategy[float] = FINITE) -> st.SearchStrategy[np.ndarray]:
    return SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def reduced(x: np.ndarray) -> Reduction:
    """Reduce one sequence about zero; every figure but the histogram is led by 1."""
    return reduce_sequences(torch.from_numpy(x)[None], torch.zeros(1, x.shape[1]), 6.0)


def histogram_of(x: np.ndarray) -> np.ndarray:
    return reduced(x).histogram.numpy()


def statistics_of(*sequences: np.ndarray) -> SiteStatistics:
    statistics = SiteStatistics(sequences[0].shape[1], threshold=6.0)
    for x in sequences:
        statistics.add(x)
    return statistics


def same(found: float | None, wanted: float | None, **tolerance: float) -> bool:
    return found is wanted is None or (None not in (found, wanted) and found == pytest.approx(wanted, **tolerance))


@settings(deadline=None, max_examples=60)
@given(tensors(EVERYTHING))
def test_a_reduction_counts_every_finite_value_once(x: np.ndarray) -> None:
    part = Reduction(*(figure.numpy()[0] for figure in reduced(x)[:-1]), histogram=histogram_of(x))
    finite = np.isfinite(x)
    clean = np.where(finite, x, 0).astype(np.float64)
    assert part.missing.tolist() == (~finite).sum(axis=0).tolist()
    assert part.over.tolist() == (finite & (np.abs(x) >= 6.0)).sum(axis=0).tolist()
    assert part.histogram.sum() == finite.sum()
    peaks = np.where(finite.any(axis=1), np.abs(clean).max(axis=1), np.nan)
    np.testing.assert_array_equal(part.token_abs_max, peaks.astype(np.float32))
    assert part.minimum.tolist() == np.where(finite, x, np.inf).min(axis=0).tolist()
    assert part.maximum.tolist() == np.where(finite, x, -np.inf).max(axis=0).tolist()
    for power in (1, 2, 3, 4):
        scale = (np.abs(clean) ** power).sum(axis=0)
        difference = np.abs(part.power_sums[power - 1] - (clean**power).sum(axis=0))
        assert (difference <= len(x) * 2.0**-52 * scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_token_without_a_finite_value_counts_in_no_figure_of_tokens(dtype: torch.dtype) -> None:
    x = torch.randn(21, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = SiteStatistics(16, 6.0)
    whole.add(x[None])
    broken = x.repeat_interleave(3, dim=0)
    broken[1::3], broken[2::3] = torch.nan, torch.inf
    statistics = SiteStatistics(16, 6.0)
    statistics.add(broken[None])
    found, wanted = statistics.range(), whole.range()
    assert found.nonfinite == 2 * x.numel()
    for name in ("token_abs_max_p50", "token_abs_max_p99", "inf_norm_per_sequence", "abs_max"):
        assert getattr(found, name) == getattr(wanted, name), name


@settings(deadline=None, max_examples=60)
@given(tensors(EVERYTHING))
def test_every_value_lies_in_the_bin_that_counts_it(x: np.ndarray) -> None:
    low, high, count = occupied_bins(histogram_of(x))
    values = np.sort(x[np.isfinite(x)].astype(np.float64))
    inside = np.searchsorted(values, high, "right") - np.searchsorted(values, low, "left")
    # Zero lies on the edge of two bins, one for each sign.
    assert (inside == count)[(low != 0) & (high != 0)].all()
    assert count.sum() == values.size


def test_bins_tile_the_numbers() -> None:
    low, high = bin_edges()
    assert np.isnan(low).sum() == 64 == np.isnan(high).sum()
    positive = slice(0, 255 * 32)
    assert (np.nextafter(high[positive][:-1], np.float32(np.inf)) == low[positive][1:]).all()
    normal = low[positive] >= np.finfo(np.float32).tiny
    widths = high[positive][normal].astype(np.float64) / low[positive][normal]
    assert (widths < 1 + 1 / 32).all()
    assert (low[BINS // 2 :][positive] == -high[positive]).all()


@settings(deadline=None, max_examples=60)
@given(tensors(), st.floats(0, 1))
def test_a_quantile_is_within_a_bin_of_the_exact_one(x: np.ndarray, fraction: float) -> None:
    magnitudes = np.abs(x.astype(np.float64))
    found = magnitude_quantiles(histogram_of(x), (fraction,), magnitudes.max())[0]
    exact = np.quantile(magnitudes, fraction)
    assert abs(found - exact) <= exact / 32 + np.finfo(np.float32).tiny


@settings(deadline=None, max_examples=40)
@given(tensors(), st.data())
def test_permuting_sequences_changes_nothing_but_rounding(x: np.ndarray, data: st.DataObject) -> None:
    parts = np.array_split(x, data.draw(st.integers(1, len(x))))
    shuffled = data.draw(st.permutations(parts))
    one, other = statistics_of(*parts), statistics_of(*shuffled)
    assert (one.histogram == other.histogram).all()
    for name, value in vars(one.range()).items():
        assert same(vars(other.range())[name], value, rel=1e-9), name


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float32, (30, 8), elements=st.floats(-100, 100, width=32)), st.integers(1, 29))
def test_splitting_a_sequence_changes_no_merged_figure(x: np.ndarray, at: int) -> None:
    one, other = statistics_of(x), statistics_of(x[:at], x[at:])
    per_sequence = {"kurtosis_per_sequence", "inf_norm_per_sequence"}
    for name, value in vars(one.range()).items():
        if name not in per_sequence:
            assert same(vars(other.range())[name], value, rel=1e-9), name


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float32, (20, 6), elements=st.floats(1, 8, width=32)), st.integers(-10, 10))
def test_scaling_scales_what_it_should(x: np.ndarray, power: int) -> None:
    c = 2.0**power
    one, other = statistics_of(x).range(), statistics_of(x * np.float32(c)).range()
    for name in ("min", "max", "abs_max", "mean", "std", "rms", "median_abs", "p99_abs", "inf_norm_per_sequence"):
        assert getattr(other, name) == pytest.approx(c * getattr(one, name), rel=1e-12), name
    for name in ("crest_db", "max_to_median", "range_bits", "kurtosis"):
        assert same(getattr(other, name), getattr(one, name), rel=1e-9), name


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 50, 7)).astype(np.float32)
    spoiled = x.copy()
    spoiled[0, 3, 2], spoiled[1, 0, 0], spoiled[1, 1, 0] = np.nan, np.inf, -np.inf
    statistics = statistics_of(*spoiled)
    found = statistics.range()
    kept = spoiled[np.isfinite(spoiled)].astype(np.float64)
    assert found.nonfinite == 3
    assert found.mean == pytest.approx(kept.mean())
    assert found.std == pytest.approx(kept.std())
    assert found.kurtosis == pytest.approx(((kept - kept.mean()) ** 4).mean() / kept.std() ** 4)
    assert found.abs_max == np.abs(kept).max()
    column = spoiled[..., 0][np.isfinite(spoiled[..., 0])].astype(np.float64)
    assert statistics.channels().mean[0] == pytest.approx(column.mean())
    assert statistics.channels().variance[0] == pytest.approx(column.var())


def test_nothing_finite_gives_no_figures() -> None:
    statistics = statistics_of(np.full((4, 3), np.nan, np.float32))
    found = statistics.range()
    assert (found.nonfinite, found.tokens, found.channels) == (12, 4, 3)
    assert found.abs_max is found.median_abs is found.kurtosis is found.inf_norm_per_sequence is None
    assert np.isnan(statistics.channels().abs_max).all()


def test_zeros_have_a_range_and_no_ratios() -> None:
    found = statistics_of(np.zeros((4, 3), np.float32)).range()
    assert (found.abs_max, found.median_abs, found.std) == (0, 0, 0)
    assert found.crest_db is found.max_to_median is found.range_bits is found.kurtosis is None
    assert found.kurtosis_per_sequence == 0


def test_overflow_of_fp16_is_counted() -> None:
    x = np.array([[65504.0, -65505.0], [70000.0, np.inf]], np.float32)
    assert statistics_of(x).range().over_fp16 == 2


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e5])
def test_a_long_tail_far_from_zero_keeps_its_digits(offset: float) -> None:
    x = (np.random.default_rng(1).standard_t(3, (3, 200, 64)) + offset).astype(np.float32)
    found = vars(statistics_of(*x).range())
    for name, value in site_figures(x).items():
        if name == "range_bits":
            assert found[name] == pytest.approx(value, abs=math.log2(1 + 1 / 32))
        else:
            quantile = name.endswith("_abs") or name == "max_to_median"
            assert found[name] == pytest.approx(value, rel=1 / 32 if quantile else 1e-9), name


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_deviation_against_the_oracle(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    values = st.floats(0.125, 1024, width=32) | st.floats(-1024, -0.125, width=32)
    y = data.draw(hnp.arrays(np.float32, shape, elements=values))
    q = data.draw(hnp.arrays(np.float32, shape, elements=values))
    statistics = DeviationStatistics()
    for part in (slice(None, 1), slice(1, None)):
        statistics.add(y[part], q[part])
    found = vars(statistics.deviation())
    assert found["exact"] is bool((y == q).all())
    if not found["exact"]:
        for name, value in error_figures(y, q).items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_deviation_at_its_edges() -> None:
    y = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)
    exact = DeviationStatistics()
    exact.add(y, y)
    assert exact.deviation().exact
    assert exact.deviation().sqnr_db is None
    assert exact.deviation().relative_l2 == 0
    zeros = DeviationStatistics()
    zeros.add(0 * y, 0 * y)
    assert zeros.deviation().exact
    assert zeros.deviation().max_abs_error == 0
    silent = DeviationStatistics()
    silent.add(np.zeros_like(y), y)
    assert (silent.deviation().sqnr_db, silent.deviation().relative_l2) == (None, None)
    assert silent.deviation().max_abs_error == 2
    spoiled = DeviationStatistics()
    spoiled.add(y, np.array([[1.5, np.nan], [np.inf, 0.0]], np.float32))
    assert spoiled.deviation().relative_l2 == pytest.approx(0.5)
    assert spoiled.deviation().sqnr_db == pytest.approx(10 * math.log10(4))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_nothing_can_be_compared_nothing_is_exact(bad: float) -> None:
    y = np.ones((3, 4), np.float32)
    statistics = DeviationStatistics()
    statistics.add(y, np.full_like(y, bad))
    nothing = statistics.deviation()
    assert not nothing.exact
    assert (nothing.sqnr_db, nothing.relative_l2, nothing.max_abs_error, nothing.cosine) == (None, None, None, None)
    statistics.add(y[:1], y[:1])
    assert statistics.deviation().exact
    assert statistics.deviation().max_abs_error == 0
