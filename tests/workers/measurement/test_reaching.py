"""Limits that every token has of its own, what reaches them, and sums by channel: against numpy in extended precision.

x [N, S, d] with N sequences, S tokens each, d channels
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import DTYPES, SHAPES, extended, patterns, random_tensor, threads  # noqa: F401

from workers.measurement.statistics import backends, plain
from workers.measurement.statistics.reduction import SMALLEST


def limits_of(x: torch.Tensor, factor: float) -> np.ndarray:
    """The limits of x [N, S, d] before they are rounded, [N, S], in extended precision; infinity for none."""
    values, finite = extended(x), np.isfinite(x.float().numpy())
    squares = (values**2).sum(axis=-1)
    rms = np.sqrt(squares / np.maximum(finite.sum(axis=-1), 1))
    return np.where(squares > 0, np.longdouble(np.float32(factor)) * rms, np.longdouble(np.inf))


def check_limits(kernels: Any, x: torch.Tensor, factor: float) -> None:
    """Hold limits and counts against numpy's."""
    limits = kernels.token_limits(x, factor)
    assert (limits.dtype, limits.shape) == (torch.float32, x.shape[:2])
    wanted, found = limits_of(x, factor), limits.numpy()
    infinite = wanted > np.finfo(np.float32).max
    assert np.isinf(found[infinite]).all()
    # One rounding to float32: half a unit in the last place, or the smallest float32 where it would be 0.
    apart = np.abs(found[~infinite].astype(np.longdouble) - wanted[~infinite])
    assert (apart <= np.maximum(np.spacing(found[~infinite]) * 0.500001, SMALLEST)).all()
    assert (found > 0).all()
    wide = x.float().numpy()
    reached = np.isfinite(wide) & (np.abs(wide) >= found[..., None])
    counts = kernels.count_reaching(x, limits)
    assert counts.dtype == torch.int32
    assert (counts.numpy() == reached.sum(axis=1)).all()


def check_channel_products(found: torch.Tensor, y: torch.Tensor, q: torch.Tensor) -> None:
    """Hold the sums of y and q [T, d] against extended precision."""
    both = np.isfinite(y.float().numpy()) & np.isfinite(q.float().numpy())
    a, b = (np.where(both, extended(part), 0) for part in (y, q))
    wanted = np.stack([(a**2).sum(axis=0), ((a - b) ** 2).sum(axis=0)])
    assert found.dtype == torch.float64
    assert (np.abs(found.numpy() - wanted) <= (len(y) + 8) * 2.0**-53 * wanted).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_limits_and_counts(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for x in (random_tensor(shape, dtype), random_tensor(shape, dtype).repeat(1, 2, 2)[:, ::2, 1:]):
        for kernels in (backends, plain):
            check_limits(kernels, x, 1.5)
            check_limits(kernels, x, 0.1)


@settings(deadline=None)
@given(st.sampled_from(DTYPES).flatmap(patterns), st.sampled_from([0.25, 1.0, 6.0]))
def test_limits_of_any_patterns(x: torch.Tensor, factor: float) -> None:
    for kernels in (backends, plain):
        check_limits(kernels, x, factor)


@pytest.mark.parametrize("kernels", [backends, plain], ids=["compiled", "plain"])
def test_a_value_that_equals_the_limit_reaches_it(kernels: Any) -> None:
    x = torch.zeros(1, 3, 36)
    x[0, 0, 5], x[0, 1, 5], x[0, 2, 5] = 3.0, -0.7, 1e-38  # alone among 36 channels: exactly six times the rms
    assert kernels.count_reaching(x, kernels.token_limits(x, 6.0))[0].tolist() == [0] * 5 + [3] + [0] * 30
    one_more = torch.cat([x, torch.ones(1, 3, 1) * 1e-3 * x.abs().amax(2, keepdim=True)], dim=2)
    assert kernels.count_reaching(one_more, kernels.token_limits(one_more, 6.1)).sum() == 0


@pytest.mark.parametrize("kernels", [backends, plain], ids=["compiled", "plain"])
def test_tokens_of_zeros_and_of_nothing_finite_reach_nothing(kernels: Any) -> None:
    x = torch.zeros(1, 4, 40)
    x[0, 1], x[0, 2, ::2], x[0, 3] = torch.nan, torch.inf, torch.tensor([torch.nan, 5.0] + [0.0] * 38)
    limits = kernels.token_limits(x, 6.0)
    assert limits[0, :3].isinf().all()
    assert limits[0, 3].item() == np.float32(6 * np.sqrt(25 / 39))  # NaN is no channel of its token
    assert kernels.count_reaching(x, limits)[0].nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_channels(dtype: torch.dtype) -> None:
    for shape in ((1, 1, 1), (1, 5, 33), (1, 1100, 7)):
        y = random_tensor(shape, dtype)[0]
        q = random_tensor(shape, torch.bfloat16, seed=3)[0]
        for kernels in (backends, plain):
            check_channel_products(kernels.channel_products(y, q), y, q)
            strided = y.repeat(2, 2)[::2, 1:], q.repeat(2, 2)[1::2, :-1]
            check_channel_products(kernels.channel_products(*strided), *strided)
    none = torch.empty(0, 4)
    assert backends.channel_products(none, none).tolist() == [[0.0] * 4] * 2


@pytest.mark.usefixtures("threads")
def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    y = random_tensor((1, 3000, 50), torch.bfloat16)[0]
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(backends.channel_products(y, y.flip(0)))
    assert all(torch.equal(sums, found[0]) for sums in found)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: shape \[2, 3\]; 3 dimensions are needed"):
        backends.token_limits(torch.zeros(2, 3), 6.0)
    with pytest.raises(ValueError, match=r"x: torch\.float64"):
        backends.count_reaching(torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"q: \[3, 2\] on cpu; it must be like y, \[2, 2\] on cpu"):
        backends.channel_products(torch.zeros(2, 2), torch.zeros(3, 2))
