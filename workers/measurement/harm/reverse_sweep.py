"""Takes gradients through the layers in reverse, and multiplies them with every module's isolated error.

To first order, replacing module m changes the loss l = -log P(y) of a drawn continuation y by

    a_m = sum over the tokens of <gradient of l at the output of m, Q(m)(x) - m(x)>

where x is what enters m in the reference. One number for each sequence, draw and module; the harm of a module, of any
set of modules and their interactions follow from these alone (`estimate`).

Each layer is read once, from the last to the first. It is run again on the reference's states with gradients for
activations only, never for weights; every scheme's isolated errors come from the same run. What a layer gives is kept,
and the gradients before it are streams, so that every layer boundary is a place to go on from.

    N sequences of S tokens, d hidden dimensions, M modules
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from workers.measurement.errors import MeasurementError
from workers.measurement.harm.copies import LayerCopies
from workers.measurement.harm.gradients.cpu_gradients import fast_gradients
from workers.measurement.harm.gradients.head_gradients import head_gradients
from workers.measurement.harm.gradients.loss_scaling import gradients_at
from workers.measurement.harm.products import LayerProducts
from workers.measurement.harm.reference_states import ReferenceStates, Storage
from workers.measurement.layers.streams import Streams
from workers.measurement.models.decoder import run_layer

CopyLayer = Callable[[int, nn.Module], LayerCopies]
"""From a layer's number and the layer in memory to every scheme's copy of it."""
WeightChanges = Callable[[LayerCopies], Mapping[str, Mapping[str, torch.Tensor]]]
"""From the copies to Q(W) - W by scheme and module, of those whose error is divided among input channels."""


class NoGradient(MeasurementError):
    """A layer's output has no gradient with respect to its input, so that harm cannot be estimated."""


@dataclass(frozen=True)
class Drawing:
    """How continuations are drawn."""

    draws: int
    """For each sequence."""
    first: int
    """First scored position of each sequence."""
    seed: int
    step: int
    """Positions whose logits are held at a time."""


def start_gradients(reference: ReferenceStates, drawing: Drawing, storage: Storage) -> Streams:
    """Return every draw's gradient after the last layer, one stream for each draw."""
    decoder = reference.decoder
    gradients = reference.gradient_streams(drawing.draws, storage)
    for number in range(len(reference.token_ids)):
        generator = np.random.default_rng((drawing.seed, number))
        end = reference.at(len(decoder.layers), number)
        of_end = head_gradients(decoder, end, drawing.first, drawing.draws, generator, drawing.step)
        for draw, name in enumerate(gradients.names):
            gradients.put(name, number, of_end[draw, None])
    return gradients


def reverse_layers(
    reference: ReferenceStates, gradients: Streams, copy_layer: CopyLayer, weight_changes: WeightChanges, done: int = 0
) -> Iterator[LayerProducts]:
    """Take the gradients through the layers from the last on, and yield each layer's inner products.

    Args:
        reference: its states at every depth.
        gradients: one stream for each draw, replaced layer by layer.
        copy_layer: makes the schemes' copies.
        weight_changes: of the modules whose inner products are wanted by input channel.
        done: layers from the last on that the gradients are through.

    Raises:
        NoGradient: names the layer.
    """
    decoder, sequences = reference.decoder, len(reference.token_ids)
    for index in reversed(range(len(decoder.layers) - done)):
        with decoder.resident(index, step=-1) as layer:
            copies = copy_layer(index, layer)
            shape = sequences, len(gradients.names), gradients.get(gradients.names[0], 0).shape[-1]
            products = LayerProducts(index, copies, shape)
            run = _LayerRun(reference, gradients, copies, weight_changes(copies), products)
            for number in range(sequences):
                run.take(number)
        del layer, copies, run
        gc.collect()
        yield products


