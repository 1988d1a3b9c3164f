"""Made-up rows of the tables about hidden states and predictions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from service.contracts.schemes import SCHEMES

Rows = list[dict[str, Any]]

DAMAGE = {name: 0.02 + 0.012 * place for place, name in enumerate(SCHEMES)} | {"int8": 0.01, "nf4": 0.09}
"""Relative error of a projection under a scheme."""
SHARED_INPUTS = ("attn.k", "attn.v", "mlp.gate")
"""Components whose input is measured once, under another component."""


def channel_rows(random: np.random.Generator, layers: int, dimensions: Iterable[int]) -> Rows:
    """Return rows of table `channels` at block.output; every dimension is louder with depth."""
    rows = []
    for layer in range(layers):
        for place, dimension in enumerate(dimensions):
            peak = float(np.float32((2 + place) * (1 + layer) * random.lognormal(0, 0.1)))
            rows.append(
                {
                    "layer": layer, "component": "block", "port": "output", "channel": int(dimension), "min": -peak,
                    "max": peak / 2, "abs_max": peak, "mean": 0.1, "variance": 0.5, "over_threshold": 0,
                }
            )  # fmt: skip
    return rows


def surface_rows(random: np.random.Generator, positions: int, channels: int) -> Rows:
    """Return rows of table `surface`, one for each cell: noise, a loud channel, and two massive activations."""
    down, across = -(-positions // 256), -(-channels // 512)
    values = {}
    for first in range(0, positions, down):
        for left in range(0, channels, across):
            place = min(first + int(random.integers(down)), positions - 1)
            channel = min(left + int(random.integers(across)), channels - 1)
            values[place, channel] = float(np.float32(random.standard_t(6) * (1 + 12 * (left == across))))
    places = list(values)
    values[places[0]], values[places[len(places) // 2]] = 400.5, -310.25
    return [{"position": place, "channel": channel, "value": value} for (place, channel), value in values.items()]


def surface_section(rows: Rows, layer: int, positions: int, channels: int) -> dict[str, Any]:
    """Return what report.json says of these rows."""
    magnitudes = np.abs([row["value"] for row in rows])
    median = float(np.median(magnitudes))
    return {
        "layer": layer, "sequence": 2, "positions": positions, "channels": channels,
        "positions_per_cell": -(-positions // 256), "channels_per_cell": -(-channels // 512), "median_abs": median,
        "max_to_median": float(magnitudes.max()) / median,
    }  # fmt: skip


def token_rows(random: np.random.Generator, schemes: Sequence[str]) -> Rows:
    """Return rows of table `tokens`: one sequence, whose last position has no next token."""
    rows: Rows = []
    for scheme in schemes:
        for position, kl in enumerate([*random.lognormal(np.log(DAMAGE[scheme] ** 2), 1, 31), None]):
            scored = kl is not None
            rows.append(
                {
                    "scheme": scheme, "sequence": 0, "position": position, "token_id": 5,
                    "nll_reference": 2.5 if scored else None, "nll_scheme": 2.6 if scored else None,
                    "kl_divergence": kl, "same_top": bool(kl < DAMAGE[scheme] ** 2) if scored else None,
                }
            )  # fmt: skip
    return rows
