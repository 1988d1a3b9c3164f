"""Quantizes weights to LLM.int8() by `bitsandbytes.nn.Linear8bitLt` (arXiv 2208.07339).

Weights are rounded row by row to int8, by way of fp16. At each call the input's rows are rounded too, but columns
that hold a value at or over the threshold are multiplied as they came with the dequantized weights. The module holds
what it would after `from_pretrained` with a BitsAndBytesConfig, bit for bit, so what a sweep computes is what the
loaded model would. Inputs over 65504 stand in such a column; without a threshold they make their row NaN.
"""

import bitsandbytes as bnb
import torch

from workers.measurement.quantization.projection import (
    QuantizedProjection,
    Refused,
    Settings,
    row_ranges,
    with_bias,
)
from workers.measurement.statistics.reduction import FP16_MAX


class _Linear8bitLtOfRows(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """Takes [B, 1, S, d] too, as DeepSeek's latents are, row by row; bitsandbytes stops at three dimensions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = super().forward(x.flatten(0, -2) if x.ndim > 3 else x)
        return rows.unflatten(0, x.shape[:-1]) if x.ndim > 3 else rows


def linear8bitlt(weight: torch.Tensor, bias: torch.Tensor | None, settings: Settings) -> QuantizedProjection:
    """Quantize a weight [out, in], with a bias [out] or none, to LLM.int8().

    Settings: `threshold`, magnitude at which a column stays as it came; 0 for never.

    Raises:
        Refused: a weight is infinite in fp16, which in bitsandbytes makes its whole row NaN; or there is but one input
            channel, for which the CPU's integer product gives arbitrary numbers.
    """
    if weight.shape[1] == 1:
        raise Refused("it has 1 input channel; at least 2 are needed")
    with torch.device("meta"):
        module = _Linear8bitLtOfRows(
            weight.shape[1],
            weight.shape[0],
            bias=bias is not None,
            has_fp16_weights=False,
            threshold=settings["threshold"],
        )
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for rows in row_ranges(weight):
        codes[rows], scales[rows], _ = bnb.functional.int8_vectorwise_quant(weight[rows].half().contiguous())
    if (beyond := scales.isinf()).any():
        largest = float(weight[beyond].abs().max())
        raise Refused(f"a weight has the magnitude {largest:g}; at most {FP16_MAX:g}, the largest fp16, is allowed")
    module.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    return QuantizedProjection(
        module=with_bias(module, bias),
        dequantized=lambda rows: bnb.functional.int8_vectorwise_dequant(codes[rows], scales[rows]),
        nbytes=codes.nbytes + scales.nbytes,
        path=str(weight.device.type),
    )
