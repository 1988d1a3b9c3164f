"""Peak resident memory of a measurement at two depths: it should not grow with the number of layers.

    python tests/benchmarks/peak_memory.py [--depths 8 16] [--hidden 2048]

Each measurement is a process of its own; its peak is the operating system's account of that process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoints import make_text


def main() -> None:
    """Print the size of each model beside the peak of its measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16])
    for name, default in (("hidden", 2048), ("sequences", 2), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    for depth in options.depths:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(peak(Path(directory), depth, options)), flush=True)


def peak(root: Path, depth: int, options: argparse.Namespace) -> dict[str, float]:
    """Measure a model of this depth in a process of its own."""
    code = "import sys; from pathlib import Path; from checkpoints import make_llama; "
    code += f"make_llama(Path(sys.argv[1]), layers={depth}, hidden={options.hidden}, intermediate={options.hidden * 4})"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, str(root / "model")], check=True, cwd=here, capture_output=True)
    request = {
        "model": {"path": str(root / "model")},
        "calibration": {"path": str(make_text(root / "text.txt", options.sequences * options.length))},
        "sequences": options.sequences,
        "sequence_length": options.length,
    }
    (root / "request.json").write_text(json.dumps(request))
    arguments = [sys.executable, "-m", "workers.measurement", str(root / "request.json"), str(root / "out")]
    subprocess.run(arguments, check=True, capture_output=True)
    report = json.loads((root / "out/report.json").read_text())
    resident = report["timing"]["peak_memory_bytes"]["resident"]
    size = report["model"]["weight_bytes"]
    return {"layers": depth, "model_gb": round(size / 1e9, 3), "peak_resident_gb": round(resident / 1e9, 3)}


if __name__ == "__main__":
    main()
