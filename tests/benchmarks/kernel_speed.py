"""What a tensor's statistics cost, beside the same figures by separate torch operations and the product it feeds.

    python tests/benchmarks/kernel_speed.py [--sequences 8] [--tokens 256] [--channels 1024] [--runs 9] [--device cpu]
    python tests/benchmarks/kernel_speed.py --check-cuda

Nanoseconds per element, medians; every round times each once in turn, so that a busy machine slows all alike. The
matrix product is [N * S, d] x [d, d] in the tensor's own dtype. `--check-cuda` compares the Triton kernels with plain
torch instead; without a GPU it does so in Triton's interpreter if TRITON_INTERPRET=1 is set.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import program_environment  # noqa: F401  (before torch)
import torch

from workers.measurement.statistics import backends, plain
from workers.measurement.statistics.reduction import Reduction

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
THRESHOLD = 6.0


def reduce_by_operations(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The figures of a reduction by one torch operation each, in float32, as a hook would take them."""
    x = x.float()
    magnitudes = x.abs()
    centred = x - x.mean(dim=1, keepdim=True)
    squares = centred.square()
    bins = (x.view(torch.int32) >> 18) & 0x3FFF
    return (
        x.amin(dim=1),
        x.amax(dim=1),
        centred.sum(dim=1),
        squares.sum(dim=1),
        (squares * centred).sum(dim=1),
        squares.square().sum(dim=1),
        (magnitudes >= THRESHOLD).sum(dim=1),
        x.isfinite().sum(dim=1),
        (magnitudes > 65504).sum(),
        magnitudes.amax(dim=2),
        torch.bincount(bins.flatten(), minlength=1 << 14),
    )


def products_by_operations(y: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The five products of every token by one torch operation each, in float32."""
    y, q = y.float(), q.float()
    e = y - q
    return y.square().sum(1), q.square().sum(1), (y * q).sum(1), e.square().sum(1), e.abs().amax(1)


def time_once(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, until its results are there."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, runs: int) -> dict[str, object]:
    """Nanoseconds per element of each way, and kernels' shares of the matrix product."""
    x = torch.randn(shape, device=device).to(dtype)
    y = x.flatten(0, 1)
    q = (y.float() * (1 + 0.01 * torch.randn_like(y, dtype=torch.float32))).to(dtype)
    weight = torch.randn(shape[2], shape[2], device=device).to(dtype)
    ways: dict[str, Callable[[], object]] = {
        "reduction": lambda: backends.reduce_sequences(x, backends.typical(x), THRESHOLD),
        "reduction by torch operations": lambda: reduce_by_operations(x),
        "token products": lambda: backends.token_products(y, q),
        "token products by torch operations": lambda: products_by_operations(y, q),
        "matrix product": lambda: y @ weight,
    }
    if (dtype, device.type) == (torch.float16, "cpu"):
        del ways["matrix product"]  # torch has no fast one, and nobody runs a model that way
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, work in ways.items():
            seconds[name].append(time_once(work, device))
    rounds = {name: taken[1:] for name, taken in seconds.items()}  # the first compiles and warms up
    result: dict[str, object] = {
        name: round(statistics.median(taken) / x.numel() * 1e9, 4) for name, taken in rounds.items()
    }
    for name in ("reduction", "token products") if "matrix product" in rounds else ():
        shares = [a / b for a, b in zip(rounds[name], rounds["matrix product"], strict=True)]
        result[f"{name} / matrix product"] = round(statistics.median(shares), 3)
    return result


def worst_difference(found: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> float:
    """The largest difference, relative to the sum of the magnitudes of what was added."""
    return float(((found - wanted).abs() / scale.clamp_min(torch.finfo(torch.float64).tiny)).max())


def check_triton(device: torch.device) -> dict[str, float]:
    """Compare the Triton kernels with plain torch; return the worst relative error of their sums.

    Raises:
        AssertionError: a figure that must be equal to the bit is not, or a sum is off by more than its rounding.
    """
    from workers.measurement.statistics import triton_kernels

    worst = {"power sums": 0.0, "token products": 0.0}
    for number, shape in enumerate([(1, 1, 1), (3, 17, 5), (2, 130, 300), (1, 300, 513), (2, 2100, 64)]):
        for dtype in DTYPES.values():
            torch.manual_seed(number)
            x = (torch.randn(shape) * torch.exp(4 * torch.randn(shape))).to(dtype).to(device)
            if x.numel() > 8:
                x.view(-1)[:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40, 70000.0])
            pivot = plain.typical(x)
            wanted, found = (module.reduce(x, pivot, THRESHOLD) for module in (plain, triton_kernels))
            for name in Reduction._fields:
                if name != "power_sums" and not torch.equal(getattr(wanted, name), getattr(found, name)):
                    raise AssertionError(f"{name} of {shape} {dtype} differs")
            v = torch.where(x.isfinite(), x.double() - pivot.double()[:, None], 0).abs()
            scale = torch.stack([(v**power).sum(dim=1) for power in (1, 2, 3, 4)], dim=1)
            error = worst_difference(found.power_sums, wanted.power_sums, scale)
            worst["power sums"] = max(worst["power sums"], error)
            y = x.flatten(0, 1)
            q = (y.float() * 1.01).to(torch.bfloat16)
            wanted_products, found_products = (module.token_products(y, q) for module in (plain, triton_kernels))
            error = worst_difference(found_products, wanted_products, wanted_products.abs())
            worst["token products"] = max(worst["token products"], error)
    if max(worst.values()) > 1e-12:
        raise AssertionError(f"sums differ: {worst}")
    return worst


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("sequences", 8), ("tokens", 256), ("channels", 1024), ("runs", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--check-cuda", action="store_true", help="compare the Triton kernels with plain torch")
    options = parser.parse_args()
    if options.check_cuda:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not (torch.cuda.is_available() or interpreted):
            sys.exit("--check-cuda: there is no CUDA device; TRITON_INTERPRET=1 runs the kernels without one")
        device = torch.device("cpu" if interpreted else "cuda")
        found: dict[str, object] = {"equal": True, "interpreted": interpreted, "worst": check_triton(device)}
        print(json.dumps(found, indent=1))
        return
    shape = (options.sequences, options.tokens, options.channels)
    rows = {name: measure(shape, dtype, options.device, options.runs) for name, dtype in DTYPES.items()}
    where = {"shape": shape, "device": str(options.device), "threads": torch.get_num_threads(), "runs": options.runs}
    print(json.dumps(where | {"nanoseconds per element": rows}, indent=1))


if __name__ == "__main__":
    main()
