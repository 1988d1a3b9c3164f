"""The kernels that read a tensor once: compiled against plain torch against numpy in extended precision.

x [N, S, d] with N sequences, S tokens each, d channels
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from device_twin import copies_from_device
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.measurement.statistics import plain
from workers.measurement.statistics.backends import (
    histogram,
    magnitudes_in_bin,
    pivots,
    reduce_sequences,
    token_products,
)
from workers.measurement.statistics.cpu import products as cpu_products
from workers.measurement.statistics.cpu import reduction as cpu_reduction
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.threads import map_in_threads, split_range
from workers.measurement.statistics.deviation import DeviationStatistics
from workers.measurement.statistics.order import median_magnitude
from workers.measurement.statistics.reduction import BINS, SHIFT, Reduction
from workers.measurement.statistics.transfers import HostCopies

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = {torch.float32: np.uint32, torch.bfloat16: np.uint16, torch.float16: np.uint16}
SHAPES = [
    (1, 1, 1),
    (2, 1, 5000),
    (3, 2, 1),
    (1, 3, 17),
    (2, 5, 16),
    (1, 9, 768),
    (1, 257, 33),
    (2, 256, 64),
    (1, 2500, 7),
]
EPSILON = 2.0**-53


def extended(x: torch.Tensor) -> np.ndarray:
    """Return x exactly, in extended precision, with 0 for what is not finite."""
    narrow = x.float().numpy()
    return np.where(np.isfinite(narrow), narrow, 0).astype(np.longdouble)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Values over a wide range, with a NaN, infinities, negative zero, a subnormal and values that fp16 cannot hold."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(3 * torch.randn(shape, generator=generator))
    special = [torch.nan, torch.inf, -torch.inf, -0.0, 2.0**-24, 1e-40, 65504.0, 65505.0, -70000.0, 6.0, -6.0]
    if x.numel() > 2 * len(special):
        where = torch.randperm(x.numel(), generator=generator)[: len(special)]
        x.view(-1)[where] = torch.tensor(special)
    return x.to(dtype)


def check_reduction(found: Reduction, x: torch.Tensor, threshold: float) -> None:
    """Hold a reduction against sums in extended precision and counts of numpy."""
    wide, narrow = extended(x), x.float().numpy()
    finite = np.isfinite(narrow)
    magnitudes = np.where(finite, np.abs(narrow), 0)
    assert (found.minimum.numpy() == np.where(finite, narrow, np.inf).min(axis=1)).all()
    assert (found.maximum.numpy() == np.where(finite, narrow, -np.inf).max(axis=1)).all()
    peaks = np.where(finite.any(axis=2), magnitudes.max(axis=2), np.nan)
    np.testing.assert_array_equal(found.token_abs_max.numpy(), peaks)
    assert (found.over.numpy() == (finite & (magnitudes >= np.float32(threshold))).sum(axis=1)).all()
    assert (found.missing.numpy() == (~finite).sum(axis=1)).all()
    assert (found.over_fp16.numpy() == (magnitudes > 65504).sum(axis=(1, 2))).all()
    bins = narrow[finite].view(np.uint32) >> np.uint32(18)
    assert (found.histogram.numpy() == np.bincount(bins, minlength=BINS)).all()
    v = wide - np.where(finite, extended(found.pivot)[:, None], 0)
    for power in (1, 2, 3, 4):
        scale = (np.abs(v) ** power).sum(axis=1)
        error = np.abs(found.power_sums.numpy()[:, power - 1] - (v**power).sum(axis=1))
        assert (error <= (x.shape[1] + 8) * EPSILON * scale).all(), power


def check_products(found: torch.Tensor, y: torch.Tensor, q: torch.Tensor) -> None:
    """Hold token products against sums in extended precision."""
    present = np.isfinite(y.float().numpy()) & np.isfinite(q.float().numpy())
    a, b = (np.where(present, extended(part), 0) for part in (y, q))
    terms = (a * a, b * b, a * b, (a - b) ** 2)
    for number, term in enumerate(terms):
        error = np.abs(found[number].numpy() - term.sum(axis=1))
        assert (error <= (y.shape[1] + 8) * EPSILON * np.abs(term).sum(axis=1)).all(), number
    peaks = np.where(present.any(axis=1), np.abs((a - b).astype(np.float64)).max(axis=1), np.nan)
    np.testing.assert_array_equal(found[4].numpy(), peaks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_and_plain_agree_with_numpy(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = random_tensor(shape, dtype)
    pivot = pivots(x)
    assert torch.equal(pivot, plain.pivots(x))
    assert pivot.isfinite().all()
    for reduce in (cpu_reduction.reduce, plain.reduce):
        check_reduction(reduce(x, pivot, 6.0), x, 6.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_histogram_by_itself_is_that_of_the_reduction(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = random_tensor(shape, dtype)
    whole = reduce_sequences(x, pivots(x), 6.0).histogram
    for tokens in (x.flatten(0, 1), x.flatten(0, 1).repeat_interleave(2, dim=0)[::2]):
        assert torch.equal(histogram(tokens), whole)
        assert torch.equal(plain.histogram(tokens), whole)
        magnitudes = tokens.float().abs()
        for number in {0, 127 * 32, *(magnitudes[magnitudes.isfinite()].view(torch.int32) >> SHIFT).tolist()[:40]}:
            wanted = magnitudes[magnitudes.contiguous().view(torch.int32) >> SHIFT == number].sort().values
            for find in (magnitudes_in_bin, plain.magnitudes_in_bin):
                found = find(lambda tokens=tokens: iter([tokens]), number, len(wanted))
                assert torch.equal(found.sort().values, wanted)


def median_of(x: torch.Tensor, copies: HostCopies) -> float:
    """Return the median magnitude of tokens [T, d]."""
    found: list[float] = []
    median_magnitude(x, copies, found.append)
    copies.finish()
    (median,) = found
    return median


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_median_magnitude_is_exact(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = copies_from_device(monkeypatch)
    x = random_tensor(shape, dtype).flatten(0, 1)
    for tokens in (x, x.repeat_interleave(2, dim=0)[::2], x.abs(), x.round(), x.sign(), x[:, : -(-x.shape[1] // 2)]):
        magnitudes = tokens.double().abs()
        wanted = np.median(magnitudes[magnitudes.isfinite()].numpy())
        assert [median_of(tokens, copies) for copies in (HostCopies(), late)] == [wanted, wanted]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", [[1, 2], [0, 5], [3, 3, 3], [1, 1.0625, 1.125], [-8, 2, 4, torch.nan, torch.inf]])
def test_a_median_may_lie_between_bins(values: list[float], dtype: torch.dtype) -> None:
    finite = [abs(value) for value in values if np.isfinite(value)]
    assert median_of(torch.tensor([values], dtype=dtype), HostCopies()) == np.median(finite)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_measured_stays_as_it_is(dtype: torch.dtype) -> None:
    x = random_tensor((2, 256, 64), dtype)
    bits = x.view(torch.int32 if dtype == torch.float32 else torch.int16)
    before = bits.clone()
    reduce_sequences(x, pivots(x), 6.0)
    assert torch.equal(bits, before)


LAYOUTS = {
    "columns of a wider tensor": lambda x: torch.cat([x, x, x], dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "selected by an index": lambda x: torch.cat([x, x], dim=-1)[
        ..., torch.arange(2 * x.shape[-1]).flip(0)[::2].flip(0)
    ],
    "every other token": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "channels apart": lambda x: x.repeat_interleave(3, dim=2)[..., ::3],
    "tokens before sequences": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "one sequence seen twice": lambda x: x[:1].expand(2, -1, -1),
    "leading part of a longer storage": lambda x: torch.cat([x.flatten(), x.flatten()])[5 : 5 + x.numel()].view(
        x.shape
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_read_right(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](random_tensor((3, 21, 19), dtype))
    check_reduction(reduce_sequences(x, pivots(x), 6.0), x, 6.0)
    y, q = x.reshape(-1, 19), LAYOUTS[layout](random_tensor((3, 21, 19), torch.bfloat16, seed=1)).reshape(-1, 19)
    check_products(token_products(y, q), y, q)
    check_products(token_products(y.T, q.T), y.T, q.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern_is_decoded_to_the_bit(dtype: torch.dtype) -> None:
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype).view(1, 1, -1)
    found = reduce_sequences(x, torch.zeros(1, 1 << 16), 6.0)
    finite = x[0].isfinite()
    assert torch.equal(found.missing == 1, ~finite)
    for figure in (found.minimum, found.maximum):
        assert torch.equal(figure[finite].view(torch.int32), x[0][finite].float().view(torch.int32))
    check_reduction(found, x, 6.0)


def patterns(dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    """Tensors of any bit patterns whatever."""
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 20))
    arrays = hnp.arrays(INTEGERS[dtype], shapes)
    return arrays.map(lambda bits: torch.from_numpy(bits).view(dtype))


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(DTYPES).flatmap(patterns), st.floats(0, 1e6, width=32))
def test_any_patterns_are_reduced_right(x: torch.Tensor, threshold: float) -> None:
    check_reduction(reduce_sequences(x, pivots(x), threshold), x, threshold)
    check_reduction(plain.reduce(x, plain.pivots(x), threshold), x, threshold)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(DTYPES).flatmap(patterns), st.sampled_from(DTYPES), st.integers(0, 9))
def test_products_of_any_patterns(y: torch.Tensor, dtype: torch.dtype, seed: int) -> None:
    y = y.flatten(0, 1)
    q = random_tensor(tuple(y.shape), dtype, seed)
    for products in (cpu_products.token_products, plain.token_products):
        check_products(products(y, q), y, q)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_nothing_depends_on_the_number_of_threads() -> None:
    x = random_tensor((3, 1300, 37), torch.float32)
    y, q = x.flatten(0, 1), x.flatten(0, 1).bfloat16()
    found = []
    for number in (1, 2, 7):
        torch.set_num_threads(number)
        found.append((*reduce_sequences(x, pivots(x), 6.0), token_products(y, q)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_sequence_is_reduced_alike_alone_and_among_others() -> None:
    x = random_tensor((4, 700, 12), torch.bfloat16)
    together = reduce_sequences(x, pivots(x), 6.0)
    alone = [reduce_sequences(s[None], pivots(s[None]), 6.0) for s in x]
    for name in Reduction._fields[:-1]:
        assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in alone])), name
    assert torch.equal(together.histogram, sum(part.histogram for part in alone))


def test_kernels_may_run_in_several_threads_at_once() -> None:
    inputs = [random_tensor((2, 600, 40), torch.float16, seed) for seed in range(6)]
    found: list[Reduction | None] = [None] * len(inputs)

    def work(number: int) -> None:
        found[number] = reduce_sequences(inputs[number], pivots(inputs[number]), 6.0)

    running = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for x, reduction in zip(inputs, found, strict=True):
        assert reduction is not None
        check_reduction(reduction, x, 6.0)


def test_a_failure_in_any_thread_is_seen() -> None:
    def work(_: int, first: int, last: int) -> None:
        if first <= 3 < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        split_range(4, work)


@pytest.mark.usefixtures("threads")
def test_work_inside_work_gets_the_threads_that_are_free() -> None:
    torch.set_num_threads(3)
    most, running, lock = 0, 0, threading.Lock()

    def inner(_: int, first: int, last: int) -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01 * (last - first))
        with lock:
            running -= 1

    def outer(item: int) -> int:
        split_range(4, inner)
        return item

    for _ in range(3):
        assert map_in_threads(outer, range(5)) == [0, 1, 2, 3, 4]
    assert 2 <= most <= 3
    most = 0
    split_range(4, inner)  # all threads came back
    assert most >= 2


def test_a_pivot_is_typical_though_one_token_is_not() -> None:
    x = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0)) + 100
    x[:, 0] = 1e6
    assert (pivots(x) - 100).abs().max() < 3
    x[0, :, 2] = torch.nan
    assert pivots(x)[0, 2] == 0


def test_no_tokens_add_nothing_to_a_deviation() -> None:
    y = torch.tensor([[3.0, 4.0]])
    statistics = DeviationStatistics()
    statistics.add(y[:0], y[:0])
    statistics.add(y, 2 * y)
    assert statistics.deviation().relative_l2 == 1
    assert token_products(y[:0], y[:0]).shape == (5, 0)


def test_what_cannot_be_read_is_refused_by_name() -> None:
    x = torch.zeros(1, 2, 3)
    with pytest.raises(
        ValueError, match=r"x: torch\.float64; allowed are torch\.float32, torch\.bfloat16, torch\.float16"
    ):
        reduce_sequences(x.double(), torch.zeros(1, 3), 6.0)
    with pytest.raises(ValueError, match=r"x: shape \[2, 3\]; 3 dimensions are needed"):
        pivots(x[0])
    with pytest.raises(ValueError, match=r"x: shape \[1, 0, 3\]; no dimension may be 0"):
        reduce_sequences(x[:, :0], torch.zeros(1, 3), 6.0)
    with pytest.raises(ValueError, match=r"q: \[2, 2\] on cpu; it must be like y, \[2, 3\] on cpu"):
        token_products(x[0], x[0, :, :2])


MOMENTS = """
import numpy as np
from workers.measurement.statistics.moments import ChannelTotals
from workers.measurement.statistics.reduction import Reduction
g = np.random.default_rng(0)
n, d = 40, 192
pivot, sums = g.normal(size=(n, d)).astype(np.float32), np.abs(g.normal(size=(n, 4, d))) * 50
counts = np.zeros((2, n, d), np.int32)
reduction = Reduction(pivot, pivot, pivot, sums, *counts, np.zeros(n), np.zeros((n, 50)), np.zeros(0))
moments = ChannelTotals.none(pivot[0]).add(reduction)
print(b"".join(moment.tobytes() for moment in moments).hex())
"""
DIVERGENCE = """
import torch
from workers.measurement.statistics.cpu.divergence import compare_logits, score_logits
g = torch.Generator().manual_seed(0)
p, noise = torch.randn(2, 40, 4999, generator=g)
ids = torch.arange(40)
scores = score_logits(4 * p, ids)
print(scores.numpy().tobytes().hex(), compare_logits(4 * p, scores[0], 4 * p + noise, ids).numpy().tobytes().hex())
"""
PRODUCTS = """
import torch
from workers.measurement.statistics.cpu.products import token_products
from workers.measurement.statistics.cpu.reaching import token_limits
x = torch.randn(2, 40, 577, generator=torch.Generator().manual_seed(0))
print(token_products(x[0], x[1]).numpy().tobytes().hex(), token_limits(x, 3.0).numpy().tobytes().hex())
"""


@pytest.mark.parametrize(
    ("code", "kernel"),
    [(MOMENTS, "moments._add_sequences"), (DIVERGENCE, "divergence._compare"), (PRODUCTS, "products._token_products")],
)
def test_a_kernel_gives_the_same_in_the_process_that_compiles_it_and_from_the_cache(
    code: str, kernel: str, tmp_path: Path
) -> None:
    """A function that another one calls may be compiled twice; sums in any order then differ in their last digit."""
    environment = dict(os.environ) | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    first, second = (subprocess.run(command, env=environment, check=True, capture_output=True).stdout for _ in "12")
    assert list(tmp_path.rglob(f"{kernel}*.nbi"))
    assert len(first) > 1000
    assert first == second


def test_a_kernel_whose_file_has_no_place_for_a_cache_is_compiled_without() -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def doubled(n):\n    return 2 * n\n", "<nowhere>", "exec"), namespace)
    doubled = namespace["doubled"]
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(doubled)
    assert compiled()(doubled)(21) == 42
