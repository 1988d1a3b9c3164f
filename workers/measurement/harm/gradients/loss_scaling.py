"""Takes gradients through float16 so that they neither vanish nor overflow.

Gradients of a loss span more powers of two than float16 has: its numbers end at 65504 and at 6e-8. So before a layer
the gradient at its output is multiplied by a power of two that brings its largest element to a fixed magnitude, which
leaves room for the layer to make it larger; what comes of it is divided by the same power, in float32. Should it
overflow all the same, a smaller power is taken. Other types have the range of float32 and need none of this.
"""

import math
from collections.abc import Sequence

import torch

_LARGEST = 6
"""Power of two of the largest element at the output: 10 powers below the largest float16, 30 above the smallest."""
_STEP = 5
"""Powers of two by which the gradient is made smaller after an overflow."""
_TRIALS = 6
_MOST = 100
"""Float32 holds this power of two and its inverse."""


def gradient_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which gradients of a model of a type are kept: float32 for float16, else its own."""
    return torch.float32 if dtype == torch.float16 else dtype


def gradients_at(
    output: torch.Tensor, inputs: Sequence[torch.Tensor], gradient: torch.Tensor, *, retain_graph: bool
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients at the inputs, for that at the output; None where the output does not depend on an input.

    They are of `gradient_type`, and not finite where float16 holds them in no scale.
    """
    if output.dtype != torch.float16:
        own = gradient.to(output.dtype)
        return torch.autograd.grad(output, inputs, own, retain_graph=retain_graph, allow_unused=True)
    exponent = _exponent(gradient)
    for trial in range(_TRIALS):
        scaled = (gradient.float() * 2.0**exponent).half()
        scaled_gradients = torch.autograd.grad(output, inputs, scaled, retain_graph=True, allow_unused=True)
        if trial + 1 == _TRIALS or all(one is None or bool(one.isfinite().all()) for one in scaled_gradients):
            break
        exponent -= _STEP
    return tuple(one if one is None else one.float() * 2.0**-exponent for one in scaled_gradients)


def _exponent(gradient: torch.Tensor) -> int:
    """Return the power of two that brings the largest element to `_LARGEST`; 0 where it is 0 or not finite."""
    largest = float(gradient.abs().max())
    if not 0 < largest < math.inf:
        return 0
    return max(-_MOST, min(_MOST, _LARGEST - math.frexp(largest)[1]))
