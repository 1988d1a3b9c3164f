"""Reduces one sequence's hidden state, position by channel, to a grid small enough to look at.

Averaging would wash out what the picture is for, a few values thousands of times the typical one; so each cell keeps
its largest magnitude, and where exactly that lies.

    S tokens of one sequence, d channels, [P, C] cells
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from workers.measurement.statistics.reduction import F32

MAX_ROWS = 256
"""Rows of cells."""
MAX_COLUMNS = 512
"""Columns of cells."""

_ELEMENTS_AT_ONCE = 1 << 20

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Surface:
    """The cells of one sequence, [P, C] each."""

    sequence: int
    positions: int
    """Tokens of the sequence, S."""
    channels: int
    """Channels, d."""
    position: I32
    """Where the cell's largest magnitude lies; of equal ones the first position, then the first channel."""
    channel: I32
    value: F32
    """The activation there; NaN in a cell without a finite value."""

    @property
    def positions_per_cell(self) -> int:
        """Neighboring positions in a cell; the last row may have fewer."""
        return _step(self.positions, MAX_ROWS)

    @property
    def channels_per_cell(self) -> int:
        """Neighboring channels in a cell; the last column may have fewer."""
        return _step(self.channels, MAX_COLUMNS)


def reduce_surface(sequence: int, x: torch.Tensor) -> Surface:
    """Return the cells of x [S, d], the hidden state of the sequence of that number. Only finite values count."""
    x = x.cpu()
    positions, channels = x.shape
    down, across = _step(positions, MAX_ROWS), _step(channels, MAX_COLUMNS)
    at_once = down * max(1, _ELEMENTS_AT_ONCE // (down * channels))
    parts = [
        _cells(x[first : first + at_once].float().numpy(), first, down, across)
        for first in range(0, positions, at_once)
    ]
    position, channel, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Surface(sequence, positions, channels, position.astype(np.int32), channel.astype(np.int32), value)


def _cells(x: F32, first: int, down: int, across: int) -> tuple[NDArray[np.int64], NDArray[np.int64], F32]:
    """Return position, channel and value of some rows of cells, [P, C] each; x [positions, d] begins at `first`."""
    rows, columns = -(-x.shape[0] // down), -(-x.shape[1] // across)
    magnitudes = np.full((rows * down, columns * across), -1, np.float32)  # beyond the last ones there is nothing
    magnitudes[: x.shape[0], : x.shape[1]] = np.where(np.isfinite(x), np.abs(x), -1)
    grouped = magnitudes.reshape(rows, down, columns, across).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    place = grouped.argmax(axis=-1)
    position = np.arange(rows)[:, None] * down + place // across
    channel = np.arange(columns) * across + place % across
    value = x[position, channel]
    return first + position, channel, np.where(np.isfinite(value), value, np.float32(np.nan))


def _step(size: int, most: int) -> int:
    """Return the least number of neighbors to put into one cell so that there are at most `most` cells."""
    return -(-size // most)
