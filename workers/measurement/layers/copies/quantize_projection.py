"""Quantizes a projection by the kernel of a scheme, and tries the quantized module before it is used."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import nn

from service.contracts.schemes import BITSANDBYTES_4BIT, BITSANDBYTES_INT8, SIMULATED, Scheme
from workers.measurement.errors import CannotQuantize
from workers.measurement.models.projections import weight_rows
from workers.measurement.quantization.linear4bit import linear4bit
from workers.measurement.quantization.linear8bitlt import linear8bitlt
from workers.measurement.quantization.projection import QuantizedProjection, Refused, Settings
from workers.measurement.quantization.simulated_linear import simulated_linear
from workers.measurement.runtime.memory import is_fatal

Kernel = Callable[[torch.Tensor, torch.Tensor | None, Settings], QuantizedProjection]
"""From a weight [out, in], a bias [out] or None, and settings."""
KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {BITSANDBYTES_INT8: linear8bitlt, BITSANDBYTES_4BIT: linear4bit, SIMULATED: simulated_linear}
)
"""By the `kernel` of a scheme."""


_tried: set[tuple[object, ...]] = set()
"""Kernels with their settings, and the weights' shapes, types and devices, of modules that have answered."""


def quantize_projection(projection: nn.Module, scheme: Scheme) -> QuantizedProjection:
    """Quantize a projection; the first module of its form is called on two tokens, so that a refusal comes here.

    Raises:
        CannotQuantize: no path of the kernel takes the projection; says its shape and why.
    """
    weight = weight_rows(projection)
    out_features, in_features = weight.shape
    try:
        kernel = KERNELS[scheme.kernel]
        quantized = kernel(weight, cast(torch.Tensor | None, projection.bias), scheme.settings)
        form = (kernel, *sorted(scheme.settings.items()), weight.shape, weight.dtype, weight.device)
        if form not in _tried:
            with torch.no_grad():
                output = quantized.module(weight.new_zeros(1, 2, in_features))
            if output.shape != (1, 2, out_features):
                raise Refused(f"its output for two tokens has the shape {list(output.shape)}")
            _tried.add(form)
    except (Refused, AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
        if is_fatal(error):
            raise
        reason = str(error).strip() or type(error).__name__
        raise CannotQuantize(f"{reason} (it has {in_features} inputs and {out_features} outputs)") from error
    return quantized
