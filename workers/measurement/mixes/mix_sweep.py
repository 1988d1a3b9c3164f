"""Measures mixes: every mix is a stream of its own, in one further sweep over held-out sequences.

A layer is quantized once for every scheme; the mixes' copies of the layer share the quantized modules and take the
layer's own where they keep them. So many mixes cost the memory of one scheme, and the time of their forward passes.
"""

import gc
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from workers.measurement.layers.advance import LayerStreams
from workers.measurement.layers.copies.quantize_layer import copy_to_quantize
from workers.measurement.layers.streams import REFERENCE, StreamCheckpoint
from workers.measurement.layers.sweep import prepare_sweep
from workers.measurement.layers.sweep_state import Batch, SweepState
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import Projection, projections
from workers.measurement.predictions.comparison import Predictions, compare_predictions
from workers.measurement.runtime.progress import ProgressReporter


class Mix(NamedTuple):
    """A scheme with modules that stay in 16 bits, as a stream."""

    stream: str
    """Its name among all that are measured together."""
    scheme: Scheme
    kept: frozenset[str]
    """Full names of the modules that stay in 16 bits, those that the scheme keeps anyway among them."""


@dataclass(frozen=True)
class Workplace:
    """Where a sweep keeps its streams."""

    budget_bytes: int
    """Streams that are larger than this in all lie in files."""
    directory: Path
    """For those files and for checkpoints."""
    checkpoint_seconds: float
    """Seconds between checkpoints of the streams, from which a sweep goes on that was killed."""


def measure_mixes(
    decoder: Decoder,
    mixes: Sequence[Mix],
    batches: Sequence[torch.Tensor],
    analysis: Analysis,
    first: int,
    workplace: Workplace,
    reporter: ProgressReporter,
) -> Predictions:
    """Return the predictions of every mix by its stream's name, compared with the reference's.

    Args:
        decoder: the model.
        mixes: what is measured.
        batches: token ids, [B, S] each.
        analysis: settings.
        first: first scored position of each sequence.
        workplace: for the streams.
        reporter: gets the layers done.
    """
    state = prepare_sweep(
        decoder,
        [Batch(token_ids) for token_ids in batches],
        [mix.scheme.model_copy(update={"name": mix.stream}) for mix in mixes],
        analysis,
        budget_bytes=workplace.budget_bytes,
        directory=workplace.directory / "streams",
        kept={mix.stream: mix.kept for mix in mixes},
    )
    cost = f"mixes and controls take about {len(mixes) + 1} forward passes of the held-out text"
    workplace.directory.mkdir(parents=True, exist_ok=True)
    checkpoint = StreamCheckpoint(workplace.directory / f"mixes_{_digest(mixes)}")
    done, total = checkpoint.layers_done(), len(decoder.layers)
    with reporter.stage("mixes", total=total, done=done, batch_sequences=len(batches[0]), cost=cost) as progress:
        checkpoint.load(state.streams)
        saved_at = time.monotonic()
        for through in _layers(state, mixes, done):
            progress.done(through)
            if time.monotonic() - saved_at >= workplace.checkpoint_seconds:
                checkpoint.save(through, state.streams)
                saved_at = time.monotonic()
        return compare_predictions(state, torch.cat([*batches]), first)


def _layers(state: SweepState, mixes: Sequence[Mix], done: int) -> Iterator[int]:
    """Take every stream through the layers from `done` on, and yield how many they are through."""
    for index in range(done, len(state.decoder.layers)):
        with state.decoder.resident(index) as layer:
            _advance(state, index, layer, mixes)
        del layer
        gc.collect()
        state.pages.check()
        yield index + 1


def _digest(mixes: Sequence[Mix]) -> str:
    """Return a text that tells these mixes from all others, for a name."""
    content = json.dumps([(mix.stream, sorted(mix.kept)) for mix in mixes])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _advance(state: SweepState, index: int, layer: nn.Module, mixes: Sequence[Mix]) -> None:
    """Take every stream through one layer."""
    parts = projections(layer, state.decoder.layer_config(index))
    modules: dict[str, nn.Module] = {REFERENCE: layer}
    quantized: dict[str, nn.Module] = {}
    # The streams' schemes have the settings that the model decides; those of one scheme are the same but for the name.
    for mix, scheme in zip(mixes, state.schemes, strict=True):
        name = mix.scheme.name
        if name not in quantized:
            common = frozenset.intersection(*(other.kept for other in mixes if other.scheme.name == name))
            replaced = [part for part in parts if f"{state.decoder.prefix}{index}.{part.name}" not in common]
            own = scheme.model_copy(update={"name": name})
            quantized[name] = state.replaceability.quantize(index, layer, replaced, own).module
        modules[mix.stream] = _mixed(layer, f"{state.decoder.prefix}{index}", parts, quantized[name], mix.kept)
    streams = LayerStreams(state, index, parts)
    for batch in range(len(state.batches)):
        for name, module in modules.items():
            streams.advance(name, module, batch)


def _mixed(
    layer: nn.Module, name: str, parts: Sequence[Projection], quantized: nn.Module, kept: frozenset[str]
) -> nn.Module:
    """Return a copy of the layer of this name that has the quantized one's modules but for those kept."""
    copied = copy_to_quantize(layer)
    for part in parts:
        if f"{name}.{part.name}" not in kept:
            copied.set_submodule(part.name, quantized.get_submodule(part.name))
    return copied.eval()
