"""What every kernel makes of a projection, and the settings that it is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

Settings = Mapping[str, float | int | str | bool]


class Refused(Exception):
    """A kernel does not take a projection; the message says what of it, and what is allowed."""


@dataclass(frozen=True)
class QuantisedProjection:
    """A projection after quantisation."""

    module: nn.Module
    """Takes and gives what the projection did."""
    weight: torch.Tensor
    """What the stored weight stands for, [out, in]."""
    nbytes: int
    """Bytes of the stored weight with its scales; the bias is not counted."""
    path: str
    """The code path that computes it, where there are several that differ in the last digits."""


def with_bias(module: Any, projection: nn.Module) -> nn.Module:
    """Give a quantised module the bias of the projection, if it has one, and make it ready to run."""
    if projection.bias is not None:
        # A copy, for bitsandbytes casts the bias in place to the type it computes in.
        bias = cast(torch.Tensor, projection.bias).detach()
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    quantised: nn.Module = module.eval().requires_grad_(False)
    return quantised
