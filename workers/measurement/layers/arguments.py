"""Keeps the recorded arguments of layers besides the hidden states, with equal tensors shared between batches.

Masks and position embeddings are the same for every batch of one shape, and large; what is equal is kept once. Only
what really depends on the text (per-layer embeddings of the tokens) is kept for every batch.
"""

from typing import Any

import torch

from workers.measurement.models.stand_ins import Arguments


class SharedTensors:
    """Keeps equal tensors once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]] = {}

    def share(self, arguments: list[Arguments]) -> list[Arguments]:
        """Return every layer's arguments with each tensor replaced by an equal one that is kept already, if any."""
        return [(self._shared(positional), self._shared(keyword)) for positional, keyword in arguments]

    def _shared(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value) in (tuple, list):
            return type(value)(self._shared(item) for item in value)
        if type(value) is dict:
            return {key: self._shared(item) for key, item in value.items()}
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        kept = self._kept.setdefault((tensor.shape, tensor.dtype), [])
        for other in kept:
            if other is tensor or torch.equal(other, tensor):
                return other
        kept.append(tensor)
        return tensor
