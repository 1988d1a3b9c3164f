"""Checks a model against the sweep's assumptions before anything is measured.

The sweep calls the layers one by one, with recorded arguments. That equals the model's own forward pass only if

- the model calls every layer once and in order,
- each layer's input is the output of the layer before it, unchanged,
- no other argument of a layer depends on the outputs of earlier layers, and
- the logits depend on the last hidden states alone.

The figures also need a causal model: no position may depend on a later one. Two tokens suffice to test all of this,
for any architecture. A model that fails would be measured wrongly without an error.

    d hidden dimensions
"""

import contextlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from workers.measurement.errors import BadModel, first_line, shown
from workers.measurement.models.stand_ins import (
    Arguments,
    Recorded,
    Recorder,
    StandIn,
    hidden_of,
    standing_in,
    taken_apart,
)
from workers.measurement.runtime.memory import is_fatal

_SEES_LATER = 1e-2
"""Relative change at a position, when only a later one changed, that rounding cannot explain."""


def probe_first_layer(
    model: nn.Module, layers: nn.ModuleList, resident: AbstractContextManager[nn.Module], device: torch.device
) -> int:
    """Run the first layer on two tokens; return the length of the tuple that it returns, 0 if it returns a tensor.

    Raises:
        BadModel: it fails, the hidden states are not [batch, tokens, d], or the first position depends on the second.
    """
    first = Recorder(layers[0], 0)
    first.last = True
    with _running(model), standing_in(layers, [first]), contextlib.suppress(Recorded):
        model(input_ids=_two_tokens(0, device), use_cache=False)
    hidden, (positional, keyword) = first.hidden, first.arguments
    if hidden.ndim != 3 or hidden.shape[:2] != (1, 2):
        raise BadModel(
            f"model: the layers of {_name(model)} take hidden states {list(hidden.shape)} for 1 sequence of 2 tokens; "
            "only models with one vector for each token, [1, 2, d], can be measured"
        )
    other = hidden.clone()
    other[:, 1] = _noise(hidden[:, 1], seed=0)
    with resident as layer, _running(model):
        answers = [layer(states, *positional, **keyword) for states in (hidden, other)]
    before, after = map(hidden_of, answers)
    if not isinstance(before, torch.Tensor) or before.shape != hidden.shape:
        raise BadModel(
            f"model: the layers of {_name(model)} return a {type(answers[0]).__name__}; only layers that return "
            "hidden states [1, 2, d], alone or first in a tuple or list, can be measured"
        )
    changed = torch.linalg.vector_norm((after - before)[:, 0].float())
    if changed > _SEES_LATER * torch.linalg.vector_norm(before[:, 0].float()):
        raise BadModel(
            f"model: {_name(model)} is not a causal decoder: in its first layer a position depends on the next one; "
            "only models whose positions depend on earlier ones alone can be measured"
        )
    return len(answers[0]) if isinstance(answers[0], (tuple, list)) else 0


def probe_layers(model: nn.Module, layers: nn.ModuleList, answer_length: int, device: torch.device) -> None:
    """Check how the model calls its layers, with stand-ins for them that return noise; no layer runs.

    Raises:
        BadModel: the layers cannot be called one by one; the message says why.
    """
    first, second, other_text = (
        _call(model, layers, _Calls(answer_length, seed), _two_tokens(token, device))
        for seed, token in ((1, 0), (2, 0), (3, 1))
    )
    handed = (value for positional, keyword in first.arguments for value in (*positional, *keyword.values()))
    if any(map(_shared_state, handed)):
        raise _refusal(model, "they pass each other keys and values besides the hidden states")
    if not _same(first.arguments, second.arguments):
        raise _refusal(model, "an argument of a layer depends on the outputs of earlier layers")
    if not _same(first.logits, other_text.logits):
        raise _refusal(model, "the predictions depend on more than the last hidden states")


def _call(model: nn.Module, layers: nn.ModuleList, calls: "_Calls", token_ids: torch.Tensor) -> "_Calls":
    """Run the model with stand-ins for its layers, and return the recorded calls."""
    try:
        with standing_in(layers, calls.observers(layers)), torch.no_grad():
            calls.logits = model(input_ids=token_ids, use_cache=False).logits
    except (ValueError, TypeError, IndexError, AttributeError, KeyError, RuntimeError) as error:
        if is_fatal(error):
            raise
        raise _refusal(model, f"the model needs more from them than hidden states ({first_line(error)})") from error
    if calls.order != list(range(len(layers))):
        raise _refusal(
            model,
            f"the model calls them in the order {shown(calls.order)}, but each of the {len(layers)} must run once",
        )
    if not calls.handed_on:
        raise _refusal(model, "the model changes the hidden states between two layers")
    return calls


class _Calls:
    """The calls of the layers in one forward pass. The stand-ins return noise; the last one's is always the same."""

    logits: torch.Tensor | None = None

    def __init__(self, answer_length: int, seed: int) -> None:
        self.order: list[int] = []
        self.arguments: list[Arguments] = []
        self.handed_on = True
        self._answer_length = answer_length
        self._seed = seed
        self._latest: torch.Tensor | None = None

    def observers(self, layers: nn.ModuleList) -> list[nn.Module]:
        last = len(layers) - 1
        return [_Observer(layer, self._answer_length, self._answer(i, last)) for i, layer in enumerate(layers)]

    def _answer(self, index: int, last: int) -> Callable[[torch.Tensor, Arguments], torch.Tensor]:
        def answer(hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
            self.handed_on &= self._latest is None or torch.equal(self._latest, hidden)
            self.order.append(index)
            self.arguments.append(arguments)
            self._latest = _noise(hidden, seed=0 if index == last else 1000 * self._seed + len(self.order))
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


@contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    try:
        with torch.no_grad():
            yield
    except Exception as error:  # a model's code fails in as many ways as there are models
        if is_fatal(error):
            raise
        raise BadModel(f"model: {_name(model)} does not run on two tokens: {first_line(error)}") from error


def _two_tokens(token: int, device: torch.device) -> torch.Tensor:
    return torch.full((1, 2), token, device=device)


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        alike = isinstance(second, torch.Tensor) and first.shape == second.shape
        return alike and bool(((first == second) | (first.isnan() & second.isnan())).all())
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