@dataclass(frozen=True)
class _LayerRun:
    """One layer, through which the gradients go sequence by sequence."""

    reference: ReferenceStates
    gradients: Streams
    copies: LayerCopies
    weight_changes: Mapping[str, Mapping[str, torch.Tensor]]
    products: LayerProducts

    def take(self, number: int) -> None:
        """Take every draw's gradient of one sequence through the layer, and add the inner products to the others."""
        depth, reference = self.copies.index, self.reference
        hidden = reference.at(depth, number).detach().clone().requires_grad_()
        names = {name for copied in self.copies.copies.values() for name in copied.replaced}
        with fast_gradients(hidden.dtype, hidden.device), _recording(self.copies.layer, names) as calls:
            after = run_layer(self.copies.layer, hidden, reference.arguments[number][depth])
        if not after.requires_grad:
            raise _no_gradient(depth)
        errors = self._isolated_errors(calls)
        # What is called without gradients, such as a choice of tokens, has none.
        outputs = [(name, k) for name in calls for k, call in enumerate(calls[name]) if call.output.requires_grad]
        wanted = [hidden, *(calls[name][k].output for name, k in outputs)]
        for draw, stream in enumerate(self.gradients.names):
            last = draw + 1 == len(self.gradients.names)
            own = self.gradients.get(stream, number)
            if not own.isfinite().all():
                self.products.leave_out(number)
            of_hidden, *of_outputs = gradients_at(after, wanted, own, retain_graph=not last)
            if of_hidden is None:
                raise _no_gradient(depth)
            at = dict(zip(outputs, of_outputs, strict=True))
            self._add_modules(errors, at, (number, draw))
            self._add_channels(calls, at, (number, draw))
            # Last: a gradient at an output may be the very memory of the one after the layer, which this replaces.
            self.gradients.put(stream, number, of_hidden)

    def _isolated_errors(self, calls: Mapping[str, list["_Call"]]) -> dict[tuple[str, str], list[torch.Tensor]]:
        """Return the isolated error of every call of a replaced module, by scheme and module."""
        return {
            (scheme, name): [_isolated_error(quantized.module, call) for call in calls[name]]
            for scheme, copied in self.copies.copies.items()
            for name, quantized in copied.replaced.items()
            if name in calls
        }

    def _add_modules(
        self,
        errors: Mapping[tuple[str, str], list[torch.Tensor]],
        at: Mapping[tuple[str, int], torch.Tensor | None],
        where: tuple[int, int],
    ) -> None:
        """Add a_m: the inner product of gradient and isolated error, summed over the calls of module m."""
        for (scheme, name), of_calls in errors.items():
            terms = [_dot(at.get((name, k)), error) for k, error in enumerate(of_calls)]
            self.products.add(scheme, name, where, sum(terms))

    def _add_channels(
        self,
        calls: Mapping[str, list["_Call"]],
        at: Mapping[tuple[str, int], torch.Tensor | None],
        where: tuple[int, int],
    ) -> None:
        """Add a_mj = sum over tokens of x_tj (g_t (Q(W) - W))_j, by input channel j."""
        for scheme, changes in self.weight_changes.items():
            for name, change in changes.items():
                for k, call in enumerate(calls.get(name, ())):
                    gradient = at.get((name, k))
                    if gradient is not None:
                        by_input = gradient.reshape(-1, len(change)) @ change.to(gradient.dtype)
                        inputs = call.input.reshape(by_input.shape)
                        by_channel = (inputs.float() * by_input.float()).sum(dim=0)
                        self.products.add_channels(scheme, name, where, by_channel.double().cpu().numpy())


def _no_gradient(layer: int) -> NoGradient:
    return NoGradient(f"layer {layer}: its output has no gradient with respect to its input")


class _Call(NamedTuple):
    """One call of a module in a run with gradients."""

    input: torch.Tensor
    output: torch.Tensor
    """As the layer goes on with it, so that a gradient can be taken there."""


@contextmanager
def _recording(layer: nn.Module, names: set[str]) -> Iterator[dict[str, list[_Call]]]:
    """Note every call of the named modules of a layer for as long as the context lasts."""
    calls: dict[str, list[_Call]] = {}

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any], output: torch.Tensor) -> None:
            taken = positional[0] if positional else next(iter(keyword.values()))
            if taken.numel():
                calls.setdefault(name, []).append(_Call(taken.detach(), output))

        return hook

    handles = [layer.get_submodule(name).register_forward_hook(hook_for(name), with_kwargs=True) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _isolated_error(quantized: nn.Module, call: _Call) -> torch.Tensor:
    """Return what a quantized module's output differs by on the reference's input, in float32."""
    with torch.no_grad():
        # bitsandbytes takes [B, S, d], whatever the layer hands on.
        rows = call.input.reshape(1, -1, call.input.shape[-1])
        output: torch.Tensor = quantized(rows)
        return output.reshape(call.output.shape).float() - call.output.detach().float()


def _dot(gradient: torch.Tensor | None, error: torch.Tensor) -> float:
    """Return the inner product, 0 where the output of the layer does not depend on the module's."""
    if gradient is None:
        return 0.0
    # Channels are few enough for float32; tokens need not be.
    return float(torch.linalg.vecdot(gradient.float(), error).sum(dtype=torch.float64))
