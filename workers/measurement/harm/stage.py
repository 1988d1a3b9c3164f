"""Runs the harm measurement as a stage: says what it costs, refuses what does not fit, and warns of what is missing."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from service.contracts.request import MeasurementRequest
from service.evaluation.uncertainty import MIN_UNITS
from workers.measurement.harm.copies import Module, weight_only
from workers.measurement.harm.estimates.agreement import ADDITIVE
from workers.measurement.harm.gradients.loss_scaling import gradient_type
from workers.measurement.harm.measuring import HarmResults, measure_harm
from workers.measurement.harm.plan import Room, Size, make_plan, room_for_streams
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
            _warn_nothing(scheme.name, reporter)
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
    _warn(results, len(token_ids), reporter)
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
    replacing = [scheme for scheme in state.schemes if replaced[scheme.name]]
    values = token_ids.numel() * state.decoder.config.hidden_size
    return Size(
        layers=len(state.decoder.layers),
        schemes=len(replacing),
        divided_schemes=sum(map(weight_only, replacing)) if request.harm.dimensions else 0,
        modules=max(map(len, replaced.values())),
        stream_bytes=token_ids.numel() * _state_bytes(state),
        gradient_bytes=values * gradient_type(state.decoder.dtype).itemsize,
    )


def _state_bytes(state: SweepState) -> int:
    """Return the bytes of one token's hidden state."""
    hidden = state.streams.get(state.streams.names[0], 0)
    return hidden.shape[-1] * hidden.element_size()


def room_left(request: MeasurementRequest, state: SweepState) -> Room:
    """Return the memory that the sweep's streams leave."""
    tokens = sum(batch.token_ids.numel() for batch in state.batches)
    held = 0 if state.streams.in_files else len(state.streams.names) * tokens * _state_bytes(state)
    return room_for_streams(max(0, request.memory_bytes - held), state.decoder)


def _warn_nothing(scheme: str, reporter: ProgressReporter) -> None:
    reporter.warn(
        "harm-nothing-replaced",
        f"{scheme} replaces no module of the layers, so it has no harm",
        "Keep fewer modules, or leave the scheme out of this job.",
        where=scheme,
    )


def _warn(results: HarmResults, sequences: int, reporter: ProgressReporter) -> None:
    for name, harm in results.schemes.items():
        if harm.apart is not None:
            _warn_apart(name, harm.apart, len(harm.components), reporter)
    if sequences < MIN_UNITS and any(harm.products is not None for harm in results.schemes.values()):
        reporter.warn(
            "harm-few-sequences",
            f"Standard errors of estimated harms and of shares of dimensions are by sequence, of which there are "
            f"{sequences}; with fewer than {MIN_UNITS} they say little",
            f"Measure {MIN_UNITS} sequences or more.",
        )
    if results.no_estimate:
        instead = "some modules, drawn at random," if any(h.modules for h in results.schemes.values()) else "the layers"
        reporter.warn(
            "harm-no-gradient",
            f"Harm could not be estimated ({results.no_estimate}); that of {instead} was measured instead",
            "Read the measured harms; there are no estimates, interactions or shares of dimensions.",
        )
    if results.of_nothing != 0:
        reporter.warn(
            "harm-of-nothing",
            f"The swap of nothing has a harm of {results.of_nothing:.3g} nats instead of 0",
            "Read no harm below this: the device does not give the same numbers twice.",
        )


def _warn_apart(scheme: str, additivity: float, modules: int, reporter: ProgressReporter) -> None:
    low, high = ADDITIVE
    reporter.warn(
        "harm-all-measured",
        f"The KL divergence of {scheme} is {additivity:.3g} times the sum of its modules' scaled estimates, outside of "
        f"{low} to {high}; so all its {modules} modules were replaced alone, and these measurements select its mixes",
        "Expect predictions of mixes to be off; what was measured on held-out sequences holds.",
        where=scheme,
    )
