"""Simulates a Linear in any format of `formats`: rounds weights and inputs to a grid, and multiplies them.

The weight is rounded once, row by row, so no group of it may reach over rows. Inputs are rounded at each call where
the scheme says so, with scales taken from the input itself (dynamic quantization): one for each token, or one for the
whole batch [B, S, d]. The matrix product runs in the input's type; in a 16-bit model the values on the grid are
therefore rounded to 16 bits once more, which is far below the steps of every format here.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from workers.measurement.quantization.grid import Grid
from workers.measurement.quantization.projection import QuantizedProjection, Settings, row_ranges, with_bias


class SimulatedLinear(nn.Module):
    """A Linear whose weight lies on a grid, and whose inputs are put on one at each call."""

    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, inputs: Grid | None) -> None:
        """Take a weight [out, in] that is on its grid already; inputs are left as they are without a grid."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None
        self._inputs = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [..., out] for x [..., in], in the type of x."""
        rounded = x if self._inputs is None else self._inputs.quantize(x).to(x.dtype)
        return functional.linear(rounded, self.weight.to(x.dtype), self.bias)


def simulated_linear(weight: torch.Tensor, bias: torch.Tensor | None, settings: Settings) -> QuantizedProjection:
    """Quantize a weight [out, in], with a bias [out] or none, to the grids that the settings name.

    Settings: `weight_format`, `weight_group`, `weight_scale`, and for inputs `input_format`, `input_group`,
    `input_scale`, without which they are left as they are.
    """
    grid = Grid.of(settings, "weight")

    def on_grid(rows: slice) -> torch.Tensor:
        return weight[rows].float() if grid is None else grid.quantize(weight[rows])

    values = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    for rows in row_ranges(weight):
        values[rows] = on_grid(rows)
    module: Any = SimulatedLinear(values, Grid.of(settings, "input"))
    return QuantizedProjection(
        module=with_bias(module, bias),
        dequantized=on_grid,
        nbytes=weight.nbytes if grid is None else grid.nbytes(weight.shape),
        path=f"simulated on {weight.device.type}",
    )
