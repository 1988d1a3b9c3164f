"""Computes the scale of a group in a symmetric format from its largest magnitude (absmax quantization)."""

import torch


def absmax_scale(groups: torch.Tensor, highest: float) -> torch.Tensor:
    """Return abs_max / highest of each group: [R, G, g] -> [R, G, 1], float32.

    0 for a group of zeros; NaN for one that holds NaN, infinity for one that holds infinity.
    """
    return groups.abs().amax(dim=-1, keepdim=True) / highest
