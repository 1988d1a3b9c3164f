"""What the statistics cost on top of the forward pass that they watch.

    python tests/benchmarks/reference_cost.py [--layers 12] [--hidden 768] [--runs 5] [--device cpu]

In every round, in turn, each between two passes of the bare model without its head: that pass with the textbook's hook
on every Linear, which takes the same figures by separate torch operations; the sweep's reference stream with every
statistic and no scheme, layer by layer, each in place before its time begins, as all are in the bare model; and that
part of a whole measurement, with the reading of the layers from disk, the check that they are finite, and the writing
of their rows. Ratios are to the mean of the two bare passes. The checkpoint is bf16, and float32 once more on a CPU.
"""

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import program_environment  # noqa: F401  (before torch)
import torch
from checkpoints import make_llama, make_text
from kernel_speed import reduce_by_operations
from torch import nn
from transformers import AutoModelForCausalLM

from service.contracts.request import Analysis, MeasurementRequest
from workers.measurement.__main__ import quiet_libraries
from workers.measurement.layers.layer_pass import LayerPass
from workers.measurement.layers.sweep import prepare_sweep
from workers.measurement.layers.sweep_state import Batch
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.loading import load_decoder
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter


def bare(model: nn.Module, token_ids: torch.Tensor) -> None:
    """Run the tokens [N, S] through the model without its head."""
    with torch.no_grad():
        model.model(input_ids=token_ids, use_cache=False)  # type: ignore[operator,union-attr]


def hooked(model: nn.Module, token_ids: torch.Tensor) -> None:
    """The same, with a hook on every Linear of the layers that takes the figures of its input and its output."""

    def hook(_: nn.Module, positional: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for x in (positional[0], output):
            figures = reduce_by_operations(x)
            assert len(figures) > 0

    linears = [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    handles = [linear.register_forward_hook(hook) for linear in linears]
    try:
        bare(model, token_ids)
    finally:
        for handle in handles:
            handle.remove()


def reference_stream(path: Path, token_ids: torch.Tensor, device: str, scratch: Path) -> float:
    """Seconds that the tokens [N, S] take through the layers, measured on the way."""
    decoder = load_decoder(open_checkpoint(path), torch.device(device), scratch)
    batches = [Batch(token_ids)]
    state = prepare_sweep(decoder, batches, [], Analysis(), budget_bytes=2**31, directory=scratch)
    taken = 0.0
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            taken += seconds(LayerPass(state, index, layer).run, device)
    return taken


def whole_stage(path: Path, text: Path, shape: tuple[int, int], device: str, out: Path) -> float:
    """Seconds of a measurement's sweep over the reference alone."""
    request = MeasurementRequest.model_validate(
        {
            "model": {"path": path},
            "calibration": {"path": text},
            "schemes": [],
            "sequences": shape[0],
            "sequence_length": shape[1],
            "batch_sequences": shape[0],
            "device": device,
        }
    )
    reporter = ProgressReporter(out=io.StringIO())
    measure(request, out, reporter)
    shutil.rmtree(out)
    return reporter.stage_seconds["sweep"]


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds that one call takes, until its results are there."""
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def rounds(path: Path, text: Path, options: argparse.Namespace) -> dict[str, object]:
    """Time each way in turn, a bare pass before and after; return medians, and ratios to the two bare passes."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval().to(options.device)
    shape, device = (options.sequences, options.length), options.device
    token_ids = torch.randint(200, shape, device=device)
    ways = {
        "textbook hooks": lambda: seconds(lambda: hooked(model, token_ids), device),
        "reference stream": lambda: reference_stream(path, token_ids, device, path.parent / "scratch"),
        "with reading and writing": lambda: whole_stage(path, text, shape, device, path.parent / "out"),
    }
    taken: dict[str, list[float]] = {"bare": [], **{name: [] for name in ways}}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(options.runs + 1):
        before = seconds(lambda: bare(model, token_ids), device)
        for name, way in ways.items():
            own, after = way(), seconds(lambda: bare(model, token_ids), device)
            if run:  # the first compiles and warms up
                taken[name].append(own)
                taken["bare"].append(after)
                ratios[name].append(2 * own / (before + after))
            before = after
    return {
        "seconds": {name: round(statistics.median(found), 3) for name, found in taken.items()},
        **{f"{name} / bare": round(statistics.median(found), 3) for name, found in ratios.items()},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("hidden", 768), ("runs", 5), ("sequences", 8), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    options = parser.parse_args()
    quiet_libraries()
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            width = options.hidden * 8 // 3 // 64 * 64
            sizes = {"layers": options.layers, "hidden": options.hidden, "intermediate": width}
            parameters = make_llama(root / "model", **sizes, dtype=getattr(torch, dtype))
            text = make_text(root / "text.txt", options.sequences * options.length)
            found = rounds(root / "model", text, options)
            print(json.dumps({"dtype": dtype, "parameters": parameters, **found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
