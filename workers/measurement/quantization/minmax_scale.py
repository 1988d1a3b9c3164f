"""Computes the scale and zero point of a group in an unsigned integer format from its least and largest value.

The range is widened to hold zero, so that zero has a code of its own (arXiv 1712.05877, section 2.1).
"""

import torch


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
