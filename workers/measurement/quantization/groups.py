"""Cuts a tensor into groups of elements that share a scale, and puts it together again.

R rows, n elements of a row, G groups of a row, g elements of a group
"""

from typing import Literal

import torch
from torch.nn import functional

Group = int | Literal["channel", "token", "tensor"]
"""So many neighbors along the last dimension; all of it (an output channel's weights, a token's activations); or
the whole tensor."""


def cut(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Return x [..., n] as groups [R, G, g], filled up with zeros where the last group of a row is shorter.

    Zeros change no group's largest magnitude, and no range that holds zero. The whole tensor is one row.
    """
    rows = x.reshape(1, -1) if group == "tensor" else x.reshape(-1, x.shape[-1])
    size = group if isinstance(group, int) else rows.shape[-1]
    missing = -rows.shape[-1] % size
    return functional.pad(rows, (0, missing)).reshape(len(rows), -1, size)


def joined(groups: torch.Tensor, shape: torch.Size, group: Group) -> torch.Tensor:
    """Return the tensor of the given shape [..., n] whose groups [R, G, g] these are."""
    width = shape.numel() if group == "tensor" else shape[-1]
    return groups.flatten(-2)[..., :width].reshape(shape)
