"""Ways of quantizing a model, as data: one frozen record each. Adding a scheme adds a record.

Real schemes run on bitsandbytes' own modules, the kernels that people deploy. Simulated ones round the same numbers
to the same grids, but compute the matrix product with rounded values in the model's own type: they tell what a
format does to a model, not how a particular kernel's last digits fall. Their settings name formats of numbers
(`weight_format`, `input_format`), over what one scale is shared (`weight_group`: an output `channel` or a number of
neighboring inputs; `input_group`: a `token` or the whole `tensor` of a batch) and in what the scale is stored.
"""

from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.contracts.scheme_settings import (
    BLOCK_SIZE,
    COMPUTE_DTYPE,
    DOUBLE_QUANTIZATION,
    THRESHOLD,
    WEIGHT_GROUP,
    Setting,
    Settings,
)

BITSANDBYTES_INT8 = "bitsandbytes.Linear8bitLt"
BITSANDBYTES_4BIT = "bitsandbytes.Linear4bit"
SIMULATED = "simulated.Linear"

LONGEST_TITLE = 40
"""Characters for which the title of a narrow figure has room."""

AUTO = "auto"
"""Stands for `compute_dtype` until the model is known: then for the type that the model is stored and computed in."""


class Scheme(BaseModel):
    """One way of quantizing the Linear modules of a decoder's layers, with the settings that it has by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What a job asks for, and the key in `report.json`."""
    title: Annotated[str, Field(max_length=LONGEST_TITLE)]
    """What a figure or a page calls it; short enough for the title of a narrow figure."""
    kernel: str
    """The implementation that computes it: a key of the measurement's kernel table."""
    simulated: bool = False
    """Rounded values in the model's own type stand in for a low-precision kernel."""
    weight_bits: int
    """Bits of one stored weight, scales not counted."""
    settings: Settings
    """The kernel's settings, as the report states them where a job gives none."""
    takes: tuple[Setting, ...] = ()
    """The settings that a job may give."""

    @property
    def analysis_only(self) -> bool:
        """Whether it runs on bitsandbytes' modules as no BitsAndBytesConfig makes them, so that no
        `from_pretrained` loads it: transformers passes on no other block size than 64.
        """
        return self.kernel == BITSANDBYTES_4BIT and self.settings["block_size"] != 64


def _four_bits(name: str, title: str, quant_type: str, *, double_quantisation: bool = False) -> Scheme:
    return Scheme(
        name=name,
        title=f"{name} ({title})",
        kernel=BITSANDBYTES_4BIT,
        weight_bits=4,
        settings={
            "quant_type": quant_type,
            "block_size": 64,
            "double_quantisation": double_quantisation,
            "compute_dtype": AUTO,
        },
        takes=(COMPUTE_DTYPE, BLOCK_SIZE, DOUBLE_QUANTIZATION),
    )


def _simulated(
    name: str, title: str, bits: int, settings: Settings, takes: tuple[Setting, ...] = (WEIGHT_GROUP,)
) -> Scheme:
    return Scheme(
        name=name,
        title=f"{name} (simulated, {title})",
        kernel=SIMULATED,
        simulated=True,
        weight_bits=bits,
        settings=settings,
        takes=takes,
    )


_INT8_WEIGHTS: Settings = {"weight_format": "int8", "weight_group": "channel", "weight_scale": "float32"}
_INT4_GROUPS: Settings = {"weight_group": 128, "weight_scale": "float16"}

_RECORDS = (
    Scheme(
        name="int8",
        title="int8 (LLM.int8())",
        kernel=BITSANDBYTES_INT8,
        weight_bits=8,
        settings={"threshold": 6.0},
        takes=(THRESHOLD,),
    ),
    _four_bits("nf4", "4-bit NormalFloat", "nf4"),
    _four_bits("fp4", "4-bit floating point", "fp4"),
    _four_bits("nf4-dq", "double quantization", "nf4", double_quantisation=True),
    _four_bits("fp4-dq", "double quantization", "fp4", double_quantisation=True),
    _simulated(
        "w8a8-tensor",
        "tensor scale",
        8,
        _INT8_WEIGHTS | {"input_format": "int8", "input_group": "tensor", "input_scale": "float32"},
    ),
    _simulated(
        "w8a8-token",
        "token scales",
        8,
        _INT8_WEIGHTS | {"input_format": "int8", "input_group": "token", "input_scale": "float32"},
    ),
    _simulated(
        "int4-group128",
        "zero points",
        4,
        {"weight_format": "uint4", **_INT4_GROUPS},
    ),
    _simulated(
        "int4-group128-sym",
        "symmetric",
        4,
        {"weight_format": "int4", **_INT4_GROUPS},
    ),
    _simulated(
        "fp8-e4m3",
        "token scales",
        8,
        {
            "weight_format": "e4m3",
            "weight_group": "channel",
            "weight_scale": "float32",
            "input_format": "e4m3",
            "input_group": "token",
            "input_scale": "float32",
        },
    ),
    _simulated(
        "mxfp4",
        "OCP Microscaling",
        4,
        {"weight_format": "e2m1", "weight_group": 32, "weight_scale": "e8m0"},
        takes=(),  # the format is its blocks of 32
    ),
)

SCHEMES = MappingProxyType({scheme.name: scheme for scheme in _RECORDS})
"""Every scheme by name, in the order in which reports list them."""
