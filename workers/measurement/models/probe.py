"""Holds a model against what the sweep takes for granted, before anything is measured.

The sweep calls the layers one by one, each with the arguments that the model would hand it. That is the model's own
computation only if every layer is called once and in order, takes what the layer before it gave, and learns of the
layers before it by nothing else; and what is measured means something only if no position sees a later one. A model
of two tokens is enough to find out, and no architecture need be known. What fails would else be silently wrong.

    d hidden dimensions
"""

import contextlib
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from workers.measurement.errors import BadModel
from workers.measurement.models.stand_ins import Arguments, Recorded, Recorder, StandIn, standing_in, taken_apart

_SEES_LATER = 1e-2
"""Relative change at a position, when only a later one changed, that rounding cannot explain."""


def probe_first_layer(
    model: nn.Module, layers: nn.ModuleList, resident: AbstractContextManager[nn.Module], device: torch.device
) -> int:
    """Run the first layer on two tokens, and return the length of the tuple it answers with; 0 if it is none.

    Raises:
        BadModel: the hidden states are no [batch, tokens, d], or the first position sees the second.
    """
    first = Recorder(layers[0], 0)
    first.last = True
    with standing_in(layers, [first]), torch.no_grad(), contextlib.suppress(Recorded):
        model(input_ids=_two_tokens(device), use_cache=False)
    hidden, (positional, keyword) = first.hidden, first.arguments
    if hidden.ndim != 3 or hidden.shape[:2] != (1, 2):
        raise BadModel(
            f"model: the layers of {_name(model)} take hidden states {list(hidden.shape)} for 1 sequence of 2 tokens; "
            "only models with one vector for each token, [1, 2, d], can be measured"
        )
    other = hidden.clone()
    other[:, 1] = _noise(hidden[:, 1], seed=0)
    with resident as layer, torch.no_grad():
        answers = [layer(states, *positional, **keyword) for states in (hidden, other)]
    before, after = (answer[0] if isinstance(answer, tuple) else answer for answer in answers)
    changed = torch.linalg.vector_norm((after - before)[:, 0].float())
    if changed > _SEES_LATER * torch.linalg.vector_norm(before[:, 0].float()):
        raise BadModel(
            f"model: {_name(model)} is no causal decoder: in its first layer a position sees the one after it; only "
            "models in which positions see what is before them can be measured"
        )
    return len(answers[0]) if isinstance(answers[0], tuple) else 0


def probe_layers(model: nn.Module, layers: nn.ModuleList, answer_length: int, device: torch.device) -> None:
    """Find out how the model calls its layers, with stand-ins that answer noise; no layer runs.

    Raises:
        BadModel: the layers cannot be called one by one; says why.
    """
    arguments = []
    for seed in (1, 2):
        calls = _Calls(answer_length, seed)
        try:
            with standing_in(layers, calls.observers(layers)), torch.no_grad():
                model(input_ids=_two_tokens(device), use_cache=False)
        except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise _refusal(model, f"the model needs more of them than hidden states ({error})") from error
        if calls.order != list(range(len(layers))):
            raise _refusal(model, f"the model calls them in the order {calls.order}, not each of {len(layers)} once")
        if not calls.handed_on:
            raise _refusal(model, "the model changes the hidden states between two layers")
        arguments.append(calls.arguments)
    if any(_shared_state(value) for positional, keyword in arguments[0] for value in (*positional, *keyword.values())):
        raise _refusal(model, "they hand each other keys and values besides the hidden states")
    if not _same(arguments[0], arguments[1]):
        raise _refusal(model, "other arguments of a layer depend on what the layers before it gave")


class _Calls:
    """What a forward pass does with its layers."""

    def __init__(self, answer_length: int, seed: int) -> None:
        self.order: list[int] = []
        self.arguments: list[Arguments] = []
        self.handed_on = True
        self._answer_length = answer_length
        self._seed = seed
        self._latest: torch.Tensor | None = None

    def observers(self, layers: nn.ModuleList) -> list[nn.Module]:
        return [_Observer(layer, self._answer_length, self._answer(index)) for index, layer in enumerate(layers)]

    def _answer(self, index: int) -> Callable[[torch.Tensor, Arguments], torch.Tensor]:
        def answer(hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
            self.handed_on &= self._latest is None or torch.equal(self._latest, hidden)
            self.order.append(index)
            self.arguments.append(arguments)
            self._latest = _noise(hidden, seed=1000 * self._seed + len(self.order))
            return self._latest.clone()

        return answer


class _Observer(StandIn):
    def __init__(
        self, layer: nn.Module, answer_length: int, respond: Callable[[torch.Tensor, Arguments], torch.Tensor]
    ) -> None:
        super().__init__(layer, answer_length)
        self.__dict__["_respond"] = respond

    def forward(self, *positional: Any, **keyword: Any) -> Any:
        return self.answer(self.__dict__["_respond"](*taken_apart(positional, keyword)))


def _two_tokens(device: torch.device) -> torch.Tensor:
    return torch.zeros(1, 2, dtype=torch.long, device=device)


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return True


def _shared_state(value: Any) -> bool:
    return isinstance(value, (MutableMapping, Cache))


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _refusal(model: nn.Module, why: str) -> BadModel:
    return BadModel(f"model: the layers of {_name(model)} cannot be measured one by one: {why}")
