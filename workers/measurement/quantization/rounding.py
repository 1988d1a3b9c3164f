"""Rounds to the nearest value of a format, ties to even.

Source: IEEE 754-2019, section 4.3.1 (roundTiesToEven), with the saturation that OCP OFP8 v1.0 calls SAT mode.
"""

import math

import torch

from workers.measurement.quantization.formats import NumberFormat


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
