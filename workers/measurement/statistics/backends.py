"""Reads a tensor once for its statistics, by whatever kernel is fastest where the tensor is.

In host memory that is a compiled kernel (the `cpu_` modules), on CUDA one of `cuda`, and plain torch (`plain`) anywhere
else. All give the same figures: counts, extremes and histograms to the bit, sums to the rounding of float64. A CUDA
kernel that cannot be compiled or launched is replaced by plain torch for the rest of the process, and `replaced` says
so: a measurement may become slower, but does not fail.

    N sequences of S tokens, d channels; T tokens; n positions, V vocabulary
"""

import importlib
from typing import Any

import torch

from workers.measurement.errors import first_line
from workers.measurement.runtime.memory import is_fatal
from workers.measurement.statistics import plain
from workers.measurement.statistics.cpu import divergence as cpu_divergence
from workers.measurement.statistics.cpu import histogram as cpu_histogram
from workers.measurement.statistics.cpu import pivots as cpu_pivots
from workers.measurement.statistics.cpu import products as cpu_products
from workers.measurement.statistics.cpu import reaching as cpu_reaching
from workers.measurement.statistics.cpu import reduction as cpu_reduction
from workers.measurement.statistics.cpu.bit_patterns import DTYPES
from workers.measurement.statistics.reduction import Reduction, Stream

CUDA_KERNELS = {
    "reduce": "reduction",
    "pivots": "reduction",
    "histogram": "histogram",
    "magnitudes_in_bin": "histogram",
    "token_products": "products",
    "channel_products": "channels",
    "token_limits": "hits",
    "count_reaching": "hits",
    "note_hits": "hits",
    "score_logits": "divergence",
    "compare_logits": "divergence",
}
"""From a function of `plain` to the module of `cuda` that has one of the same name, which a kernel computes."""
_replaced: dict[str, str] = {}


