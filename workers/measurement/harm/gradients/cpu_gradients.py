"""Takes gradients through linear modules and attention on a CPU where torch's own backward pass is slow.

Without instructions of the processor for its type, a product of a bf16 gradient with bf16 weights takes some fifty
times as long as one in float32 (AVX2), and attention some ten times. There gradients are computed in float32: weights,
queries, keys and values are widened for one backward pass at a time, and the result is rounded to the type that it
would have had.

The backward pass of attention divides heads of keys among threads. A single one, as multi-query attention has, leaves
the threads to every small product inside, which takes some five times as long; so keys and values are repeated for the
heads of queries where they have fewer heads than there are threads.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_attend = functional.scaled_dot_product_attention
_OPTIONS = ("attn_mask", "dropout_p", "is_causal")
"""Of attention, in their order behind queries, keys and values."""


@contextmanager
def fast_gradients(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let gradients go fast through what runs while the context lasts, in a model of a type.

    Outputs are the same. There may be no gradients at weights, biases and masks.
    """
    if device.type != "cpu":
        yield
    else:
        with _FastGradients(widened=not multiplies_fast(dtype)):
            yield


def multiplies_fast(dtype: torch.dtype) -> bool:
    """Return whether torch multiplies matrices of a type by instructions of this processor."""
    if dtype not in (torch.bfloat16, torch.float16) or not torch.backends.mkldnn.is_available():
        return True
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return bool(supported[dtype]())


class _FastGradients(TorchFunctionMode):
    def __init__(self, *, widened: bool) -> None:
        super().__init__()
        self._widened = widened

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if function is functional.linear and self._widened and not keywords:
            return _Linear.apply(*arguments)
        if function is _attend and len(arguments) >= 3:
            query, key, value, *others = arguments
            return self._attention(query, key, value, dict(zip(_OPTIONS, others, strict=False)) | keywords)
        return function(*arguments, **keywords)

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        heads, sequences = key.shape[-3], key.shape[:-3].numel()
        if options.get("enable_gqa") and sequences * heads < torch.get_num_threads():
            times = query.shape[-3] // heads
            key, value = (each.repeat_interleave(times, dim=-3) for each in (key, value))
            options["enable_gqa"] = False
        if self._widened:
            output: torch.Tensor = _Attention.apply(query, key, value, options)
            return output
        return _attend(query, key, value, **options)


class _Linear(torch.autograd.Function):
    """x W^T + b, with the gradient at x [..., inputs] from that at the output [..., outputs]; none at W and b."""

    @staticmethod
    def forward(
        context: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        context.save_for_backward(weight)
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = context.saved_tensors
        return (gradient.float() @ weight.float()).to(gradient.dtype), None, None


class _Attention(torch.autograd.Function):
    """Attention of queries, keys and values, each [..., heads, tokens, width], with the gradients at these three.

    The backward pass computes the output again in float32. A mask has no gradient.
    """

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any]
    ) -> torch.Tensor:
        mask = options.get("attn_mask")
        context.save_for_backward(query, key, value, *([] if mask is None else [mask]))
        context.others = {name: option for name, option in options.items() if name != "attn_mask"}
        return _attend(query, key, value, **options)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *masks = context.saved_tensors
        wide = [each.detach().float().requires_grad_() for each in (query, key, value)]
        wide_masks = [mask.float() if mask.is_floating_point() else mask for mask in masks]
        with torch.enable_grad():
            output = _attend(*wide, *wide_masks, **context.others)
        gradients = torch.autograd.grad(output, wide, gradient.float())
        return (*(each.to(gradient.dtype) for each in gradients), None)
