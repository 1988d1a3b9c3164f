"""Computes the power of two that a block of a microscaling (MX) format shares.

Source: OCP Microscaling Formats (MX) Specification v1.0, section 6.3: the largest power of two that is not above the
block's largest magnitude, divided by the largest power of two of the element format.
"""

import math

import torch

LOWEST, HIGHEST = -127, 127
"""Exponents of e8m0."""


def shared_exponent_scale(groups: torch.Tensor, highest: float) -> torch.Tensor:
    """Return the shared scale of each block: [R, G, g] -> [R, G, 1], float32, for elements of at most `highest`.

    The largest magnitude lies between 2^k and 2^(k+1) once divided by it, where 2^k is the largest power of two of the
    format; what lies above `highest` there saturates. 2^-127 for a block of zeros; NaN for one that holds NaN or
    infinity.
    """
    abs_max = groups.abs().amax(dim=-1, keepdim=True)
    _, exponent = torch.frexp(abs_max)  # abs_max = m * 2^exponent with m in [1/2, 1)
    shared = (exponent - 1 - math.floor(math.log2(highest))).clamp(LOWEST, HIGHEST)
    shared = torch.where(abs_max == 0, LOWEST, shared)
    scale = torch.ldexp(torch.ones_like(abs_max), shared)
    return torch.where(torch.isfinite(abs_max), scale, torch.nan)
