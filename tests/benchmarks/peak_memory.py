"""Peak resident memory of a measurement: set by one layer, and neither by the depth nor by the tokens.

    python tests/benchmarks/peak_memory.py depth [--layers 8 16] [--hidden 2048] [--intermediate 6144]
    python tests/benchmarks/peak_memory.py tokens [--sequences 4 16] [--layers 4] [--hidden 1024] [--intermediate 3072]

A bf16 Llama, reference with int8 and nf4. `tokens` gives the hidden states a budget of 1 MiB, so that they lie in
files. Each measurement is a process of its own; its peak is the operating system's account of that process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoints import make_text

DEFAULTS = {
    "depth": {"layers": [8, 16], "hidden": 2048, "intermediate": 6144, "sequences": [2], "length": 256},
    "tokens": {"layers": [4], "hidden": 1024, "intermediate": 3072, "sequences": [4, 16], "length": 256},
}


def main() -> None:
    """Print the size of each model and text beside the peak of its measurement, and the peaks' ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=DEFAULTS)
    for name in ("layers", "sequences"):
        parser.add_argument(f"--{name}", type=int, nargs="+")
    for name in ("hidden", "intermediate", "length"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    for name, value in DEFAULTS[options.what].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    memory = ["--memory", "1MiB"] if options.what == "tokens" else []
    peaks = []
    for layers in options.layers:
        for sequences in options.sequences:
            with tempfile.TemporaryDirectory() as directory:
                found = peak(Path(directory), layers, sequences, options, memory)
            print(json.dumps(found), flush=True)
            peaks.append(found["peak_resident_gb"])
    print(json.dumps({"last peak / first": round(peaks[-1] / peaks[0], 3)}))


def peak(
    root: Path, layers: int, sequences: int, options: argparse.Namespace, arguments: list[str]
) -> dict[str, float]:
    """Measure a model of this depth on so many sequences, in a process of its own."""
    sizes = f"layers={layers}, hidden={options.hidden}, intermediate={options.intermediate}"
    code = "import sys; from pathlib import Path; from checkpoints import make_llama; "
    code += f"make_llama(Path(sys.argv[1]), {sizes})"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, str(root / "model")], check=True, cwd=here, capture_output=True)
    request = {
        "model": {"path": str(root / "model")},
        "calibration": {"path": str(make_text(root / "text.txt", sequences * options.length))},
        "sequences": sequences,
        "sequence_length": options.length,
    }
    (root / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "workers.measurement", str(root / "request.json"), str(root / "out"), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((root / "out/report.json").read_text())
    return {
        "layers": layers,
        "model_gb": round(report["model"]["weight_bytes"] / 1e9, 3),
        "tokens": report["calibration"]["tokens"],
        "peak_resident_gb": round(report["timing"]["peak_memory_bytes"]["resident"] / 1e9, 3),
    }


if __name__ == "__main__":
    main()
