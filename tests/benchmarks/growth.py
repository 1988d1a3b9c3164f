"""How the time of a measurement grows with the layers and with the tokens: a straight line, if all is well.

    python tests/benchmarks/growth.py [--hidden 384] [--runs 3]

A float32 checkpoint, reference with int8 and nf4. Only what grows is timed: the sweep and the comparison of
predictions. For each of the two, the points, the line of least squares through them, and the largest distance of a
point from the line as a share of the point.
"""

import argparse
import io
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import program_environment  # noqa: F401  (before torch)
import torch
from checkpoints import make_llama, make_text

from service.contracts.request import MeasurementRequest
from workers.measurement.__main__ import quiet_libraries
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

LAYERS = (4, 8, 16, 24)
SEQUENCES = (4, 8, 16, 32)
LENGTH = 128


def seconds(model: Path, text: Path, sequences: int, out: Path) -> float:
    """Seconds of a measurement's sweep and divergence."""
    request = MeasurementRequest.model_validate(
        {
            "model": {"path": model},
            "calibration": {"path": text},
            "sequences": sequences,
            "sequence_length": LENGTH,
            "batch_sequences": 4,
        }
    )
    reporter = ProgressReporter(out=io.StringIO())
    measure(request, out, reporter)
    return reporter.stage_seconds["sweep"] + reporter.stage_seconds["divergence"]


def line(sizes: tuple[int, ...], taken: list[list[float]]) -> dict[str, object]:
    """Fit a line through the medians of `taken`, [runs][sizes]."""
    x, y = np.array(sizes, float), np.array([statistics.median(run) for run in zip(*taken, strict=True)])
    slope, intercept = np.polyfit(x, y, 1)
    off = np.abs(slope * x + intercept - y) / y
    return {
        "sizes": list(sizes),
        "seconds": [round(value, 3) for value in y],
        "seconds per unit": round(slope, 4),
        "seconds at zero": round(intercept, 3),
        "largest distance from the line": round(float(off.max()), 3),
    }


def main() -> None:
    """Print both lines as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        text = make_text(root / "text.txt", max(SEQUENCES) * LENGTH)
        for layers in LAYERS:
            sizes = {"layers": layers, "hidden": options.hidden, "intermediate": options.hidden * 8 // 3}
            make_llama(root / str(layers), **sizes, vocabulary=1024, dtype=torch.float32)
        points = [(layers, SEQUENCES[1]) for layers in LAYERS] + [(LAYERS[1], count) for count in SEQUENCES]
        runs = [
            [seconds(root / str(layers), text, count, root / f"{run}-{k}") for k, (layers, count) in enumerate(points)]
            for run in range(options.runs + 1)
        ][1:]  # the first compiles and warms up
        depth = line(LAYERS, [run[: len(LAYERS)] for run in runs])
        tokens = line(tuple(LENGTH * count for count in SEQUENCES), [run[len(LAYERS) :] for run in runs])
        print(json.dumps({"layers": depth, "tokens": tokens}, indent=1))


if __name__ == "__main__":
    main()
