"""What the sweep costs beside loading and running the reference, int8 and nf4 by hand.

    python tests/benchmarks/sweep_cost.py [--layers 12] [--hidden 768] [--runs 5] [--dtype bfloat16]

By hand means: `from_pretrained` and one forward pass for each of the three models, and nothing measured. The floor is
what no sweep can avoid: the same, with a second forward pass for each scheme, on the reference's inputs. Sweep and
hand are timed in turn in one process, imports and compilation excluded; ratios are taken pair by pair. The process
asks the C library for memory as the program does, which makes the passes by hand faster too.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import program_environment  # noqa: F401  (before torch)
import torch
from checkpoints import make_llama, make_text
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from service.contracts.request import MeasurementRequest
from workers.measurement.__main__ import quiet_libraries
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

NAMES = ("reference", "int8", "nf4")


def by_hand(path: Path, token_ids: torch.Tensor, dtype: str) -> dict[str, float]:
    """Seconds to load each model, and to run the tokens [N, S] through it: some do part of their loading at first."""
    int8 = BitsAndBytesConfig(load_in_8bit=True)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    seconds = {}
    for name, configuration in zip(NAMES, (None, int8, nf4), strict=True):
        started = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", quantization_config=configuration).eval()
        seconds[f"load {name}"] = time.perf_counter() - started
        for run in ("run", "run again"):
            started = time.perf_counter()
            with torch.no_grad():
                model(input_ids=token_ids, use_cache=False)
            seconds[f"{run} {name}"] = time.perf_counter() - started
        del model
    return seconds


def sweep(path: Path, text: Path, sequences: int, length: int, out: Path) -> dict[str, float]:
    """Seconds of a whole measurement, by stage."""
    request = MeasurementRequest.model_validate(
        {
            "model": {"path": path},
            "calibration": {"path": text},
            "sequences": sequences,
            "sequence_length": length,
        }
    )
    reporter = ProgressReporter(out=io.StringIO())
    started = time.perf_counter()
    measure(request, out, reporter)
    return reporter.stage_seconds | {"total": time.perf_counter() - started}


def main() -> None:
    """Print medians of every part, and of the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("hidden", 768), ("runs", 5), ("sequences", 8), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        parameters = make_llama(
            root / "model",
            layers=options.layers,
            hidden=options.hidden,
            intermediate=options.hidden * 8 // 3 // 64 * 64,
            dtype=getattr(torch, options.dtype),
        )
        text = make_text(root / "text.txt", options.sequences * options.length)
        token_ids = torch.randint(200, (options.sequences, options.length))
        rounds = []
        for number in range(options.runs + 1):
            hand = by_hand(root / "model", token_ids, options.dtype)
            swept = sweep(root / "model", text, options.sequences, options.length, root / f"out-{number}")
            once = sum(hand[f"{what} {name}"] for what in ("load", "run") for name in NAMES)
            sums = {"by hand": once, "floor": once + hand["run again int8"] + hand["run again nf4"]}
            rounds.append(sums | hand | {f"sweep: {k}": v for k, v in swept.items()})
        counted = rounds[1:]  # the first compiles and warms up
        medians = {name: round(statistics.median(r[name] for r in counted), 3) for name in counted[0]}
        print(
            json.dumps(
                {"dtype": options.dtype, "parameters": parameters, "seconds": medians, "ratios": ratios(counted)},
                indent=1,
            )
        )


def ratios(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median, smallest and largest ratio of the sweep to each of the sums."""
    found = {}
    for name in ("by hand", "floor"):
        pairs = [r["sweep: total"] / r[name] for r in rounds]
        found[f"to {name}"] = [round(f(pairs), 3) for f in (statistics.median, min, max)]
    return found


if __name__ == "__main__":
    main()
