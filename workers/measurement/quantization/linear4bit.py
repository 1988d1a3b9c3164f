"""Quantizes weights to 4 bits by `bitsandbytes.nn.Linear4bit` (QLoRA, arXiv 2305.14314).

The flattened weight is cut into blocks of `block_size` elements. Each block is scaled by its abs_max, and its elements
are rounded to the nearest of 16 codes; with double quantization the scales are themselves quantized to 8 bits, in
blocks of 256. Inputs are cast to `compute_dtype`, and outputs back to the inputs' dtype. Codes and scales are bit for
bit those of `from_pretrained` with a BitsAndBytesConfig, so that a sweep computes what the loaded model would. Block
sizes other than 64, which no config can express, are quantized as `Params4bit` does it. On a CPU there are three paths:

- packed for AVX512-BF16, where the processor has it, `out` is a multiple of 32, `in` one of 64, and every row is a
  whole number of blocks: scales and inputs are rounded to bfloat16 whatever `compute_dtype` is, in which only the bias
  is added;
- plain: dequantizes the weight to `compute_dtype` and multiplies;
- plain with the weight dequantized as one long row, where a row is not a whole number of blocks: dequantizing row by
  row with AVX-512, bitsandbytes 0.50 uses the scale of a neighboring block for part of a block there.
"""

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch.nn import functional

from workers.measurement.quantization.projection import QuantizedProjection, Settings, row_ranges, with_bias

_PACKED_ROWS, _PACKED_COLUMNS = 32, 64
"""bitsandbytes packs a 4-bit weight for AVX512-BF16 only if its shape divides by these."""


def linear4bit(weight: torch.Tensor, bias: torch.Tensor | None, settings: Settings) -> QuantizedProjection:
    """Quantize a weight [out, in], with a bias [out] or none, to 4 bits.

    Settings: `quant_type` (nf4, fp4), `compute_dtype`, `double_quantisation`, `block_size`.
    """
    on_cpu = weight.device.type == "cpu"
    whole_blocks = weight.shape[1] % int(settings["block_size"]) == 0
    with torch.device("meta"):
        module = (bnb.nn.Linear4bit if whole_blocks or not on_cpu else _BlocksAcrossRows)(
            weight.shape[1],
            weight.shape[0],
            bias=bias is not None,
            compute_dtype=getattr(torch, str(settings["compute_dtype"])),
            compress_statistics=settings["double_quantisation"],
            quant_type=settings["quant_type"],
        )
    codes, state = _quantized(weight, settings)
    stored_bytes = codes.nbytes + _scale_bytes(state)
    packs = whole_blocks and weight.shape[0] % _PACKED_ROWS == 0 and weight.shape[1] % _PACKED_COLUMNS == 0
    module.support_avx512bf16_for_cpu = module.support_avx512bf16_for_cpu and packs
    packed = on_cpu and module.support_avx512bf16_for_cpu
    scales = _scales(state)
    module.weight = bnb.nn.Params4bit(
        _pack(codes, scales, state) if packed else codes,
        requires_grad=False,
        quant_state=state,
        blocksize=settings["block_size"],
        compress_statistics=settings["double_quantisation"],
        quant_type=settings["quant_type"],
        module=module,
        bnb_quantized=True,
    )
    module.quant_state = state
    return QuantizedProjection(
        module=with_bias(module, bias),
        dequantized=lambda rows: _dequantized(codes, scales, state, rows, weight.dtype),
        nbytes=stored_bytes,
        path=_path(weight.device.type, packed=packed, whole_blocks=whole_blocks),
    )


def _path(device: str, *, packed: bool, whole_blocks: bool) -> str:
    """Return the name of the path, of those listed in this module's docstring, that computes a projection."""
    if packed:
        return "cpu, packed for AVX512-BF16"
    return device if whole_blocks or device != "cpu" else "cpu, dequantized as one row"


