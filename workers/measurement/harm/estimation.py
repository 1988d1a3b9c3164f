"""Runs the reverse sweep, with checkpoints from which it resumes after a kill."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from workers.measurement.harm.copies import LayerCopies, copy_layer
from workers.measurement.harm.products import InnerProducts, load_products
from workers.measurement.harm.reference_states import ReferenceStates
from workers.measurement.harm.reverse_sweep import Drawing, NoGradient, reverse_layers, start_gradients
from workers.measurement.harm.task import HarmTask
from workers.measurement.layers.streams import StreamCheckpoint, Streams
from workers.measurement.predictions.comparison import positions_per_chunk

_DRAWING_PARTS = 4
"""Drawing holds several tensors of float32 and one of float64 beside the logits: several times a comparison's."""


def estimate(task: HarmTask, reference: ReferenceStates) -> dict[str, InnerProducts]:
    """Return the inner products of every scheme that replaces anything, by its name.

    Raises:
        NoGradient: a layer's output has no gradient, and names it; or no sequence has finite ones.
    """
    directory, layers = task.directory / "products", task.layers
    directory.mkdir(exist_ok=True)
    files = [directory / f"{layer:05d}.npz" for layer in range(layers)]
    if not all(file.exists() for file in files):
        _sweep(task, reference, files)
    else:
        task.passed(layers * task.plan.estimate_forwards)
    names = [scheme.name for scheme in task.schemes]
    products = load_products(files, names, [scheme.name for scheme in task.divided])
    if not any(of_scheme.sequences for of_scheme in products.values()):
        raise NoGradient("no sequence has finite gradients")
    return products


def _sweep(task: HarmTask, reference: ReferenceStates, files: Sequence[Path]) -> None:
    checkpoint = StreamCheckpoint(task.directory / "gradients")
    done = checkpoint.layers_done()
    gradients = _gradients(task, reference, checkpoint, done)
    task.passed(done * task.plan.estimate_forwards)
    saved_at = time.monotonic()

    def changes(copies: LayerCopies) -> Mapping[str, Mapping[str, torch.Tensor]]:
        width = task.state.decoder.config.hidden_size
        return {scheme.name: copies.weight_changes(scheme, width) for scheme in task.divided}

    layers = reverse_layers(
        reference, gradients, lambda index, layer: copy_layer(task.state, index, layer), changes, done
    )
    for products in layers:
        products.save(files[products.layer])
        task.state.pages.check()
        task.passed(task.plan.estimate_forwards)
        if time.monotonic() - saved_at >= task.checkpoint_seconds:
            checkpoint.save(task.layers - products.layer, gradients)
            saved_at = time.monotonic()
    checkpoint.discard()


def _gradients(task: HarmTask, reference: ReferenceStates, checkpoint: StreamCheckpoint, done: int) -> Streams:
    """Return the gradients from which the sweep goes on."""
    if done:
        gradients = reference.gradient_streams(task.settings.draws, task.plan.working)
    else:
        of_float32 = positions_per_chunk(task.state.decoder) * task.state.decoder.dtype.itemsize // 4
        step = max(1, of_float32 // _DRAWING_PARTS)
        gradients = start_gradients(
            reference, Drawing(task.settings.draws, task.first, task.seed, step), task.plan.working
        )
    checkpoint.load(gradients)
    return gradients
