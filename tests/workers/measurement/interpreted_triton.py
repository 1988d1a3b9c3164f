"""Calls functions of `statistics.cuda` in a process of its own, where Triton interprets their kernels on the host.

    python interpreted_triton.py CALLS RESULTS      (the calls and the results are files of torch.save)

Triton decides when it is imported whether it compiles or interprets, so a process cannot do both.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

Call = tuple[str, str, tuple[Any, ...]]
"""Module of `statistics.cuda`, function, arguments."""


def call_interpreted(calls: list[Call], directory: Path) -> list[Any]:
    """Return what each call gives."""
    inputs, results = directory / "calls.pt", directory / "results.pt"
    torch.save(calls, inputs)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, str(inputs), str(results)]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], check=True)
    return list(torch.load(results))


def main(inputs: str, results: str) -> None:
    """Make the calls."""
    answers = []
    for module, function, arguments in torch.load(inputs):
        kernels = importlib.import_module(f"workers.measurement.statistics.cuda.{module}")
        answers.append(getattr(kernels, function)(*arguments))
    torch.save(answers, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
