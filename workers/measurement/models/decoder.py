"""A decoder model whose layers stay on disk, and are read one at a time.

`resident` puts one layer's weights in place for as long as they are needed. No step knows the architecture: the layers'
arguments are recorded by modules that stand in for them, and the model's own code turns the last hidden states into
logits. `loading` makes a `Decoder` from a checkpoint.

    B sequences, S tokens each, d hidden dimensions, V vocabulary, e channels that enter the output head
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import nn

from workers.measurement.models.layer_reader import LayerReader
from workers.measurement.models.projections import is_projection
from workers.measurement.models.stand_ins import (
    Arguments,
    Injector,
    Recorded,
    Recorder,
    hidden_of,
    standing_in,
)
from workers.measurement.runtime.memory import drop_file_pages


@dataclass(frozen=True)
class Decoder:
    """A causal language model with its layers on disk."""

    model: nn.Module
    layers: nn.ModuleList
    prefix: str
    """Name of `layers` inside the model, with a dot at the end."""
    reader: LayerReader
    """Gives the layers' weights."""
    device: torch.device
    answer_length: int
    """Length of the tuple that the layers return, hidden states first; 0 if they return the hidden states alone."""

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]

    def layer_config(self, index: int) -> Any:
        """Return the configuration of one layer, which in some models differs from another's in heads and widths."""
        return self.config.per_layer_config[index] if getattr(self.config, "is_heterogeneous", False) else self.config

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the projections outside the layers that schemes replace: all but the output head."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        return tuple(
            name
            for name, module in self.model.named_modules()
            if is_projection(module) and module is not head and not name.startswith(self.prefix)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the model is stored and computed, but for weights that it keeps in float32."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return dtype

    @property
    def widest(self) -> int:
        """The largest dimension of any weight matrix of the layers."""
        return max((max(p.shape[-2:]) for p in self.layers.parameters() if p.ndim > 1), default=1)

    @contextmanager
    def resident(self, index: int, step: int = 1) -> Iterator[nn.Module]:
        """Load the weights of layer `index` within the context; pages of mapped weights are dropped after use.

        `step`: 1 where layer `index + 1` is needed next, -1 where it is `index - 1`.

        Raises:
            BadModel: a weight has a NaN or infinite element; the message names the weight.
        """
        layer = self.layers[index]
        names = [name for name, _ in layer.named_parameters()]
        handles = [module.register_forward_hook(_drop_weight_pages) for module in layer.modules() if module._parameters]
        try:
            self._place(layer, index, step)
            yield layer
        finally:
            for handle in handles:
                handle.remove()
            for name in names:
                set_module_tensor_to_device(layer, name, "meta", clear_cache=False)

    def _place(self, layer: nn.Module, index: int, step: int) -> None:
        for name, tensor in self.reader.take(index, step).items():
            # clear_cache=False: the allocator reuses the memory of the layer before; returning it would synchronize.
            set_module_tensor_to_device(layer, name, self.device, value=tensor, clear_cache=False)

    def drop_pages(self) -> None:
        """Drop the mapped file pages of all weights outside the layers, and of what loading read beside them."""
        for parameter in self.model.parameters():
            drop_file_pages(parameter, whole_file=True)

    def record(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[Arguments]]:
        """Return the input of the first layer, [B, S, d], and every layer's other arguments, for token_ids [B, S]."""
        stand_ins = [Recorder(layer, self.answer_length) for layer in self.layers]
        stand_ins[-1].last = True
        with standing_in(self.layers, stand_ins), torch.no_grad(), contextlib.suppress(Recorded):
            self.model(input_ids=token_ids.to(self.device), use_cache=False)
        return stand_ins[0].hidden, [stand_in.arguments for stand_in in stand_ins]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits, [B, S, V], for hidden states [B, S, d] after the last layer.

        They can be differentiated where the hidden states require gradients.
        """
        logits: torch.Tensor = self._end(hidden, lambda *_: None).logits
        return logits

    def logits_of(self, head_input: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits, [B, S, V], for head_input [B, S, e]; of `hidden` only the shape matters."""
        logits: torch.Tensor = self._end(hidden, lambda *_: (head_input,)).logits
        return logits

    def head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the input of the output head, [B, S, e], for hidden states [B, S, d] after the last layer."""
        entered: list[torch.Tensor] = []

        def take(_: nn.Module, positional: tuple[torch.Tensor, ...]) -> None:
            entered.append(positional[0])
            raise Recorded

        with contextlib.suppress(Recorded):
            self._end(hidden, take)
        return entered[0]

    def _end(self, hidden: torch.Tensor, before_head: Callable[..., Any]) -> Any:
        """Return the model's output for last hidden states, with a forward pre-hook on the output head."""
        stand_ins = [Injector(layer, self.answer_length, hidden) for layer in self.layers]
        token_ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        handle = self.model.get_output_embeddings().register_forward_pre_hook(before_head)  # type: ignore[operator]
        try:
            with standing_in(self.layers, stand_ins), torch.set_grad_enabled(hidden.requires_grad):
                return self.model(input_ids=token_ids, use_cache=False)
        finally:
            handle.remove()


def _drop_weight_pages(module: nn.Module, *_: object) -> None:
    """Drop the mapped file pages of a module's own weights, after its forward pass."""
    for parameter in module.parameters(recurse=False):
        drop_file_pages(parameter)


def run_layer(layer: Callable[..., Any], hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """Return the output of a layer, [B, S, d], for hidden states [B, S, d] and the layer's recorded arguments.

    They can be differentiated where those before the layer require gradients.
    """
    positional, keyword = arguments
    with torch.set_grad_enabled(hidden.requires_grad):
        output = layer(hidden, *positional, **keyword)
    hidden_after: torch.Tensor = hidden_of(output)
    return hidden_after