class _BlocksAcrossRows(bnb.nn.Linear4bit):  # type: ignore[misc]
    """Computes what Linear4bit's plain path computes, with the weight dequantized as one long row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, rows = self.weight.quant_state, slice(0, self.out_features)
        weight = _dequantized(self.weight.data, _scales(state), state, rows, self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return functional.linear(x.to(self.compute_dtype), weight, bias).to(x.dtype)


def _quantized(weight: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, QuantState]:
    """Return the codes of a weight [out, in], two per byte, and bitsandbytes' `QuantState` with their scales."""
    in_features, block = weight.shape[1], int(settings["block_size"])
    codes = torch.empty((-(-weight.numel() // 2), 1), dtype=torch.uint8, device=weight.device)
    scales = torch.empty(-(-weight.numel() // block), dtype=torch.float32, device=weight.device)
    for rows in row_ranges(weight, block):
        packed, state = bnb.functional.quantize_4bit(
            weight[rows].contiguous(), blocksize=block, quant_type=settings["quant_type"]
        )
        first = rows.start * in_features
        codes[first // 2 :][: len(packed)] = packed
        scales[first // block :][: len(state.absmax)] = state.absmax
    state.shape, state.absmax = weight.shape, scales
    if settings["double_quantisation"]:
        state.offset = state.absmax.mean()
        state.absmax, state.state2 = bnb.functional.quantize_blockwise(state.absmax - state.offset, blocksize=256)
        state.nested = True
    return codes, state


def _pack(codes: torch.Tensor, scales: torch.Tensor, state: QuantState) -> torch.Tensor:
    """Return the codes in the layout of the AVX512-BF16 kernel, and change their state accordingly.

    bitsandbytes would do this at the first call, for the whole weight at once, with about 15 times its memory. The
    layout is made of groups of 32 rows, so it can be built range by range.
    """
    rows_in_all, columns = state.shape
    packed = torch.empty((rows_in_all, columns // 2), dtype=torch.uint8, device=codes.device)
    transposed = torch.empty((columns // state.blocksize, rows_in_all), dtype=torch.bfloat16)
    for rows in row_ranges(packed):
        shape = torch.Size((rows.stop - rows.start, columns))
        own_codes, part = _of_rows(codes, scales, state, rows, shape, state.dtype)
        packed[rows], part = bnb.functional._convert_weight_packed_for_cpu(own_codes, part)
        transposed[:, rows] = part.absmax
    state.original_dtype, state.original_nested, state.original_qshape = state.dtype, state.nested, codes.shape
    state.dtype, state.nested, state.absmax = part.dtype, False, transposed
    state.packing_format_for_cpu = True
    return packed


def _scales(state: QuantState) -> torch.Tensor:
    """Return the scale of every block, float32; double-quantized ones are dequantized."""
    scales: torch.Tensor = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return scales


def _dequantized(
    codes: torch.Tensor, scales: torch.Tensor, state: QuantState, rows: slice, dtype: torch.dtype
) -> torch.Tensor:
    """Return rows of a weight [out, in], [rows, in]."""
    elements = (rows.stop - rows.start) * state.shape[1]
    before = rows.start * state.shape[1] % state.blocksize  # elements of the first block that belong to the row before
    whole = before + elements
    long = torch.Size((1, whole + whole % 2))  # two codes per byte: an odd number is padded by one
    values: torch.Tensor = bnb.functional.dequantize_4bit(*_of_rows(codes, scales, state, rows, long, dtype))
    return values.reshape(-1)[before:whole].view(-1, state.shape[1])


def _of_rows(
    codes: torch.Tensor, scales: torch.Tensor, state: QuantState, rows: slice, shape: torch.Size, dtype: torch.dtype
) -> tuple[torch.Tensor, QuantState]:
    """Return the codes of rows, from the start of the block in which they begin, and a state with this `shape`."""
    columns, block = state.shape[1], state.blocksize
    first, last = rows.start * columns // block * block, rows.stop * columns
    own = QuantState(
        absmax=scales[first // block : -(-last // block)],
        shape=shape,
        code=state.code,
        blocksize=block,
        quant_type=state.quant_type,
        dtype=dtype,
    )
    return codes[first // 2 : -(-last // 2)], own


def _scale_bytes(state: QuantState) -> int:
    nested = _scale_bytes(state.state2) + state.offset.nbytes if state.nested else 0
    return int(state.absmax.nbytes) + nested
