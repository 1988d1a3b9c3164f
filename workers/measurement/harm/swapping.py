"""Runs the swaps group by group, with checkpoints from which it resumes after a kill."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.contracts.report import Estimate
from service.evaluation.uncertainty import mean
from workers.measurement.harm.copies import copy_layer
from workers.measurement.harm.plan import grouped
from workers.measurement.harm.reference_states import ReferenceStates
from workers.measurement.harm.swaps import Swap, divergences, swap_layers
from workers.measurement.harm.task import HarmTask
from workers.measurement.layers.streams import StreamCheckpoint, Streams
from workers.measurement.predictions.comparison import positions_per_chunk

Harms = dict[str, Estimate | None]
"""By a swap's key: the mean KL divergence, nats; None where no position has a finite one."""


def measure_swaps(task: HarmTask, reference: ReferenceStates, swaps: Sequence[Swap]) -> dict[Swap, Estimate | None]:
    """Return every swap's mean KL divergence, nats; None where no position has a finite one."""
    file = task.directory / "swaps.json"
    harms = _load(file)
    task.passed(sum(task.layers - swap.layer for swap in swaps if swap.key in harms))
    for group in grouped([swap for swap in swaps if swap.key not in harms], task.plan.group):
        harms |= _measure_group(task, reference, group)
        _save(file, harms)
    return {swap: harms[swap.key] for swap in swaps}


def _measure_group(task: HarmTask, reference: ReferenceStates, group: Sequence[Swap]) -> Harms:
    """Take the swaps of a group through the layers, and return their harms."""
    streams = _streams(reference, group, task)
    digest = hashlib.sha256("\n".join(streams.names).encode()).hexdigest()[:16]
    checkpoint = StreamCheckpoint(task.directory / f"swaps-{digest}")
    done = checkpoint.layers_done()
    checkpoint.load(streams)
    before, saved_at = 0, time.monotonic()

    layers = swap_layers(
        reference, group, streams, lambda index, layer: copy_layer(task.state, index, layer), task.seed, done
    )
    for through in layers:
        passed = sum(max(0, through - swap.layer) for swap in group)
        task.passed(passed - before)
        before = passed
        task.state.pages.check()
        if time.monotonic() - saved_at >= task.checkpoint_seconds and through < task.layers:
            checkpoint.save(through, streams)
            saved_at = time.monotonic()
    harms = _harms(task, reference, streams)
    checkpoint.discard()
    return harms


def _streams(reference: ReferenceStates, group: Sequence[Swap], task: HarmTask) -> Streams:
    """Return streams for the swaps.

    Until a swap leaves the reference, its stream holds what enters the first layer, so that a checkpoint has all.
    """
    streams = reference.streams([swap.key for swap in group], task.plan.working)
    for name in streams.names:
        for number in range(len(reference.token_ids)):
            streams.put(name, number, reference.at(0, number))
    return streams


def _harms(task: HarmTask, reference: ReferenceStates, streams: Streams) -> Harms:
    """Return the harms of streams that are through all layers."""
    by_key: dict[str, list[list[float]]] = {key: [] for key in streams.names}
    for of_sequence in divergences(reference, streams, task.first, positions_per_chunk(task.state.decoder)):
        for key, values in of_sequence.items():
            by_key[key].append(values[np.isfinite(values)].tolist())
    return {key: mean(sequences) if any(sequences) else None for key, sequences in by_key.items()}


def _load(file: Path) -> Harms:
    if not file.exists():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {key: harm and Estimate.model_validate(harm) for key, harm in stored.items()}


def _save(file: Path, harms: Harms) -> None:
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({key: harm and harm.model_dump() for key, harm in harms.items()}))
    unfinished.rename(file)
