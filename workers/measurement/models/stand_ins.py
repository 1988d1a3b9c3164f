"""Defines modules that take a decoder layer's place, to record its arguments or to return hidden states."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments with which the model calls a layer besides the hidden states: positional and keyword."""


class StandIn(nn.Module):
    """A module in the place of a decoder layer; attributes that it lacks are the layer's."""

    def __init__(self, layer: nn.Module, answer_length: int) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer
        self._answer_length = answer_length

    def __getattr__(self, name: str) -> Any:
        """Return a part of this module, or of the layer it stands for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"], name)

    def answer(self, hidden: torch.Tensor) -> Any:
        """Return hidden states in the form in which the layer would: alone, or first in a tuple of that length."""
        return (hidden, *[None] * (self._answer_length - 1)) if self._answer_length else hidden


class Recorded(Exception):
    """Every layer's arguments are known; the rest of the forward pass is not needed."""


class Recorder(StandIn):
    """Records its arguments and returns the hidden states unchanged; the last one ends the forward pass."""

    last = False

    def forward(self, *positional: Any, **keyword: Any) -> Any:
        """Stand in for a layer's forward pass."""
        self.hidden, self.arguments = taken_apart(positional, keyword)
        if self.last:
            raise Recorded
        return self.answer(self.hidden)


class Injector(StandIn):
    """Returns the hidden states that it was made with, whatever its input."""

    def __init__(self, layer: nn.Module, answer_length: int, hidden: torch.Tensor) -> None:
        super().__init__(layer, answer_length)
        self.__dict__["_hidden"] = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        """Stand in for a layer's forward pass."""
        return self.answer(self.__dict__["_hidden"])


def taken_apart(positional: tuple[Any, ...], keyword: dict[str, Any]) -> tuple[torch.Tensor, Arguments]:
    """Return the hidden states that a layer was called with, and its other arguments."""
    if positional:
        return positional[0], (positional[1:], keyword)
    others = dict(keyword)
    return others.pop("hidden_states"), ((), others)


def hidden_of(answer: Any) -> Any:
    """Return the hidden states of a layer's output: the output itself, or the first element of a tuple or list."""
    return answer[0] if isinstance(answer, (tuple, list)) else answer


@contextmanager
def standing_in(layers: nn.ModuleList, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
    """Put stand-ins in the place of the first layers for as long as the context lasts."""
    originals = list(layers)
    try:
        for index, stand_in in enumerate(stand_ins):
            layers[index] = stand_in
        yield
    finally:
        for index, original in enumerate(originals):
            layers[index] = original
