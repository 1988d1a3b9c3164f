"""Formats and grids against oracles that know nothing of them: enumerated codes, and rounding by exact fractions."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.contracts.schemes import SCHEMES
from workers.measurement.quantization.formats import NUMBERS, round_to_format
from workers.measurement.quantization.grid import Grid, Steps, cut, joined
from workers.measurement.quantization.scales import shared_exponent_scale

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
SIMULATED = [scheme for scheme in SCHEMES.values() if scheme.simulated]
GRIDS = {
    f"{scheme.name} {role}": grid
    for scheme in SIMULATED
    for role in ("weight", "input")
    if (grid := Grid.of(scheme.settings, role))
}


def e4m3_codes() -> list[float]:
    """The value of every code with the sign bit clear, from its bits; the last is NaN."""
    values = []
    for code in range(128):
        exponent, mantissa = code >> 3, code & 7
        if code == 0x7F:
            values.append(math.nan)
        elif exponent == 0:
            values.append(mantissa / 8 * 2.0**-6)
        else:
            values.append((1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return values


def nearest(x: float, magnitudes: Sequence[float]) -> float:
    """The nearest of the values +-magnitudes; of two equally near, that with the even code."""
    best = min(range(len(magnitudes)), key=lambda code: (abs(Fraction(magnitudes[code]) - Fraction(abs(x))), code % 2))
    return math.copysign(magnitudes[best], x)


def interesting(magnitudes: Sequence[float]) -> list[float]:
    """Every value, every midpoint, and the float32 neighbors of both, of either sign."""
    points = {*magnitudes, *((a + b) / 2 for a, b in itertools.pairwise(magnitudes))}
    ends = np.array(sorted(points), np.float32)
    near = [ends, np.nextafter(ends, np.float32(np.inf)), np.nextafter(ends, np.float32(0))]
    found = np.concatenate(near)
    return [float(x) for x in np.concatenate([found, -found, np.float32([1e-40, 1e-30, 1e30, 3e38])])]


@pytest.mark.parametrize(
    ("name", "magnitudes"),
    [
        ("e4m3", e4m3_codes()[:-1]),
        ("e2m1", E2M1),
        ("int8", [float(n) for n in range(128)]),
        ("int4", [float(n) for n in range(8)]),
    ],
)
def test_rounding_takes_the_nearest_value_and_the_even_of_two(name: str, magnitudes: list[float]) -> None:
    points = interesting(magnitudes)
    rounded = round_to_format(torch.tensor(points), NUMBERS[name]).tolist()
    assert rounded == [nearest(x, magnitudes) for x in points]


def test_unsigned_integers_end_at_zero_and_fifteen() -> None:
    points = [-3.0, -0.5, 0.5, 1.5, 2.5, 14.5, 15.5, 99.0]
    assert round_to_format(torch.tensor(points), NUMBERS["uint4"]).tolist() == [0, 0, 0, 2, 2, 14, 15, 15]


def test_e4m3_has_the_values_of_torchs_type() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    enumerated = e4m3_codes()
    assert torch.equal(codes[:127], torch.tensor(enumerated[:127]))
    assert codes[127].isnan()
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(5)) * 100
    x = torch.cat([x.clamp(-448, 448), x * 1e-4])
    assert torch.equal(round_to_format(x, NUMBERS["e4m3"]), x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("name", NUMBERS)
def test_rounding_saturates_and_keeps_nan(name: str) -> None:
    number = NUMBERS[name]
    ends = round_to_format(torch.tensor([math.inf, -math.inf, 1e38, -1e38, math.nan]), number)
    assert ends[:4].tolist() == [number.highest, number.lowest, number.highest, number.lowest]
    assert ends[4].isnan()


@pytest.mark.parametrize(
    "abs_max", [0.0, 2.0**-149, 1e-40, 2.0**-126, 1e-20, 0.99, 1.0, 3.999999, 4.0, 5.0, 6.0, 7.999999, 8.0, 3.4e38]
)
def test_the_shared_exponent_is_the_specifications(abs_max: float) -> None:
    abs_max = float(np.float32(abs_max))
    exponent = -127
    while exponent < 127 and Fraction(2) ** (exponent + 1 + 2) <= Fraction(abs_max):
        exponent += 1
    groups = torch.tensor([[[0.0, -abs_max, abs_max / 2]]])
    assert shared_exponent_scale(groups, 6.0).double().item() == 2.0**exponent


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", GRIDS)
def test_what_is_not_finite_spoils_its_group_alone(name: str, bad: float) -> None:
    grid = GRIDS[name]
    x = torch.ones(2, 256)
    x[0, 3] = bad
    quantized = grid.quantize(x)
    width = grid.group if isinstance(grid.group, int) else 256
    assert quantized[0, :width].isnan().all()
    untouched = quantized[0, width:] if grid.group != "tensor" else quantized[:0]
    assert untouched.isfinite().all()
    assert quantized[1].isfinite().all() == (grid.group != "tensor")


def by_blocks(x: np.ndarray, size: int) -> list[tuple[int, slice]]:
    return [
        (row, slice(start, min(start + size, x.shape[1])))
        for row in range(len(x))
        for start in range(0, x.shape[1], size)
    ]


def symmetric(block: np.ndarray, highest: int, store: type) -> np.ndarray:
    scale = np.float32(store(np.abs(block).max() / np.float32(highest)))
    if scale == 0:
        return np.zeros_like(block)
    return np.float32([round(float(v)) for v in np.clip(block / scale, -highest, highest)]) * scale


def asymmetric(block: np.ndarray) -> np.ndarray:
    low, high = min(block.min(), np.float32(0)), max(block.max(), np.float32(0))
    scale = np.float32(np.float16((high - low) / np.float32(15)))
    if scale == 0:
        return np.zeros_like(block)
    zero = round(float(-low / scale))
    codes = [min(max(round(float(v)), 0), 15) for v in block / scale + np.float32(zero)]
    return np.float32([scale * np.float32(code - zero) for code in codes])


def fp8(block: np.ndarray) -> np.ndarray:
    scale = np.abs(block).max() / np.float32(448)
    if scale == 0:
        return np.zeros_like(block)
    return np.float32([nearest(float(v), e4m3_codes()[:-1]) for v in block / scale]) * scale


def mx(block: np.ndarray) -> np.ndarray:
    abs_max = float(np.abs(block).max())
    if abs_max == 0:
        return np.zeros_like(block)
    scale = 2.0 ** (math.frexp(abs_max)[1] - 1 - 2)
    return np.float32([nearest(float(v) / scale, E2M1) * scale for v in block])


WHOLE = 10**9
ORACLES = {
    "w8a8-tensor weight": (WHOLE, lambda block: symmetric(block, 127, np.float32)),
    "w8a8-token weight": (WHOLE, lambda block: symmetric(block, 127, np.float32)),
    "w8a8-token input": (WHOLE, lambda block: symmetric(block, 127, np.float32)),
    "int4-group128 weight": (128, asymmetric),
    "int4-group128-sym weight": (128, lambda block: symmetric(block, 7, np.float16)),
    "fp8-e4m3 weight": (WHOLE, fp8),
    "fp8-e4m3 input": (WHOLE, fp8),
    "mxfp4 weight": (32, mx),
}


@pytest.mark.parametrize("width", [1, 31, 32, 128, 300])
@pytest.mark.parametrize("name", ORACLES)
def test_a_grid_gives_what_the_oracle_gives_group_by_group(name: str, width: int) -> None:
    size, oracle = ORACLES[name]
    x = np.random.default_rng(width).standard_t(3, (6, width)).astype(np.float32)
    x[1] = 0  # a group of zeros
    x[2], x[4] = np.abs(x[2]), -np.abs(x[4])  # one sign alone
    x[3] *= np.float32(1e-30)  # scales that 16 bits cannot hold
    expected = np.zeros_like(x)
    for row, columns in by_blocks(x, size):
        expected[row, columns] = oracle(x[row, columns])
    np.testing.assert_array_equal(GRIDS[name].quantize(torch.from_numpy(x)).numpy(), expected)


def test_every_grid_of_a_scheme_has_an_oracle() -> None:
    assert GRIDS.keys() - ORACLES.keys() == {"w8a8-tensor input"}


def test_a_scale_for_the_whole_tensor_is_taken_over_the_batch() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)
    expected = symmetric(x.reshape(-1), 127, np.float32).reshape(x.shape)
    np.testing.assert_array_equal(GRIDS["w8a8-tensor input"].quantize(torch.from_numpy(x)).numpy(), expected)


rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 140)),
    elements=st.floats(-1000, 1000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-2),
)
grids = st.sampled_from(sorted(GRIDS)).map(GRIDS.__getitem__)


@settings(deadline=None, max_examples=60)
@given(x=rows, grid=grids)
def test_quantizing_again_on_the_same_steps_changes_nothing(x: np.ndarray, grid: Grid) -> None:
    groups = cut(torch.from_numpy(x), grid.group)
    steps = grid.steps(groups)
    values = grid.decode(grid.encode(groups, steps), steps)
    assert torch.equal(grid.decode(grid.encode(values, steps), steps), values)


@settings(deadline=None, max_examples=60)
@given(x=rows, grid=grids)
def test_the_error_is_at_most_half_a_step(x: np.ndarray, grid: Grid) -> None:
    number = grid.number
    groups = cut(torch.from_numpy(x), grid.group)
    steps: Steps = grid.steps(groups)
    values = grid.decode(grid.encode(groups, steps), steps)
    step = steps.scale.double() * number.smallest_step
    if number.mantissa_bits is not None:
        step = torch.maximum(step, groups.abs().double() * 2.0**-number.mantissa_bits)
    # float32 arithmetic, and that a scale rounded down in 16 bits leaves the end of the range a little outside.
    limit = step * 0.5 * (1 + 2.0**-5 if grid.scale.name == "float16" else 1 + 2.0**-16)
    if grid.scale.power_of_two:  # what lies between the largest value and the next power of two saturates
        limit = torch.where(groups.abs() > number.highest * steps.scale, 2 * steps.scale.double(), limit)
    assert ((values - groups).abs() <= limit).all()


@settings(deadline=None, max_examples=60)
@given(x=rows, grid=grids, exponent=st.integers(-3, 3))
def test_scaling_by_a_power_of_two_scales_the_result(x: np.ndarray, grid: Grid, exponent: int) -> None:
    # Magnitudes of 0.01 and more keep every scale above 2^-14, below which one in 16 bits loses digits.
    tensor = torch.from_numpy(x)
    assert torch.equal(grid.quantize(tensor * 2.0**exponent), grid.quantize(tensor) * 2.0**exponent)


@settings(deadline=None, max_examples=60)
@given(x=rows, grid=grids, seed=st.integers(0, 99))
def test_permuting_rows_permutes_the_result(x: np.ndarray, grid: Grid, seed: int) -> None:
    tensor = torch.from_numpy(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(grid.quantize(tensor[order]), grid.quantize(tensor)[order])


@settings(deadline=None, max_examples=40)
@given(x=rows, group=st.one_of(st.integers(1, 150), st.sampled_from(["channel", "tensor"])))
def test_groups_are_cut_and_joined_without_loss(x: np.ndarray, group: int | str) -> None:
    tensor = torch.from_numpy(x)
    groups = cut(tensor, group)  # type: ignore[arg-type]
    assert torch.equal(joined(groups, tensor.shape, group), tensor)  # type: ignore[arg-type]
    row = tensor.numel() // len(groups)
    size = group if isinstance(group, int) else row
    assert groups.shape[1:] == (-(-row // size), size)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("int4-group128 weight", (5, 300), 750 + 38),  # 15 groups of 16 + 4 bits
        ("int4-group128-sym weight", (5, 300), 750 + 30),
        ("mxfp4 weight", (3, 70), 105 + 9),
        ("mxfp4 weight", (1, 1), 1 + 1),
        ("w8a8-token weight", (3, 70), 210 + 12),
        ("fp8-e4m3 weight", (7, 33), 231 + 28),
        ("w8a8-tensor input", (2, 5, 24), 240 + 4),
    ],
)
def test_stored_bytes_count_codes_scales_and_zero_points(name: str, shape: tuple[int, ...], expected: int) -> None:
    assert GRIDS[name].nbytes(torch.Size(shape)) == expected


def test_a_name_that_is_no_format_is_an_error() -> None:
    with pytest.raises(KeyError, match="int3"):
        Grid.of({"weight_format": "int3", "weight_group": "channel", "weight_scale": "float32"}, "weight")
