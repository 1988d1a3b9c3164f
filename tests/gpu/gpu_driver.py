"""Runs the steps one after another and writes what they find; see run.sh. Uses the standard library alone."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from gpu_forking import preload
from gpu_prepare import NotReady, prepare
from gpu_running import Interruption, Result, not_run, run_step
from gpu_steps import DRY_SECONDS, STEPS, TOTAL_SECONDS, Step
from gpu_table import write_table


@dataclass(frozen=True)
class Run:
    """A run under way."""

    out: Path
    scratch: Path
    environment: Mapping[str, str]
    dry: bool = False
    deadline: float = field(default_factory=lambda: time.monotonic() + TOTAL_SECONDS)
    interruption: Interruption = field(default_factory=Interruption)
    lock: Lock = field(default_factory=Lock)

    def step(self, step: Step) -> Result:
        """Run a step, unless there is no time left for it, and write its line and the table."""
        left = self.deadline - time.monotonic()
        if self.interruption.signal_name is not None:
            result = not_run(step, f"not begun: interrupted by {self.interruption.signal_name}")
        elif left <= 1:
            result = not_run(step, "not begun: no time was left")
        else:
            limit = left - 3 if step.until_the_end else step.budget_seconds
            result = self._run(step, min(left, DRY_SECONDS if self.dry else limit))
        self._write(result)
        return result

    def _run(self, step: Step, limit: float) -> Result:
        logs = self.out / "logs"
        logs.mkdir(exist_ok=True)
        options = ["--device", "cpu" if self.dry else "cuda:0", "--scratch", str(self.scratch)]
        options += ["--dry"] if self.dry else []
        environment: Mapping[str, str] | None = self.environment
        if self.dry:
            environment = {**self.environment, "TRITON_INTERPRET": "1"} if step.interpreted else None
        return run_step(step, options, limit, logs / f"{step.name}.txt", environment, self.interruption)

    def _write(self, result: Result) -> None:
        with self.lock:
            with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
                file.flush()
                os.fsync(file.fileno())
            write_table(self.out / "gpu.jsonl", self.out / "gpu.md", dry=self.dry)
            reason = f": {result['error']}" if "error" in result else ""
            print(f"{result['step']}: {result['status']} in {result['seconds']} s{reason}", flush=True)


def run_steps(run: Run, steps: Sequence[Step]) -> int:
    """Run the steps and return the exit status. Two at a time in a dry run, where nothing is timed for its own sake."""
    (run.out / "gpu.jsonl").write_text("")
    with ThreadPoolExecutor(2 if run.dry else 1) as pool:
        results = list(pool.map(run.step, steps))
    bad = [result for result in results if result["status"] not in ("ok", "skipped")]
    return 1 if bad else 0


def main(arguments: Sequence[str]) -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(prog="run.sh", description="Proves Headroom on a GPU; see tests/gpu/run.sh.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--scratch", type=Path, help="a folder on a fast local disk for 20 GB of checkpoints")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.scratch is not None:
        given.scratch.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + TOTAL_SECONDS
    interruption = Interruption()
    interruption.listen()
    with tempfile.TemporaryDirectory(prefix="headroom-gpu-", dir=given.scratch) as directory:
        scratch = Path(directory)
        try:
            environment = prepare(scratch / "site", os.environ.get("WHEELS")) | {"TMPDIR": str(scratch)}
        except NotReady as error:
            print(f"run.sh: {error}", file=sys.stderr)
            return 2
        if given.dry:
            environment["OMP_NUM_THREADS"] = "1"  # two steps share the processor then
            preload(environment)
        run = Run(given.out.absolute(), scratch, environment, given.dry, deadline, interruption)
        return run_steps(run, STEPS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
