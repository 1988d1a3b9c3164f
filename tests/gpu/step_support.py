"""What the steps share: their arguments, what they say to the driver, and how they take times.

Imported before torch: it puts the repository and the tests' helpers on the path.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT), str(ROOT / "tests/benchmarks"), str(ROOT / "tests/workers/measurement")]

SCHEMES = ("int8", "nf4")
"""Those that are measured."""


class Skip(Exception):
    """The step cannot run here; the message says why."""


@dataclass(frozen=True)
class Context:
    """What a step works with."""

    device: str
    dry: bool
    scratch: Path
    """Deleted when the whole run ends; the steps share it."""
    given: argparse.Namespace
    """The step's own options."""
    out: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def on_cuda(self) -> bool:
        """Whether there is a device whose clock and memory can be asked for."""
        return self.device.startswith("cuda")

    def figure(self, name: str, value: float | int | str | None, unit: str = "", at_most: float | None = None) -> None:
        """Tell a figure at once, with the goal that it is held to; None where it could not be found."""
        said: dict[str, Any] = {"figure": name, "value": value, "unit": unit}
        if at_most is not None:
            judged = isinstance(value, float | int) and not self.dry  # the goals are a GPU's
            said |= {"at_most": at_most, "met": value <= at_most if judged else None}
        self._say(said)

    def detail(self, name: str, value: Any) -> None:
        """Tell what belongs into gpu.jsonl, and not into the table."""
        self._say({"detail": name, "value": value})

    def problem(self, text: str) -> None:
        """Tell what is wrong; the step goes on, and has failed."""
        self._say({"problem": text})

    def _say(self, said: dict[str, Any]) -> None:
        print(json.dumps(said), file=self.out, flush=True)


def run(
    work: Callable[[Context], None], add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None
) -> None:
    """Run a step as the driver's child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    add_options(parser)
    given = parser.parse_args()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs to the log
    context = Context(given.device, given.dry, given.scratch, given, lines)
    if context.on_cuda:
        import torch

        if not torch.cuda.is_available():
            sys.exit("no CUDA device is seen; --dry runs on the CPU")
    try:
        work(context)
    except Skip as error:
        context._say({"skipped": str(error)})


def quiet() -> None:
    """Prepare the libraries as the measuring program does; imports them."""
    from workers.measurement.runtime.environment import settle_environment

    settle_environment()
    from workers.measurement.__main__ import quiet_libraries

    quiet_libraries()


def tell_replaced(context: Context) -> None:
    """Tell which CUDA kernels plain torch stood in for in this process, which is a fault."""
    from workers.measurement.statistics import backends

    for name, why in backends.replaced().items():
        context.problem(f"plain torch stood in for the kernel {name}: {why}"[:300])


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes, from an idle device until its results are there."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: str) -> None:
    """Wait until the device has done everything."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def median_seconds(ways: Sequence[Callable[[], object]], device: str, rounds: int) -> float:
    """Return the median time of a kernel over different inputs in turn, so that no cache holds them.

    On CUDA by the device's own clock: what the host takes to ask for it does not count where the device is behind.
    """
    for way in ways[:2]:  # compiles
        way()
    turns = [ways[i % len(ways)] for i in range(rounds)]
    if not device.startswith("cuda"):
        return statistics.median(seconds(way, device) for way in turns)
    import torch

    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in turns]
    wait(device)
    for way, (before, after) in zip(turns, marks, strict=True):
        before.record()
        way()
        after.record()
    wait(device)
    return statistics.median(before.elapsed_time(after) for before, after in marks) / 1e3
