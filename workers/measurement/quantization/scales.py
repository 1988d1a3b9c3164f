"""Computes the scale of a group of elements, and its zero point, by three algorithms.

- absmax, for symmetric formats: the largest magnitude over the format's highest value;
- min-max, for unsigned integers: the range from the least to the largest value, widened to hold zero so that zero has
  a code of its own (arXiv 1712.05877, section 2.1);
- a shared power of two, for blocks of a microscaling format (OCP Microscaling Formats (MX) Specification v1.0, section
  6.3): the largest power of two not above the largest magnitude, divided by the largest one of the element format.

    R rows, G groups of a row, g elements of a group
"""

import math

import torch

_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -127, 127
"""Of e8m0, in which shared scales are stored."""


def absmax_scale(groups: torch.Tensor, highest: float) -> torch.Tensor:
    """Return abs_max / highest of each group: [R, G, g] -> [R, G, 1], float32.

    0 for a group of zeros; NaN for one that holds NaN, infinity for one that holds infinity.
    """
    return groups.abs().amax(dim=-1, keepdim=True) / highest


def minmax_scale(groups: torch.Tensor, highest: float) -> torch.Tensor:
    """Return (max - min) / highest of each group, zero included in its range: [R, G, g] -> [R, G, 1], float32.

    0 for a group of zeros. NaN and infinities come through.
    """
    return (groups.amax(-1, keepdim=True).clamp(min=0) - groups.amin(-1, keepdim=True).clamp(max=0)) / highest


def zero_point(groups: torch.Tensor, scale: torch.Tensor, highest: float) -> torch.Tensor:
    """Return the code of zero in each group, a whole number from 0 to `highest`: [R, G, 1], float32.

    It is the code to which the group's smallest value falls below zero: -min / scale, rounded, ties to even; 0 where
    the scale is 0.
    """
    depth = torch.where(scale > 0, -groups.amin(-1, keepdim=True).clamp(max=0) / scale, 0.0)
    return depth.round().clamp(0, highest)


def shared_exponent_scale(groups: torch.Tensor, highest: float) -> torch.Tensor:
    """Return the shared scale of each block: [R, G, g] -> [R, G, 1], float32, for elements of at most `highest`.

    The largest magnitude lies between 2^k and 2^(k+1) once divided by it, where 2^k is the largest power of two of the
    format; what lies above `highest` there saturates. 2^-127 for a block of zeros; NaN for one that holds NaN or
    infinity.
    """
    abs_max = groups.abs().amax(dim=-1, keepdim=True)
    _, exponent = torch.frexp(abs_max)  # abs_max = m * 2^exponent with m in [1/2, 1)
    shared = (exponent - 1 - math.floor(math.log2(highest))).clamp(_LOWEST_EXPONENT, _HIGHEST_EXPONENT)
    shared = torch.where(abs_max == 0, _LOWEST_EXPONENT, shared)
    scale = torch.ldexp(torch.ones_like(abs_max), shared)
    return torch.where(torch.isfinite(abs_max), scale, torch.nan)
