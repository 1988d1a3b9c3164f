"""4-bit weights by `bitsandbytes.nn.Linear4bit` (QLoRA, arXiv 2305.14314), the kernel that people deploy.

Weights in flat blocks of 64, each with its largest magnitude as scale, are rounded to the nearest of 16 codes; with
double quantisation the scales are themselves rounded to 8 bits in blocks of 256. Inputs are not rounded. The module
is built exactly as transformers builds it for `from_pretrained` with a BitsAndBytesConfig, so what a sweep computes
is what the loaded model would. On a CPU there are three paths:

- packed for AVX512-BF16, where the processor has it and the weight's shape divides by 32 x 64;
- plain, which dequantises the weight and multiplies;
- plain, and dequantised as one long row, where rows are no whole number of blocks: bitsandbytes 0.50 there takes a
  neighbour's scale for part of a block if it dequantises row by row with AVX-512.
"""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch.nn import functional

from workers.measurement.models.projections import weight_rows
from workers.measurement.quantization.projection import QuantisedProjection, Settings, with_bias

_PACKED_ROWS, _PACKED_COLUMNS = 32, 64
"""bitsandbytes packs a 4-bit weight for AVX512-BF16 only if its shape divides by these."""


def linear4bit(projection: nn.Module, settings: Settings) -> QuantisedProjection:
    """Quantise to 4 bits. Settings: `quant_type` (nf4, fp4), `compute_dtype`, `double_quantisation`, `block_size`."""
    weight = weight_rows(projection)
    on_cpu = weight.device.type == "cpu"
    whole_blocks = weight.shape[1] % int(settings["block_size"]) == 0
    with torch.device("meta"):
        module = (bnb.nn.Linear4bit if whole_blocks or not on_cpu else _BlocksAcrossRows)(
            weight.shape[1],
            weight.shape[0],
            bias=projection.bias is not None,
            compute_dtype=getattr(torch, str(settings["compute_dtype"])),
            compress_statistics=settings["double_quantisation"],
            quant_type=settings["quant_type"],
        )
    module.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=settings["block_size"],
        compress_statistics=settings["double_quantisation"],
        quant_type=settings["quant_type"],
        module=module,
    ).to(weight.device)
    state = module.weight.quant_state
    packs = weight.shape[0] % _PACKED_ROWS == 0 and weight.shape[1] % _PACKED_COLUMNS == 0
    module.support_avx512bf16_for_cpu = module.support_avx512bf16_for_cpu and packs
    packed = on_cpu and module.support_avx512bf16_for_cpu
    return QuantisedProjection(
        module=with_bias(module, projection),
        weight=_dequantised(module.weight.data, state, state.dtype),
        nbytes=module.weight.data.nbytes + _scale_bytes(state),
        path="cpu, packed for AVX512-BF16" if packed else str(weight.device.type),
    )


class _BlocksAcrossRows(bnb.nn.Linear4bit):  # type: ignore[misc]
    """Computes what Linear4bit's plain path computes, with the weight dequantised as one long row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = _dequantised(self.weight.data, self.weight.quant_state, self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return functional.linear(x.to(self.compute_dtype), weight, bias).to(x.dtype)


def _dequantised(codes: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [out, in] that codes stand for."""
    long = bnb.functional.QuantState(
        absmax=state.absmax,
        shape=torch.Size((1, 2 * codes.numel())),  # two codes in a byte; of an odd number, the last is filling
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=dtype,
        offset=state.offset,
        state2=state.state2,
    )
    values: torch.Tensor = bnb.functional.dequantize_4bit(codes, long)
    return values.reshape(-1)[: state.shape.numel()].view(state.shape)


def _scale_bytes(state: Any) -> int:
    nested = _scale_bytes(state.state2) + state.offset.nbytes if state.nested else 0
    return int(state.absmax.nbytes) + nested
