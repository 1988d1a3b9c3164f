"""What comparing predictions costs on top of the output head's matrix products.

    python tests/benchmarks/divergence_cost.py [--hidden 640] [--vocabulary 262144] [--positions 256] [--runs 5]

The reference and two schemes, as many positions at a time as a measurement takes: the head's three products alone, then
the same with the figures of every position (log-sum-exp, KL divergence, most likely token, true token). Every round
times both in turn. Also the largest distance of a divergence from the same in float64 by torch, in nats.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import program_environment  # noqa: F401  (before torch)
import torch

from workers.measurement.predictions.comparison import LOGIT_BYTES
from workers.measurement.statistics.backends import compare_logits, score_logits

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SCHEMES = 2


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, object]:
    """Time the products alone and with the figures; compare a divergence with float64."""
    torch.manual_seed(0)
    weight = (torch.randn(options.vocabulary, options.hidden) / 24).to(dtype)
    reference = torch.randn(options.positions, options.hidden)
    variants = [(reference + 0.1 * torch.randn_like(reference)).to(dtype) for _ in range(SCHEMES)]
    reference = reference.to(dtype)
    next_ids = torch.randint(options.vocabulary, (options.positions,))
    step = max(1, LOGIT_BYTES["cpu"] // (options.vocabulary * dtype.itemsize))
    chunks = [slice(first, first + step) for first in range(0, options.positions, step)]

    def products() -> None:
        for chunk in chunks:
            for hidden in (reference, *variants):
                hidden[chunk] @ weight.T

    def figures() -> None:
        for chunk in chunks:
            logits = reference[chunk] @ weight.T
            scores = score_logits(logits, next_ids[chunk])
            for hidden in variants:
                compare_logits(logits, scores[0], hidden[chunk] @ weight.T, next_ids[chunk])

    rounds = [(seconds(products), seconds(figures)) for _ in range(options.runs + 1)][1:]  # the first compiles
    logits, scheme = reference[:8] @ weight.T, variants[0][:8] @ weight.T
    kl = compare_logits(logits, score_logits(logits, next_ids[:8])[0], scheme, next_ids[:8])[3]
    log_p, log_q = (torch.log_softmax(one.double(), dim=-1) for one in (logits, scheme))
    return {
        "products, s": round(statistics.median(alone for alone, _ in rounds), 3),
        "with the figures / products": round(statistics.median(whole / alone for alone, whole in rounds), 3),
        "positions at a time": step,
        "largest distance from float64, nats": float((kl - (log_p.exp() * (log_p - log_q)).sum(dim=-1)).abs().max()),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 640), ("vocabulary", 262_144), ("positions", 256), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(json.dumps(vars(options) | {name: measure(options, dtype) for name, dtype in DTYPES.items()}, indent=1))


if __name__ == "__main__":
    main()
