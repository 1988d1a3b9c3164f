"""Computes from its shape alone what a quantized weight takes: codes with their scales, as the kernels store them."""

import math

import torch

from service.contracts.schemes import BITSANDBYTES_4BIT, BITSANDBYTES_INT8, Scheme
from workers.measurement.quantization.grid import Grid

_FLOAT32 = 4
_NESTED_BLOCK = 256
"""Scales that share a scale of their own under double quantization."""


def stored_bytes(scheme: Scheme, weight: torch.Tensor) -> int:
    """Return the bytes of a weight [out, in], which may be on the meta device, under a scheme; without the bias."""
    rows, elements = len(weight), weight.numel()
    if scheme.kernel == BITSANDBYTES_INT8:
        return elements + _FLOAT32 * rows
    if scheme.kernel == BITSANDBYTES_4BIT:
        scales = math.ceil(elements / int(scheme.settings["block_size"]))
        if not scheme.settings["double_quantisation"]:
            return math.ceil(elements / 2) + _FLOAT32 * scales
        return math.ceil(elements / 2) + scales + _FLOAT32 * (math.ceil(scales / _NESTED_BLOCK) + 1)
    grid = Grid.of(scheme.settings, "weight")
    return weight.nbytes if grid is None else grid.nbytes(weight.shape)
