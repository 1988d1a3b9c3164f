"""What harm costs beside the report that it stands in.

    python tests/benchmarks/harm_cost.py [MODEL] [--dtype bfloat16] [--sequences 16] [--length 256]
        [--runs 3] [--only KIND]

Of each: the seconds of the harm stage over those of a report without harm, on the same text and the same scheme, and
the peak of resident memory over that report's. `estimate` and `layers` are also held against their passes: the seconds
of as many forward passes of the model, measured by hand, as gradients and swaps are worth. Without MODEL a Llama of the
size of SmolLM2 is made, of type DTYPE. Every measurement is a process of its own; the runs take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import program_environment  # noqa: F401  (before torch)
import torch
from checkpoints import make_llama
from transformers import AutoModelForCausalLM

from workers.samples import CALIBRATION

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "estimate": {"estimate": True, "draws": 4},
    "dimensions": {"dimensions": True, "draws": 4},
    "layers": {"exact": "layers"},
}


def measured(root: Path, request: dict[str, Any]) -> dict[str, float]:
    """Return seconds of the whole and of the harm stage, and the peak of resident memory."""
    (root / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "workers.measurement", str(root / "request.json"), str(root / "out")]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    timing = json.loads((root / "out/report.json").read_text())["timing"]
    return {
        "seconds": seconds,
        "harm": timing["stage_seconds"].get("harm", 0.0),
        "peak": timing["peak_memory_bytes"]["resident"],
    }


def forward_seconds(model: Path, sequences: int, length: int) -> tuple[float, float]:
    """Return the seconds that the text takes through the layers, and through the head, sequence by sequence."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    token_ids = torch.randint(200, (sequences, length))
    seconds: dict[str, list[float]] = {"layers": [], "head": []}
    with torch.no_grad():
        for _ in range(5):
            started = time.perf_counter()
            hidden = [whole.model(input_ids=one, use_cache=False).last_hidden_state for one in token_ids.split(1)]
            between = time.perf_counter()
            for one in hidden:
                whole.lm_head(one)
            seconds["layers"].append(between - started)
            seconds["head"].append(time.perf_counter() - between)
    return statistics.median(seconds["layers"]), statistics.median(seconds["head"])


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    for name, default in (("sequences", 16), ("length", 256), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scheme", default="nf4")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the model that is made"
    )
    parser.add_argument("--only", choices=list(KINDS), action="append")
    options = parser.parse_args()
    kinds = ["plain", *(options.only or [kind for kind in KINDS if kind != "plain"])]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = options.model or root / "model"
        if options.model is None:
            dtype = getattr(torch, options.dtype)
            make_llama(model, layers=30, hidden=576, intermediate=1536, vocabulary=49152, dtype=dtype)
        request = {
            "model": {"path": str(model)},
            "calibration": {"path": str(CALIBRATION)},
            "sequences": options.sequences,
            "sequence_length": options.length,
            "schemes": [options.scheme],
        }
        for _ in range(options.runs):
            for kind in kinds:
                with tempfile.TemporaryDirectory(dir=root) as own:
                    runs[kind].append(measured(Path(own), request | {"harm": KINDS[kind]}))
                    print(kind, runs[kind][-1], file=sys.stderr, flush=True)
        layers, head = forward_seconds(model, options.sequences, options.length)
        depth = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    medians = {kind: {k: statistics.median(r[k] for r in of) for k in of[0]} for kind, of in runs.items()}
    plain = medians["plain"]
    ratios = {
        kind: {"stage / plain report": of["harm"] / plain["seconds"], "peak / plain report": of["peak"] / plain["peak"]}
        for kind, of in medians.items()
        if kind != "plain"
    }
    if "estimate" in ratios:
        # The states are recorded and computed again, the scheme's errors take a pass, and so does each draw's gradient.
        passes = (3 + KINDS["estimate"]["draws"]) * layers + 2 * head
        ratios["estimate"]["stage / its passes"] = medians["estimate"]["harm"] / passes
    if "layers" in ratios:
        # The scheme's swaps and those of rounding leave at every layer; one of nothing goes all the way.
        passes = (depth + 1 + 1) * layers + (2 * depth + 2) * head
        ratios["layers"]["stage / its passes"] = medians["layers"]["harm"] / passes
    print(json.dumps({"forward": {"layers": layers, "head": head}, "medians": medians, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
