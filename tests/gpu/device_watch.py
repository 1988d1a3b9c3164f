"""How well a layer's pass keeps the device busy: its idle time, its dearest operations, how often the host waits."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from step_support import Context, seconds, wait
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from workers.measurement.layers.layer_pass import LayerPass
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.decoder import Decoder

PROFILED = 2
"""Layers, after one that warms up."""
DEAREST = 10


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the intervals (begin, end) lasts, in their unit."""
    busy, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy


def watch_device(context: Context, decoder: Decoder, state: SweepState) -> None:
    """Tell the share of time in which the device is idle over a few layers, reading them included."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.on_cuda else [])]
    with decoder.resident(0) as layer:
        LayerPass(state, 0, layer).run()
    wait(context.device)

    def run() -> None:
        for index in range(1, 1 + PROFILED):
            with decoder.resident(index) as layer:
                LayerPass(state, index, layer).run()

    with profile(activities=activities, acc_events=True) as profiler:
        taken = seconds(run, context.device)
    kind = DeviceType.CUDA if context.on_cuda else DeviceType.CPU
    events = [e for e in profiler.events() if e.device_type == kind and not _is_copy(e.name)]
    # The profiler counts in microseconds.
    busy = busy_seconds((e.time_range.start, e.time_range.end) for e in events) / 1e6
    context.figure("device idle, share of the time while profiled", max(0.0, 1 - busy / taken), at_most=0.1)
    context.detail("dearest_operations", dearest(profiler.key_averages(), on_cuda=context.on_cuda))


def _is_copy(name: str) -> bool:
    """Tell whether an event is no computation: the next layer's copying hides no idle time."""
    return name.startswith(("Memcpy", "Memset"))


def dearest(averages: Sequence[Any], *, on_cuda: bool) -> list[dict[str, Any]]:
    """Return the operations that took the most time themselves, with milliseconds and calls."""
    kind = "device" if on_cuda else "cpu"
    of = {id(one): getattr(one, f"self_{kind}_time_total") / 1e3 for one in averages}
    ordered = sorted(averages, key=lambda one: of[id(one)], reverse=True)[:DEAREST]
    return [{"name": one.key[:120], "milliseconds": round(of[id(one)], 3), "calls": one.count} for one in ordered]


def count_waits(run: Callable[[], object], set_mode: Callable[[str], object]) -> Counter[str]:
    """Return where and how often the host waited for the device, as torch warns of it while `run` runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_mode("warn")
        try:
            run()
        finally:
            set_mode("default")
    waits = (warning for warning in caught if "synchronizing" in str(warning.message))
    return Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits)


def watch_host(context: Context, decoder: Decoder, small: SweepState, large: SweepState) -> None:
    """Tell how often the host waits for the device in a batch: the difference of passes of few and of many batches.

    bitsandbytes waits in every call of an int8 module, so only the reference has a goal.
    """
    schemes = ", ".join(scheme.name for scheme in large.schemes)
    name = f"host synchronizations per measured batch, {f'with {schemes}' if schemes else 'reference'}"
    goal = None if schemes else 1.0
    if not context.on_cuda:
        context.figure(f"{name} (counted on CUDA alone)", None, at_most=goal)
        return
    found = []
    with decoder.resident(0) as layer:
        for state in (small, large):
            LayerPass(state, 0, layer).run()  # compiles
            found.append(count_waits(LayerPass(state, 0, layer).run, torch.cuda.set_sync_debug_mode))
    few, many = found
    batches = len(large.measured) - len(small.measured)
    context.figure(name, (many.total() - few.total()) / batches, at_most=goal)
    per_place = {place: (many[place] - few[place]) / batches for place in many}
    context.detail(f"{name}, by place", {p: n for p, n in per_place.items() if n})
