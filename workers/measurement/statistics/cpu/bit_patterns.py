"""Hands tensors to compiled kernels as bit patterns in one flat stretch of memory, and decodes them row by row.

bfloat16 is the upper half of a float32, so a shift decodes it. A float16 needs its exponent moved by 112, and its
subnormals, which float32 holds as normal numbers, are whole multiples of 2^-24. Magnitudes order as their patterns
do, so the largest pattern of a row, sign aside, also shows whether all of the row is finite.

    d channels
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.statistics.cpu.compiling import compiled

MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
NAN = np.uint32(0x7FC00000)
FLOAT32, BFLOAT16, FLOAT16 = range(3)
"""How a pattern stands for a number."""
KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
DTYPES = tuple(KINDS)
"""The dtypes that are read as they are."""


class Patterns(NamedTuple):
    """A tensor's elements as integers."""

    flat: npt.NDArray[Any]
    """uint16 or uint32: all memory from the first element to the last, gaps of a strided tensor included."""
    kind: int
    """FLOAT32, BFLOAT16 or FLOAT16."""
    strides: tuple[int, ...]
    """Elements from one index to the next, of every dimension but the last, which is contiguous."""


def patterns(x: torch.Tensor) -> Patterns:
    """Return the patterns of a tensor in host memory; copies it only if its last dimension is not contiguous."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    wide = x.dtype == torch.float32
    bits = x.detach().view(torch.int32 if wide else torch.int16)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(bits.shape, bits.stride(), strict=True))
    flat = bits.as_strided((extent,), (1,)).numpy().view(np.uint32 if wide else np.uint16)
    return Patterns(flat, KINDS[x.dtype], x.stride()[:-1])


def rows(x: torch.Tensor, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return some of the tokens of x [T, d], in host memory, as float32, [p, d]."""
    decoded = np.empty((len(positions), x.shape[1]), np.uint32)
    _decode_rows(*patterns(x), positions, decoded)
    return decoded.view(np.float32)


@compiled()
def _decode_rows(flat: Any, kind: Any, strides: Any, positions: Any, out: Any) -> None:  # pragma: no cover - compiled
    for row, position in enumerate(positions):
        first = position * strides[0]
        decode(flat[first : first + out.shape[1]], kind, out[row])


@compiled()
def decode(row: Any, kind: Any, out: Any) -> Any:  # pragma: no cover - compiled
    """Write the float32 patterns of a row [d] to `out` [d]; return the largest pattern, sign aside."""
    # Integers of 32 bits become 64 wherever they meet; brought back each time, twice as many fit into a vector.
    peak = np.uint32(0)
    if kind == BFLOAT16:
        for c in range(row.shape[0]):
            bits = np.uint32(np.uint32(row[c]) << np.uint32(16))
            out[c] = bits
            peak = max(peak, np.uint32(bits & MAGNITUDE))
    elif kind == FLOAT32:
        for c in range(row.shape[0]):
            bits = np.uint32(row[c])
            out[c] = bits
            peak = max(peak, np.uint32(bits & MAGNITUDE))
    else:
        values = out.view(np.float32)
        for c in range(row.shape[0]):
            half = np.uint32(np.uint32(row[c]) & np.uint32(0x7FFF))
            values[c] = np.float32(np.int32(half)) * np.float32(2.0**-24)
            shifted = np.uint32(half << np.uint32(13))
            normal, special = np.uint32(shifted + np.uint32(112 << 23)), np.uint32(shifted | INFINITY)
            magnitude = out[c] if half < np.uint32(0x0400) else normal if half < np.uint32(0x7C00) else special
            sign = np.uint32((np.uint32(row[c]) & np.uint32(0x8000)) << np.uint32(16))
            out[c] = np.uint32(magnitude | sign)
            peak = max(peak, magnitude)
    return peak
