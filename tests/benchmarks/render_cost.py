"""What drawing a large report costs: time, memory, size of the bundle, and how long a browser takes to open the page.

    python tests/benchmarks/render_cost.py [--layers 32] [--runs 5] [--processes N] [--each]

The report is that of a Llama of 7B parameters, made up (`synthetic_report.py`): 2.2 million channel rows at 32 layers.
Drawing is `python -m workers.reporting` from start to end; its memory is what it and its children hold together, shared
pages counted once. Opening is until the load event of headless Chromium.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from synthetic_report import Shape, SyntheticReport

from workers.bundle import report_files, write_bundle
from workers.reporting.drawing import style
from workers.reporting.figures.registry import FIGURES
from workers.reporting.loading import load

sys.path.insert(0, str(Path(__file__).parents[1] / "workers" / "reporting"))

from devtools import Browser

SAMPLE_SECONDS = 0.1
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    """Print medians over the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--processes", type=int, help="how many draw at once; default: as the program decides")
    parser.add_argument("--each", action="store_true", help="print what each figure costs instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        SyntheticReport(Shape(layers=options.layers), root / "report").write()
        print(json.dumps(each(root) if options.each else whole(root, options), indent=1))


def whole(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """Draw the report several times, and open it as often."""
    runs = [drawn(root / "report", options.processes) for _ in range(options.runs)]
    write_bundle(report_files(root / "report"), root / "bundle.zip")
    return {
        "seconds": round(statistics.median(seconds for seconds, _ in runs), 2),
        "slowest seconds": round(max(seconds for seconds, _ in runs), 2),
        "peak memory, MB": round(max(peak for _, peak in runs) / 1e6),
        "bundle, MB": round((root / "bundle.zip").stat().st_size / 1e6, 1),
        "report.html, MB": round((root / "report" / "report.html").stat().st_size / 1e6, 2),
        "opening, seconds": round(statistics.median(opened(root / "report" / "report.html", options.runs)), 3),
    }


def drawn(report: Path, processes: int | None) -> tuple[float, float]:
    """Draw a report; return the seconds, and the peak of the memory in bytes."""
    command = [sys.executable, "-m", "workers.reporting", str(report)]
    command += ["--processes", str(processes)] if processes else []
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, held_by(psutil.Process(process.pid)))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"drawing ended with {process.returncode}")
    return time.perf_counter() - started, peak


def held_by(process: psutil.Process) -> float:
    """Return the proportional set size of a process and its children."""
    held = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            held += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return held


def opened(page: Path, runs: int) -> list[float]:
    """Open the page in a browser several times; return the seconds until each load event."""
    profile = Path(tempfile.mkdtemp(prefix="headroom-browser-"))
    try:
        with Browser(profile) as browser:
            seconds = []
            for _ in range(runs):
                browser.show(page, width=1280, height=900)
                seconds.append(browser.evaluate(f"new Promise(done => setTimeout(() => done({LOADED}), 200))") / 1000)
            return seconds
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def each(root: Path) -> dict[str, dict[str, float]]:
    """Draw the figures one module after the other in this process; return what each module costs in CPU time."""
    source = load(root / "report")
    (root / "figures").mkdir()
    found = {}
    for draw in FIGURES:
        started = time.process_time()
        with style.applied():
            drawings = tuple(draw(source))
        prepared = time.process_time()
        saved = [drawing.save(root / "figures") for drawing in drawings]
        size = sum((root / file).stat().st_size for figure in saved for file in figure.files)
        found[draw.__module__.rpartition(".")[2]] = {
            "figures": len(saved),
            "drawing, CPU seconds": round(prepared - started, 2),
            "saving, CPU seconds": round(time.process_time() - prepared, 2),
            "files, MB": round(size / 1e6, 2),
        }
    return found


if __name__ == "__main__":
    main()
