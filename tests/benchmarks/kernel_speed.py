"""What a tensor's statistics cost, beside the same figures by separate torch operations and the product it feeds.

    python tests/benchmarks/kernel_speed.py [--sequences 8] [--tokens 256] [--channels 1024] [--runs 9] [--device cpu]

Nanoseconds per element, medians; every round times each once in turn, so that a busy machine slows all alike. The
matrix product is [N * S, d] x [d, d] in the tensor's own dtype.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import program_environment  # noqa: F401  (before torch)
import torch

from workers.measurement.statistics import backends

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
THRESHOLD = 6.0


def reduce_by_operations(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The figures of a reduction by one torch operation each, in float32, as a hook would take them."""
    x = x.float()
    magnitudes = x.abs()
    centered = x - x.mean(dim=1, keepdim=True)
    squares = centered.square()
    bins = (x.view(torch.int32) >> 18) & 0x3FFF
    return (
        x.amin(dim=1),
        x.amax(dim=1),
        centered.sum(dim=1),
        squares.sum(dim=1),
        (squares * centered).sum(dim=1),
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
        "reduction": lambda: backends.reduce_sequences(x, backends.pivots(x), THRESHOLD),
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


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("sequences", 8), ("tokens", 256), ("channels", 1024), ("runs", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    shape = (options.sequences, options.tokens, options.channels)
    rows = {name: measure(shape, dtype, options.device, options.runs) for name, dtype in DTYPES.items()}
    where = {"shape": shape, "device": str(options.device), "threads": torch.get_num_threads(), "runs": options.runs}
    print(json.dumps(where | {"nanoseconds per element": rows}, indent=1))


if __name__ == "__main__":
    main()
