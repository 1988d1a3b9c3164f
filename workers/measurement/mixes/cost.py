"""States what a measurement takes before it is made: forward passes, swaps, mixes, disk for streams and checkpoints.

Every checkpoint of the streams is whole before the one before it goes, so that two lie on the disk for a moment. The
sweep's streams and its last checkpoint stay until the end.

    B bytes of one stream
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from service.contracts.harm.cost import Cost, SchemeSize, StageCost
from service.contracts.request import MeasurementRequest
from workers.measurement.harm.copies import weight_only
from workers.measurement.harm.expected import Expected
from workers.measurement.harm.gradients.loss_scaling import gradient_type
from workers.measurement.harm.plan import (
    CHECKPOINTS,
    DiskTooSmall,
    Plan,
    Size,
    bytes_on_disk,
    make_plan,
    modules_measured,
    room_for_streams,
    size_in_words,
)
from workers.measurement.mixes.controls import CONTROLS
from workers.measurement.mixes.plan import INTERACTION_WEIGHTS
from workers.measurement.models.decoder import Decoder


class Text(NamedTuple):
    """How much goes through the layers."""

    tokens: int
    """Of the calibration text."""
    beside: int
    """Of labeled prompts."""


def cost_of(request: MeasurementRequest, decoder: Decoder, expected: Sequence[Expected], text: Text) -> Cost:
    """Return what a measurement takes.

    Args:
        request: the settings.
        decoder: the model.
        expected: what every scheme is going to replace.
        text: what goes through the layers.
    """
    of_token = decoder.config.hidden_size * decoder.dtype.itemsize
    sweep = _stage("sweep", 1 + 2 * len(expected), 1 + len(expected), sum(text) * of_token, request.memory_bytes)
    kept = sweep.streams_bytes, sweep.checkpoint_bytes // CHECKPOINTS
    left = max(0, request.memory_bytes - (0 if sweep.streams_bytes else kept[1]))
    later, plan, mixes = [], None, 0
    if request.harm.measures:
        plan = make_plan(
            request.harm, _size(request, decoder, expected, text.tokens), room_for_streams(left, decoder), Path()
        )
        later.append(_harm_stage(plan))
    if request.recommend.enabled:
        mixes, of_mixes = _mixes_stage(request, len(expected), text.tokens * of_token, left)
        later.append(of_mixes)
    return Cost(
        source=request.model.source,
        layers=len(decoder.layers),
        sequences=request.sequences,
        sequence_length=request.sequence_length,
        held_out_sequences=request.sequences if request.recommend.enabled else 0,
        stages=(sweep, *(_beside(stage, *kept) for stage in later)),
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


def _stage(
    stage: Literal["sweep", "mixes"], forwards: float, streams: int, stream_bytes: int, budget_bytes: int
) -> StageCost:
    """Return the cost of a sweep with a number of streams, each of B bytes."""
    held = streams * stream_bytes
    return StageCost(
        stage=stage,
        forwards=forwards,
        streams_bytes=held if held > budget_bytes else 0,
        checkpoint_bytes=CHECKPOINTS * held,
    )


def _harm_stage(plan: Plan) -> StageCost:
    return StageCost(
        stage="harm",
        forwards=plan.forwards,
        streams_bytes=plan.streams_bytes,
        checkpoint_bytes=plan.checkpoint_bytes,
    )


def _mixes_stage(
    request: MeasurementRequest, schemes: int, stream_bytes: int, budget_bytes: int
) -> tuple[int, StageCost]:
    """Return how many mixes and controls are measured, and what that costs; each round measures the reference too."""
    rounds = request.recommend.rounds
    mixes = schemes * (len(CONTROLS) + rounds * len(INTERACTION_WEIGHTS))
    together = schemes * (len(CONTROLS) + len(INTERACTION_WEIGHTS))
    return mixes, _stage("mixes", mixes + rounds, 1 + together, stream_bytes, budget_bytes)


def _beside(cost: StageCost, streams_bytes: int, checkpoint_bytes: int) -> StageCost:
    """Return the cost of a stage beside what the sweep keeps on the disk."""
    more = {
        "streams_bytes": cost.streams_bytes + streams_bytes,
        "checkpoint_bytes": cost.checkpoint_bytes + checkpoint_bytes,
    }
    return cost.model_copy(update=more)


def _size(request: MeasurementRequest, decoder: Decoder, expected: Sequence[Expected], tokens: int) -> Size:
    width = decoder.config.hidden_size
    return Size(
        layers=len(decoder.layers),
        schemes=len(expected),
        divided_schemes=sum(weight_only(one.scheme) for one in expected) if request.harm.dimensions else 0,
        modules=max(len(one.components) for one in expected),
        stream_bytes=tokens * width * decoder.dtype.itemsize,
        gradient_bytes=tokens * width * gradient_type(decoder.dtype).itemsize,
    )


def _further(request: MeasurementRequest, expected: Sequence[Expected]) -> int:
    """Return the modules that are only measured where harms do not add up."""
    return sum(len(one.components) - modules_measured(request.harm, len(one.components)) for one in expected)
