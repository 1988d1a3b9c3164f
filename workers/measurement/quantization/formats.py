"""Defines number formats as data, and rounds to the nearest value of one. Adding a format adds a record.

Every format here is a set of values on the real line that lie `smallest_step` apart around zero. In an integer
format they stay so far apart; in a floating point format the step doubles with every octave above the subnormals,
so that `mantissa_bits` bits distinguish the values of one octave.

Rounding is roundTiesToEven of IEEE 754-2019, section 4.3.1, with the saturation that OCP OFP8 v1.0 calls SAT mode.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from workers.measurement.statistics.reduction import FP16_MAX


@dataclass(frozen=True)
class NumberFormat:
    """The values that an element can take."""

    name: str
    bits: int
    """Bits of one stored element."""
    lowest: float
    """The most negative value."""
    highest: float
    """The largest value."""
    smallest_step: float
    """Between neighboring values at zero; a power of two."""
    mantissa_bits: int | None
    """Stored bits of the mantissa; None for integers, whose step never grows."""

    @property
    def has_zero_point(self) -> bool:
        """All values are of one sign, so that a stored zero point must say where zero lies."""
        return self.lowest == 0


@dataclass(frozen=True)
class ScaleFormat:
    """The format in which the scale of a group is stored."""

    name: str
    bits: int
    """Bits of one stored scale."""
    highest: float
    """The largest finite scale."""
    power_of_two: bool
    """The format has an exponent and nothing else."""


_NUMBERS = (
    NumberFormat("int8", bits=8, lowest=-127, highest=127, smallest_step=1, mantissa_bits=None),
    NumberFormat("int4", bits=4, lowest=-7, highest=7, smallest_step=1, mantissa_bits=None),
    NumberFormat("uint4", bits=4, lowest=0, highest=15, smallest_step=1, mantissa_bits=None),
    NumberFormat("e4m3", bits=8, lowest=-448, highest=448, smallest_step=2**-9, mantissa_bits=3),
    NumberFormat("e2m1", bits=4, lowest=-6, highest=6, smallest_step=2**-1, mantissa_bits=1),
)

NUMBERS: Mapping[str, NumberFormat] = MappingProxyType({number.name: number for number in _NUMBERS})
"""By name. int8 and int4 leave out their lowest code, so that the grid is symmetric; e4m3 is the variant without
infinities (arXiv 2209.05433, torch.float8_e4m3fn); e2m1 is the element of OCP MX v1.0."""

_SCALES = (
    ScaleFormat("float32", bits=32, highest=float.fromhex("0x1.fffffep127"), power_of_two=False),
    ScaleFormat("float16", bits=16, highest=FP16_MAX, power_of_two=False),
    ScaleFormat("e8m0", bits=8, highest=2.0**127, power_of_two=True),
)

SCALES: Mapping[str, ScaleFormat] = MappingProxyType({scale.name: scale for scale in _SCALES})
"""By name. e8m0 is the shared scale of OCP MX v1.0: 2^-127 to 2^127 and NaN."""


def round_to_format(x: torch.Tensor, number: NumberFormat) -> torch.Tensor:
    """Return the value of the format nearest to each element of x, of any shape, float32.

    Between two equally near values the one with the even code is taken. What lies beyond the format's ends, infinities
    too, becomes the nearer end. NaN stays NaN. A negative value that rounds to zero gives -0.0.
    """
    inside = x.clamp(number.lowest, number.highest)
    if number.mantissa_bits is None:
        return (inside / number.smallest_step).round() * number.smallest_step
    _, exponent = torch.frexp(inside)  # |x| = m * 2^exponent with m in [1/2, 1): its octave begins at 2^(exponent - 1)
    step = torch.clamp(exponent - 1 - number.mantissa_bits, min=int(math.log2(number.smallest_step)))
    size = torch.ldexp(torch.ones_like(inside), step)
    return (inside / size).round() * size
