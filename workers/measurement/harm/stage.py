"""Runs the harm measurement as a stage: says what it costs, measures, and warns of what is missing."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from service.contracts.request import MeasurementRequest
from workers.measurement.harm.copies import Module, components_of
from workers.measurement.harm.harm_warnings import warn_harm, warn_nothing
from workers.measurement.harm.measuring import HarmResults, measure_harm
from workers.measurement.harm.plan import Room, Size, make_plan, room_for_streams, size_of
from workers.measurement.harm.reference_states import sequence_layout
from workers.measurement.harm.task import HarmTask
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.predictions.comparison import first_scored
from workers.measurement.runtime.memory import return_pages
from workers.measurement.runtime.progress import ProgressReporter, StageProgress


def run_harm(
    request: MeasurementRequest,
    state: SweepState,
    token_ids: torch.Tensor,
    replaced: Mapping[str, Mapping[Module, int]],
    whole: Mapping[str, float],
    work: Path,
    reporter: ProgressReporter,
) -> HarmResults | None:
    """Return the harm of every scheme; None where none was asked for, or no scheme replaces anything.

    Args:
        request: the settings.
        state: after the last layer.
        token_ids: [N, S].
        replaced: by scheme, the modules that it replaces, and the bytes by which each is smaller.
        whole: by scheme, the measured mean KL divergence of all of it, nats.
        work: for streams in files, and for what is needed to go on after a kill.
        reporter: gets progress and warnings.

    Raises:
        BadRequest: no module has the component that was asked for.
    """
    if not request.harm.measures:
        return None
    for scheme in state.schemes:
        if not replaced[scheme.name]:
            warn_nothing(scheme.name, reporter)
    if not any(replaced.values()):
        return None
    directory = work / "harm"
    directory.mkdir(exist_ok=True)
    plan = make_plan(request.harm, _size(request, state, token_ids, replaced), room_left(request, state), directory)
    with reporter.stage("harm", total=plan.layer_passes, cost=plan.says()) as progress:
        passes = _Passes(progress)
        task = HarmTask(
            state=state,
            settings=request.harm,
            token_ids=token_ids,
            first=first_scored(request.score, token_ids.shape[1]),
            seed=request.seed,
            replaced=replaced,
            plan=plan,
            directory=directory,
            checkpoint_seconds=request.checkpoint_seconds,
            passed=passes.add,
            whole=whole,
            complete=request.recommend.enabled,
            extended=passes.extend,
        )
        results = measure_harm(task)
        for storage in plan.storages:  # mixes need the room
            shutil.rmtree(storage.directory, ignore_errors=True)
        return_pages()
    warn_harm(results, len(token_ids), reporter)
    return results


class _Passes:
    """Adds up passes of the text through one layer."""

    def __init__(self, progress: StageProgress) -> None:
        self._progress = progress
        self._done = 0

    def add(self, layers: int) -> None:
        """Add passes that are done."""
        self._done = min(self._done + layers, self._progress.total)
        self._progress.done(self._done)

    def extend(self, layers: int) -> None:
        """Add passes to come, which were not announced."""
        self._progress.total = self._done + layers


def _size(
    request: MeasurementRequest,
    state: SweepState,
    token_ids: torch.Tensor,
    replaced: Mapping[str, Mapping[Module, int]],
) -> Size:
    names, hidden = components_of(state.decoder), state.streams.get(state.streams.names[0], 0)
    replacing = [
        (scheme, {module: names[module] for module in replaced[scheme.name]})
        for scheme in state.schemes
        if replaced[scheme.name]
    ]
    layout = sequence_layout(token_ids.shape, hidden.shape[-1], hidden.dtype)
    return size_of(request.harm, state.decoder, replacing, layout)


def room_left(request: MeasurementRequest, state: SweepState) -> Room:
    """Return the memory that the sweep's streams leave."""
    return room_for_streams(max(0, request.memory_bytes - state.streams.held_bytes), state.decoder)
