"""States what a measurement takes before it is made: forward passes, swaps, mixes, disk for streams and checkpoints.

Every checkpoint of the streams is whole before the one before it goes, so that two lie on the disk for a moment. The
sweep's streams and its last checkpoint stay until the end, and so does the last checkpoint of every round of mixes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from service.contracts.harm.cost import Cost, SchemeSize, StageCost
from service.contracts.request import MeasurementRequest
from workers.measurement.harm.expected import Expected
from workers.measurement.harm.plan import (
    CHECKPOINTS,
    DiskTooSmall,
    Plan,
    bytes_on_disk,
    make_plan,
    modules_measured,
    room_for_streams,
    size_in_words,
    size_of,
)
from workers.measurement.harm.reference_states import sequence_layout
from workers.measurement.layers.streams import Layout, Volume
from workers.measurement.mixes.controls import CONTROLS
from workers.measurement.mixes.plan import INTERACTION_WEIGHTS
from workers.measurement.models.decoder import Decoder


class Text(NamedTuple):
    """What goes through the layers."""

    sequences: tuple[int, int]
    """[N, S] of the calibration text."""
    batches: Sequence[tuple[int, int]]
    """[B, S] of each of its batches."""
    beside: Sequence[tuple[int, int]]
    """The same of labeled prompts."""


def cost_of(request: MeasurementRequest, decoder: Decoder, expected: Sequence[Expected], text: Text) -> Cost:
    """Return what a measurement takes.

    Args:
        request: the settings.
        decoder: the model.
        expected: what every scheme is going to replace.
        text: what goes through the layers.
    """
    streams = _volume(decoder, (*text.batches, *text.beside)).times(1 + len(expected))
    sweep = _stage("sweep", 1 + 2 * len(expected), streams, request.memory_bytes)
    left = request.memory_bytes if sweep.streams_bytes else request.memory_bytes - streams.held
    later, plan, mixes = [], None, 0
    if request.harm.measures:
        layout = sequence_layout(text.sequences, decoder.config.hidden_size, decoder.dtype)
        size = size_of(request.harm, decoder, [(one.scheme, one.components) for one in expected], layout)
        plan = make_plan(request.harm, size, room_for_streams(left, decoder), Path())
        later.append(_harm_stage(plan))
    if request.recommend.enabled:
        mixes, of_mixes = _mixes_stage(request, len(expected), _volume(decoder, text.batches), left)
        later.append(of_mixes)
    return Cost(
        source=request.model.source,
        layers=len(decoder.layers),
        sequences=request.sequences,
        sequence_length=request.sequence_length,
        held_out_sequences=request.sequences if request.recommend.enabled else 0,
        stages=(sweep, *(_beside(stage, sweep.streams_bytes, streams.stored) for stage in later)),
        modules=sum(len(one.components) for one in expected),
        swaps=plan.swaps if plan else 0,
        further_swaps=_further(request, expected) if request.recommend.enabled else 0,
        swap_groups=plan.groups if plan else 0,
        mixes=mixes,
        sizes=tuple(
            SchemeSize(scheme=one.scheme.name, smallest=one.uniform_bytes, largest=one.reference_bytes)
            for one in expected
        ),
    )


def check_disk(cost: Cost, work: Path) -> None:
    """Make sure that the disk of a directory has room; what a killed measurement left there is written over.

    Raises:
        DiskTooSmall: says how much is needed, and how much there is.
    """
    written_over = (work / "streams", work / "harm", work / "mixes", *work.glob("checkpoint*"))
    free = shutil.disk_usage(work).free + bytes_on_disk(*written_over)
    if cost.disk_bytes > free:
        raise DiskTooSmall(
            f"harm: hidden states and their checkpoints need {size_in_words(cost.disk_bytes)} of disk in {work}, which "
            f"has {size_in_words(free)} free; free some, or measure fewer or shorter sequences"
        )


def _volume(decoder: Decoder, batches: Sequence[tuple[int, int]]) -> Volume:
    """Return what one stream takes."""
    shapes = tuple((*batch, decoder.config.hidden_size) for batch in batches)
    return Layout(shapes, decoder.dtype).volume(decoder.device)


def _stage(stage: Literal["sweep", "mixes"], forwards: float, streams: Volume, budget_bytes: int) -> StageCost:
    """Return the cost of a sweep with these streams."""
    return StageCost(
        stage=stage,
        forwards=forwards,
        streams_bytes=streams.stored if streams.held > budget_bytes else 0,
        checkpoint_bytes=CHECKPOINTS * streams.stored,
    )


def _harm_stage(plan: Plan) -> StageCost:
    return StageCost(
        stage="harm",
        forwards=plan.forwards,
        streams_bytes=plan.streams_bytes,
        checkpoint_bytes=plan.checkpoint_bytes,
    )


def _mixes_stage(request: MeasurementRequest, schemes: int, stream: Volume, budget_bytes: int) -> tuple[int, StageCost]:
    """Return how many mixes and controls are measured, and what that costs; each round measures the reference too."""
    rounds, of_round = request.recommend.rounds, schemes * len(INTERACTION_WEIGHTS)
    controls = schemes * len(CONTROLS)
    mixes = controls + rounds * of_round
    first, further = stream.times(1 + controls + of_round), stream.times((rounds - 1) * (1 + of_round))
    stage = _stage("mixes", mixes + rounds, first, budget_bytes)
    return mixes, _beside(stage, 0, further.stored)


def _beside(cost: StageCost, streams_bytes: int, checkpoint_bytes: int) -> StageCost:
    """Return the cost of a stage beside what is kept on the disk."""
    more = {
        "streams_bytes": cost.streams_bytes + streams_bytes,
        "checkpoint_bytes": cost.checkpoint_bytes + checkpoint_bytes,
    }
    return cost.model_copy(update=more)


def _further(request: MeasurementRequest, expected: Sequence[Expected]) -> int:
    """Return the modules that are only measured where harms do not add up, which some measured ones must show."""
    if request.harm.exact != "modules":
        return 0
    return sum(len(one.components) - modules_measured(request.harm, one.components) for one in expected)
