"""Two measurements side by side, each on a device of its own, beside one alone: neither may slow the other or differ.

In a dry run both are on the CPU.
"""

import json
import time
from pathlib import Path

from big_models import checkpoint, random_tokens
from measuring_process import differing_tables, read_report, request_fields, start_measuring
from step_support import Context, Skip, run


def requests(context: Context, devices: list[str]) -> list[str]:
    """Return a request for every device, of the same model and text: those of the costs, where they were measured."""
    shape = (4, 32) if context.dry else (32, 2048)
    path, tokens = checkpoint(context, "1b"), random_tokens(context, "1b-short", shape)
    return [json.dumps(request_fields(path, tokens, shape, device, batch_sequences=2)) for device in devices]


def measure_all(requests: list[str], outs: list[Path]) -> list[float]:
    """Measure all of it at once; return the seconds of every measurement."""
    processes = [start_measuring(request, out) for request, out in zip(requests, outs, strict=True)]
    for process in processes:
        process.communicate()
    if any(statuses := [process.returncode for process in processes]):
        raise RuntimeError(f"the measurements ended with {statuses}")
    return [float(read_report(out)["timing"]["wall_seconds"]) for out in outs]


def devices_seen() -> int:
    """Return how many CUDA devices there are."""
    import torch

    return torch.cuda.device_count()


def compare(context: Context) -> None:
    """Tell what two measurements at once take, beside one."""
    if context.on_cuda and (count := devices_seen()) < 2:
        raise Skip(f"{count} device is seen, 2 are needed")
    devices = ["cuda:0", "cuda:1"] if context.on_cuda else ["cpu", "cpu"]
    both, outs = requests(context, devices), [context.scratch / f"pair-{number}" for number in range(3)]
    started = time.monotonic()
    at_once = measure_all(both, outs[:2])
    context.figure("two at once, seconds until both are done", time.monotonic() - started)
    if differing := differing_tables(outs[0], outs[1]):
        context.problem(f"the two devices' tables differ: {'; '.join(differing)}")
    if context.on_cuda:
        (alone,) = measure_all(both[:1], outs[2:])
        context.figure("the slower of two at once / one alone", max(at_once) / alone)


if __name__ == "__main__":
    run(compare)