def reduce_sequences(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction[torch.Tensor]:
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
    reduction: Reduction[torch.Tensor] = on_device("reduce", x.device, x, pivot, threshold)
    return reduction


def pivots(x: torch.Tensor) -> torch.Tensor:
    """Return a pivot, a typical value, of every channel of sequences [N, S, d], [N, d], float32 and finite.

    It is the median of three medians of three tokens, values that are not finite taken as 0: the same to the bit on
    every device.
    """
    _check("x", x, dimensions=3)
    if x.numel() == 0:
        raise ValueError(f"x: shape {list(x.shape)}; no dimension may be 0")
    return cpu_pivots.pivots(x) if x.device.type == "cpu" else _tensor("pivots", x.device, x)


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Return how many values of tokens [T, d] each bin holds, [16384], int64; as in a `Reduction` of them."""
    _check("x", x, dimensions=2)
    return cpu_histogram.histogram(x) if x.device.type == "cpu" else _tensor("histogram", x.device, x)


def magnitudes_in_bin(stream: Stream, number: int, count: int) -> torch.Tensor:
    """Return the magnitudes of tokens that lie in a bin of positive values, [count], float32, in no certain order.

    Args:
        stream: gives one or more tensors [T, d], on one device.
        number: of the bin.
        count: how many there are, as the stream's histogram says of the bin and its negative counterpart.
    """
    device = _check("x", next(iter(stream())), dimensions=2).device
    if device.type == "cpu":
        return torch.cat([cpu_histogram.magnitudes_in_bin(x, number) for x in stream()])
    return _tensor("magnitudes_in_bin", device, stream, number, count)


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2, |q|^2, <y, q>, |y - q|^2 and max |y - q| of every token, [5, T], float64, on their device.

    y and q: [T, d], where T may be 0; bfloat16, float16 or float32, each in its own dtype and with any strides.
    Elements where either is not finite are left out; in a token without any other, max |y - q| is NaN.
    """
    _check("y", y, dimensions=2)
    _check_alike("q", q, "y", y)
    if y.numel() == 0:
        return y.new_zeros((5, len(y)), dtype=torch.float64)
    return cpu_products.token_products(y, q) if y.device.type == "cpu" else _tensor("token_products", y.device, y, q)


def channel_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2 and |y - q|^2 of every channel of y and q [T, d], [2, d], float64, on their device.

    y and q: bfloat16, float16 or float32. Elements where either is not finite are left out.
    """
    _check("y", y, dimensions=2)
    _check_alike("q", q, "y", y)
    if y.numel() == 0:
        return y.new_zeros((2, y.shape[1]), dtype=torch.float64)
    on_host = y.device.type == "cpu"
    return cpu_products.channel_products(y, q) if on_host else _tensor("channel_products", y.device, y, q)


def token_limits(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return `factor`, as float32, times the root mean square of every token's finite values, [N, S], float32.

    x: [N, S, d], none of them 0. The root mean square is float64, and the product is rounded once, to the nearest
    float32 or the smallest above 0. A token without a finite value other than 0 has the limit infinity.
    """
    _check("x", x, dimensions=3)
    on_host = x.device.type == "cpu"
    return cpu_reaching.token_limits(x, factor) if on_host else _tensor("token_limits", x.device, x, factor)


def count_reaching(x: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many finite values of x [N, S, d] have a magnitude at or over their token's limit, [N, d], int32.

    limits: [N, S], float32, on the same device, 0 or more; compared as float32.
    """
    _check("x", x, dimensions=3)
    on_host = x.device.type == "cpu"
    return cpu_reaching.count_reaching(x, limits) if on_host else _tensor("count_reaching", x.device, x, limits)


def note_hits(
    x: torch.Tensor, dimensions: torch.Tensor, count: int, limits: torch.Tensor, kept_bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Note every value of some dimensions of tokens [T, d] that reaches its token's limit.

    Args:
        x: bfloat16, float16 or float32.
        dimensions: [k], int64, on the same device.
        count: how many values reach it.
        limits: [T], float32, on the same device; compared as float32.
        kept_bits: top bits of a value's float32 pattern that its key keeps.

    Returns:
        A bit for every token, [k, bytes], uint8, the first token in the highest bit; the largest magnitude of every
        dimension, [k], float32; and a key for every value, [count], int64, in no certain order: dimension << kept_bits
        | top bits.
    """
    _check("x", x, dimensions=2)
    noted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = on_device(
        "note_hits", x.device, x, dimensions, count, limits, kept_bits
    )
    return noted


def score_logits(logits: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Return log-sum-exp, most likely token and logit of the next token, [3, n], float64, on their device.

    logits: [n, V], bfloat16, float16 or float32; next_ids: [n], int64, on the same device. Of several most likely
    tokens the first. Where a logit is NaN or +inf, log-sum-exp is NaN and the most likely token -1. Exponentials and
    their sums are float64.
    """
    _check("logits", logits, dimensions=2)
    if logits.device.type == "cpu":
        return cpu_divergence.score_logits(logits, next_ids)
    return _tensor("score_logits", logits.device, logits, next_ids)


def compare_logits(
    reference: torch.Tensor, log_sum_exp: torch.Tensor, scheme: torch.Tensor, next_ids: torch.Tensor
) -> torch.Tensor:
    """Return the scheme's three figures as `score_logits` does, and KL(reference || scheme) in nats, [4, n].

    reference and scheme: [n, V] logits; log_sum_exp: [n], of the reference's. The divergence is NaN or infinite where
    it does not exist; a token that the reference rules out (-inf) adds nothing to it. Exponentials and their sums are
    float64, which leaves it within 1e-9 nats.
    """
    _check("reference", reference, dimensions=2)
    _check_alike("scheme", scheme, "reference", reference)
    arguments = (reference, log_sum_exp, scheme, next_ids)
    if scheme.device.type == "cpu":
        return cpu_divergence.compare_logits(*arguments)
    return _tensor("compare_logits", scheme.device, *arguments)


def replaced() -> dict[str, str]:
    """Return the CUDA kernels that plain torch stands in for in this process, and why."""
    return dict(_replaced)


def replace_kernel(name: str, why: str) -> None:
    """Have plain torch compute what a CUDA kernel of `CUDA_KERNELS` would."""
    _replaced[name] = why


def _tensor(name: str, device: torch.device, *arguments: Any) -> torch.Tensor:
    figures: torch.Tensor = on_device(name, device, *arguments)
    return figures


def on_device(name: str, device: torch.device, *arguments: Any) -> Any:
    """Return what a kernel of `CUDA_KERNELS` gives, or plain torch where the device has none or it does not work."""
    if device.type == "cuda" and name not in _replaced:
        try:
            kernels = importlib.import_module(f"workers.measurement.statistics.cuda.{CUDA_KERNELS[name]}")
            return getattr(kernels, name)(*arguments)
        except Exception as error:  # compilers and drivers fail in as many ways as there are machines
            if is_fatal(error):
                raise
            replace_kernel(name, f"{type(error).__name__}: {first_line(error)}")
    return getattr(plain, name)(*arguments)


def _check(name: str, x: torch.Tensor, dimensions: int) -> torch.Tensor:
    if x.ndim != dimensions:
        raise ValueError(f"{name}: shape {list(x.shape)}; {dimensions} dimensions are needed")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: {x.dtype}; allowed are {', '.join(str(dtype) for dtype in DTYPES)}")
    return x


def _check_alike(name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    _check(name, x, dimensions=other.ndim)
    if (x.shape, x.device) != (other.shape, other.device):
        raise ValueError(
            f"{name}: {list(x.shape)} on {x.device}; it must be like {other_name}, "
            f"{list(other.shape)} on {other.device}"
        )
