"""Quantizes tensors to a grid: a number format, and a scale shared by each group of elements.

One algorithm serves every format: choose a scale (and a zero point) for each group, divide, round to the format,
multiply back.

    R rows, n elements of a row, G groups of a row, g elements of a group
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

from workers.measurement.quantization.formats import NUMBERS, SCALES, NumberFormat, ScaleFormat, round_to_format
from workers.measurement.quantization.scales import absmax_scale, minmax_scale, shared_exponent_scale, zero_point

Group = int | Literal["channel", "token", "tensor"]
"""So many neighbors along the last dimension; all of it (an output channel's weights, a token's activations); or
the whole tensor."""


class Steps(NamedTuple):
    """The map from codes to values in each group, [R, G, 1] both, float32: value = scale * (code - zero point)."""

    scale: torch.Tensor
    zero_point: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """A number format, how many elements share a scale, and in what the scale is stored."""

    number: NumberFormat
    group: Group
    scale: ScaleFormat

    @classmethod
    def of(cls, settings: Mapping[str, float | int | str | bool], role: str) -> "Grid | None":
        """Return the grid of a scheme's settings `ROLE_format`, `ROLE_group` and `ROLE_scale`.

        None where there is no `ROLE_format`: the tensor stays as it is. Raises KeyError for a name that is not known.
        """
        if f"{role}_format" not in settings:
            return None
        group: Group = settings[f"{role}_group"]  # type: ignore[assignment]
        return cls(NUMBERS[str(settings[f"{role}_format"])], group, SCALES[str(settings[f"{role}_scale"])])

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., n] rounded to this grid, float32.

        A group of zeros stays zero. NaN or infinity in a group makes all of it NaN.
        """
        groups = cut(x.float(), self.group)
        steps = self.steps(groups)
        return joined(self.decode(self.encode(groups, steps), steps), x.shape, self.group)

    def steps(self, groups: torch.Tensor) -> Steps:
        """Choose the scale and the zero point of each group of [R, G, g]."""
        highest = self.number.highest
        if self.scale.power_of_two:
            chosen = shared_exponent_scale(groups, highest)
        elif self.number.has_zero_point:
            chosen = self._stored(minmax_scale(groups, highest))
            return Steps(chosen, zero_point(groups, chosen, highest))
        else:
            chosen = self._stored(absmax_scale(groups, highest))
        return Steps(chosen, torch.zeros_like(chosen))

    def encode(self, groups: torch.Tensor, steps: Steps) -> torch.Tensor:
        """Return the elements of the number format that stand for groups [R, G, g], float32."""
        scaled = torch.where(steps.scale == 0, 0.0, groups / steps.scale)
        return round_to_format(scaled + steps.zero_point, self.number)

    def decode(self, codes: torch.Tensor, steps: Steps) -> torch.Tensor:
        """Return the values that elements [R, G, g] of the number format stand for, float32."""
        return steps.scale * (codes - steps.zero_point)

    def nbytes(self, shape: torch.Size) -> int:
        """Return the bytes that a tensor of the shape takes: codes, scales and zero points, each packed."""
        rows, width = (1, shape.numel()) if self.group == "tensor" else (shape[:-1].numel(), shape[-1])
        groups = rows * -(-width // self.group) if isinstance(self.group, int) else rows
        beside = self.scale.bits + (self.number.bits if self.number.has_zero_point else 0)
        return -(-shape.numel() * self.number.bits // 8) + -(-groups * beside // 8)

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Round finite scales to what is stored: one that is too large becomes the largest, one too small 0."""
        within = torch.where(scale.isfinite(), scale.clamp(max=self.scale.highest), scale)
        return within.to(getattr(torch, self.scale.name)).float()


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
