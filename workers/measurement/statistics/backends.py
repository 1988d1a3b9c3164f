"""One reading of a tensor, by whatever is fastest where the tensor is.

In host memory that is a compiled kernel (`cpu_reduction`, `cpu_products`), on CUDA a fused one (`triton_kernels`), and
plain torch (`plain`) anywhere else. All give the same figures: counts, extremes and histograms to the bit, sums to
the rounding of float64.

    N sequences of S tokens, d channels; T tokens
"""

import importlib.util
from functools import cache

import torch

from workers.measurement.statistics import cpu_histogram, cpu_products, cpu_reduction, cpu_typical, plain
from workers.measurement.statistics.patterns import DTYPES
from workers.measurement.statistics.reduction import Reduction


def reduce_sequences(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction:
    """Reduce sequences to the parts that their statistics are made of.

    Args:
        x: [N, S, d], none of them 0; bfloat16, float16 or float32, with any strides. Read as it is, where it is.
        pivot: [N, d], float32, finite, on the same device: power sums are taken about it. Near a channel's mean it
            saves the digits that moments about zero would lose where the mean is far larger than the spread.
        threshold: magnitude at or over which a value counts in `over`; compared as float32.

    Power sums are float64 throughout: their error is below (S + 8) * 2^-53 of the sum of the terms' magnitudes.
    """
    _check("x", x, dimensions=3)
    if x.numel() == 0:
        raise ValueError(f"x: shape {list(x.shape)}; no dimension may be 0")
    if x.device.type == "cpu":
        return cpu_reduction.reduce(x, pivot, threshold)
    if _has_triton(x.device):
        from workers.measurement.statistics import triton_kernels

        return triton_kernels.reduce(x, pivot, threshold)
    return plain.reduce(x, pivot, threshold)


def typical(x: torch.Tensor) -> torch.Tensor:
    """Return a typical value of every channel of sequences [N, S, d], [N, d], float32 and finite.

    It is the median of three medians of three tokens, values that are not finite taken as 0: the same to the bit on
    every device.
    """
    _check("x", x, dimensions=3)
    if x.numel() == 0:
        raise ValueError(f"x: shape {list(x.shape)}; no dimension may be 0")
    return cpu_typical.typical(x) if x.device.type == "cpu" else plain.typical(x)


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Return how many values of tokens [T, d] each bin holds, [16384], int64; as in a `Reduction` of them."""
    _check("x", x, dimensions=2)
    return cpu_histogram.histogram(x) if x.device.type == "cpu" else plain.histogram(x)


def magnitudes_in_bin(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return the magnitudes of tokens [T, d] that lie in a bin of positive values, in no certain order; float32."""
    _check("x", x, dimensions=2)
    if x.device.type == "cpu":
        return cpu_histogram.magnitudes_in_bin(x, number)
    return plain.magnitudes_in_bin(x, number)


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2, |q|^2, <y, q>, |y - q|^2 and max |y - q| of every token, [5, T], float64, on their device.

    y and q: [T, d], where T may be 0; bfloat16, float16 or float32, each in its own dtype and with any strides.
    Elements where either is not finite are left out; in a token without any other, max |y - q| is NaN.
    """
    _check("y", y, dimensions=2)
    _check("q", q, dimensions=2)
    if (y.shape, y.device) != (q.shape, q.device):
        raise ValueError(f"q: {list(q.shape)} on {q.device}; it must be like y, {list(y.shape)} on {y.device}")
    if y.numel() == 0:
        return y.new_zeros((5, len(y)), dtype=torch.float64)
    if y.device.type == "cpu":
        return cpu_products.token_products(y, q)
    if _has_triton(y.device):
        from workers.measurement.statistics import triton_kernels

        return triton_kernels.token_products(y, q)
    return plain.token_products(y, q)


def _check(name: str, x: torch.Tensor, dimensions: int) -> None:
    if x.ndim != dimensions:
        raise ValueError(f"{name}: shape {list(x.shape)}; {dimensions} dimensions are needed")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: {x.dtype}; allowed are {', '.join(str(dtype) for dtype in DTYPES)}")


@cache
def _has_triton(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None
