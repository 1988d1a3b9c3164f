"""Defines the result of quantizing a projection, and the ranges of rows in which weights are quantized.

A weight is quantized a range of rows at a time, so that temporaries (wider dtypes, codes before they are packed) take
the memory of a range and not of the weight, and fit into the processor's caches.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Settings = Mapping[str, float | int | str | bool]

_RANGE_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
_RANGE_ROWS = 64
"""Ranges begin at multiples of this, so that whatever the width, a range begins with a whole block of 64 elements."""


class Refused(Exception):
    """A kernel cannot quantize a projection; the message names the value and what is allowed."""


@dataclass(frozen=True)
class QuantizedProjection:
    """A projection after quantization."""

    module: nn.Module
    """Takes and gives what the projection did."""
    dequantized: Callable[[slice], torch.Tensor]
    """From one of `row_ranges` to what the stored weight stands for there, [rows, in]."""
    nbytes: int
    """Bytes of the stored weight with its scales; the bias is not counted."""
    path: str
    """The code path that computes it, where there are several that differ in the last digits."""


def row_ranges(weight: torch.Tensor, block: int = 1) -> Iterator[slice]:
    """Yield ranges of rows of a weight [out, in] that together are all of it, in order.

    Every range begins with a whole block of `block` elements, a power of two.
    """
    rows, columns = weight.shape
    multiple = max(_RANGE_ROWS, block // math.gcd(block, max(1, columns)))
    step = max(1, _RANGE_ELEMENTS[weight.device.type] // (max(1, columns) * multiple)) * multiple
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def with_bias(module: Any, bias: torch.Tensor | None) -> nn.Module:
    """Give a quantized module a copy of a bias [out], if there is one, and make it ready to run."""
    if bias is not None:
        # A copy, for bitsandbytes casts the bias in place to the type it computes in.
        module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    quantized: nn.Module = module.eval().requires_grad_(False)
    return quantized
