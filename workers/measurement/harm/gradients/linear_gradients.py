"""Takes gradients through linear modules in float32 where the processor has no instructions for their type.

Without them a product of a bf16 gradient with bf16 weights takes some fifty times as long as one in float32 (AVX2). The
weights are widened for one product at a time, and the result is rounded to the type that it would have had.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def fast_linear_gradients(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Let gradients go through linear modules in float32, where that is faster, of runs while the context lasts.

    There are then none at weights and biases.
    """
    if device.type != "cpu" or multiplies_fast(dtype):
        yield
    else:
        with _Float32Gradients():
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


class _Float32Gradients(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function is functional.linear and not keywords:
            return _Linear.apply(*arguments)
        return function(*arguments, **(keywords or {}))


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
