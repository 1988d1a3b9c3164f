"""Takes gradients through the layers in reverse, and multiplies them with every module's isolated error.

To first order, replacing module m changes the loss l = -log P(y) of a drawn continuation y by

    a_m = sum over the tokens of <gradient of l at the output of m, Q(m)(x) - m(x)>

where x is what enters m in the reference. One number for each sequence, draw and module; the harm of a module, of any
set of modules and their interactions follow from these alone (`estimate`).

Each layer is read once, from the last to the first. It is run again on the reference's states with gradients for
activations only, never for weights; every scheme's isolated errors come from the same run.

    N sequences of S tokens, d hidden dimensions, M modules
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from service.contracts.schemes import Scheme
from workers.measurement.errors import MeasurementError
from workers.measurement.harm.head_gradients import head_gradients
from workers.measurement.harm.reference_states import ReferenceStates
from workers.measurement.layers.streams import Streams
from workers.measurement.models.decoder import run_layer
from workers.measurement.models.projections import Projection, projections

F64 = npt.NDArray[np.float64]
Quantize = Callable[[int, nn.Module, Sequence[Projection], Scheme], Mapping[str, nn.Module]]
"""From a layer's number, the layer, its projections and a scheme to the quantized modules, by name in the layer."""


class NoGradient(MeasurementError):
    """A layer's output has no gradient with respect to its input, so that harm cannot be estimated."""


class Module(NamedTuple):
    """A quantized module of a layer."""

    layer: int
    name: str
    """Inside the layer."""


@dataclass
class InnerProducts:
    """One scheme's a_m."""

    modules: list[Module] = field(default_factory=list)
    values: list[F64] = field(default_factory=list)
    """By module: [N, draws]."""

    def matrix(self) -> F64:
        """Return them as [N, draws, M]."""
        return np.stack(self.values, axis=-1)


def reverse_sweep(
    reference: ReferenceStates,
    schemes: Sequence[Scheme],
    quantize: Quantize,
    *,
    first: int,
    draws: int,
    seed: int,
    step: int,
    budget_bytes: int,
    directory: Path,
) -> dict[str, InnerProducts]:
    """Return every scheme's inner products of gradients and isolated errors, by the scheme's name.

    Modules that a layer does not call on any sequence have none.

    Args:
        reference: its states at every depth.
        schemes: what the modules are quantized by.
        quantize: makes a layer's quantized modules.
        first: first scored position of each sequence.
        draws: continuations drawn for each sequence.
        seed: of the draws.
        step: positions whose logits are held at a time.
        budget_bytes: gradients that are larger than this in all lie in files.
        directory: where those files go; made when it is needed.

    Raises:
        NoGradient: names the layer.
    """
    decoder, sequences = reference.decoder, len(reference.token_ids)
    gradients = Streams([str(k) for k in range(draws)], reference.layout, decoder.device, budget_bytes, directory)
    _start(reference, gradients, first, seed, step)
    products = {scheme.name: InnerProducts() for scheme in schemes}
    for index in reversed(range(len(decoder.layers))):
        with decoder.resident(index) as layer:
            parts = projections(layer, decoder.layer_config(index))
            copies = {scheme.name: quantize(index, layer, parts, scheme) for scheme in schemes}
            found: dict[str, dict[str, F64]] = {name: {} for name in copies}
            for number in range(sequences):
                _reverse_layer(_LayerRun(reference, index, layer, number), copies, gradients, found)
        for name, of_modules in found.items():
            called = [one for one in copies[name] if one in of_modules]
            products[name].modules[:0] = [Module(index, one) for one in called]
            products[name].values[:0] = [of_modules[one] for one in called]
    return products


def _start(reference: ReferenceStates, gradients: Streams, first: int, seed: int, step: int) -> None:
    """Put every draw's gradient after the last layer into the streams, which have one name for each draw."""
    decoder, draws = reference.decoder, len(gradients.names)
    for number in range(len(reference.token_ids)):
        generator = np.random.default_rng((seed, number))
        of_end = head_gradients(decoder, reference.at(len(decoder.layers), number), first, draws, generator, step)
        for draw, name in enumerate(gradients.names):
            gradients.put(name, number, of_end[draw, None])


class _LayerRun(NamedTuple):
    """A layer and the sequence that goes through it."""

    reference: ReferenceStates
    depth: int
    layer: nn.Module
    sequence: int


def _reverse_layer(
    run: _LayerRun,
    copies: Mapping[str, Mapping[str, nn.Module]],
    gradients: Streams,
    found: Mapping[str, dict[str, F64]],
) -> None:
    """Take every draw's gradient of one sequence through a layer, and put the inner products into `found`.

    A module that is not called on a sequence adds 0 there; one that is never called is not in `found`.
    """
    hidden = run.reference.at(run.depth, run.sequence).detach().clone().requires_grad_()
    names = {name for of_scheme in copies.values() for name in of_scheme}
    with _recording(run.layer, names) as calls:
        after = run_layer(run.layer, hidden, run.reference.arguments[run.sequence][run.depth])
    if not after.requires_grad:
        raise NoGradient(f"layer {run.depth}: its output has no gradient with respect to its input")
    errors = {
        (scheme, name): [_isolated_error(module, call) for call in calls[name]]
        for scheme, of_scheme in copies.items()
        for name, module in of_scheme.items()
        if name in calls
    }
    outputs = [(name, k) for name in calls for k in range(len(calls[name]))]
    wanted = [hidden, *(calls[name][k].output for name, k in outputs)]
    for draw, stream in enumerate(gradients.names):
        last = draw + 1 == len(gradients.names)
        own = gradients.get(stream, run.sequence).to(after.dtype)
        of_hidden, *of_outputs = torch.autograd.grad(after, wanted, own, retain_graph=not last, allow_unused=True)
        if of_hidden is None:
            raise NoGradient(f"layer {run.depth}: its output has no gradient with respect to its input")
        by_call = dict(zip(outputs, of_outputs, strict=True))
        for (scheme, name), of_calls in errors.items():
            terms = [_dot(by_call[name, k], error) for k, error in enumerate(of_calls)]
            shape = len(run.reference.token_ids), len(gradients.names)
            found[scheme].setdefault(name, np.zeros(shape))[run.sequence, draw] = sum(terms)
        # Last: a gradient at an output may be the very memory of the one after the layer, which this replaces.
        gradients.put(stream, run.sequence, of_hidden)


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
    return 0.0 if gradient is None else float((gradient.float() * error).sum(dtype=torch.float64))
