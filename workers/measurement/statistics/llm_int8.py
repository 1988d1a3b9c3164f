"""Outlier dimensions after LLM.int8() (Dettmers et al., arXiv 2208.07339, section 4.1).

A hidden dimension j is an outlier when abs(x) reaches the magnitude at j in enough of the layers, and enough of
the token positions have it in one layer or more. The layers look at what enters the attention's and the MLP's
projections. Each layer keeps what it saw of the few dimensions that reach the magnitude at all; the definition is
applied to all layers together at the end.

    S tokens of one sequence, T token positions in all, d hidden dimensions, k dimensions that reached the magnitude
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

_KEPT_BITS = 20
"""Values over the magnitude are counted by the top 20 bits of their pattern: exact for what bf16 and fp16 hold
(but fp16 subnormals), within 2^-11 of its value for float32."""


@dataclass(frozen=True)
class Hits:
    """What one layer saw of one dimension."""

    positions: npt.NDArray[np.uint8]
    """[ceil(T / 8)]: a bit for every token position, set where abs(x) reached the magnitude."""
    patterns: U32
    """Values that reached it, by the top bits of their pattern, each once."""
    counts: I64
    """How often each occurred."""
    abs_max: float


@dataclass(frozen=True)
class OutlierDimension:
    """One flagged dimension."""

    dimension: int
    layers_fraction: float
    positions_fraction: float
    abs_max: float
    one_sided: bool
    quartiles: tuple[float, float, float]
    """Of the values at or over the magnitude, with their signs."""


class LayerHits:
    """Accumulates where one layer reached the magnitude."""

    def __init__(self, positions: int, magnitude: float) -> None:
        self._positions = positions
        self._magnitude = magnitude
        self._hit: dict[int, npt.NDArray[np.bool_]] = {}
        self._values: dict[int, list[tuple[U32, I64, float]]] = {}

    def add(self, first_position: int, x: torch.Tensor, over: I64) -> None:
        """Add one sequence [S, d] at positions from `first_position`; over: [d], counts at the magnitude."""
        reached = np.flatnonzero(over)
        if not reached.size:
            return
        columns = x[:, torch.from_numpy(reached).to(x.device)].float().cpu().numpy()
        for j, column in zip(reached.tolist(), columns.T, strict=True):
            hit = (np.abs(column) >= self._magnitude) & np.isfinite(column)
            positions = self._hit.setdefault(j, np.zeros(self._positions, np.bool_))
            positions[first_position : first_position + len(hit)] |= hit
            values = column[hit]
            patterns, counts = np.unique(values.view(np.uint32) >> np.uint32(32 - _KEPT_BITS), return_counts=True)
            self._values.setdefault(j, []).append((patterns, counts, float(np.abs(values).max())))

    def hits(self) -> dict[int, Hits]:
        """Return what was seen, by dimension."""
        found = {}
        for j in sorted(self._hit):
            patterns, counts = _merged((p, c) for p, c, _ in self._values[j])
            peak = max(abs_max for _, _, abs_max in self._values[j])
            found[j] = Hits(np.packbits(self._hit[j]), patterns, counts, peak)
        return found


def outlier_dimensions(
    layers: Iterable[dict[int, Hits]], positions: int, layers_fraction: float, positions_fraction: float
) -> list[OutlierDimension]:
    """Apply the definition: return the dimensions that reach both fractions, in ascending order.

    Args:
        layers: every layer's hits.
        positions: token positions, T.
        layers_fraction: share of the layers in which a dimension must reach the magnitude.
        positions_fraction: share of the positions that must have it in one layer or more.
    """
    seen: dict[int, list[Hits]] = {}
    count = 0
    for hits in layers:
        count += 1
        for j, found in hits.items():
            seen.setdefault(j, []).append(found)
    dimensions = (_dimension(j, seen[j], count, positions) for j in sorted(seen))
    return [
        d for d in dimensions if d.layers_fraction >= layers_fraction and d.positions_fraction >= positions_fraction
    ]


def save_hits(file: Path, hits: dict[int, Hits]) -> None:
    """Write a layer's hits as a NumPy archive."""
    ends = np.cumsum([len(h.patterns) for h in hits.values()], dtype=np.int64)
    empty = np.empty(0, np.int64)
    np.savez(
        file,
        dimensions=np.fromiter(hits, np.int64, len(hits)),
        positions=np.array([h.positions for h in hits.values()], np.uint8),
        abs_max=np.array([h.abs_max for h in hits.values()], np.float64),
        patterns=np.concatenate([empty.astype(np.uint32), *(h.patterns for h in hits.values())]),
        counts=np.concatenate([empty, *(h.counts for h in hits.values())]),
        ends=ends,
    )


def load_hits(file: Path) -> dict[int, Hits]:
    """Read what `save_hits` wrote."""
    with np.load(file) as stored:
        starts = [0, *stored["ends"].tolist()]
        return {
            int(j): Hits(
                positions=stored["positions"][i],
                patterns=stored["patterns"][starts[i] : starts[i + 1]],
                counts=stored["counts"][starts[i] : starts[i + 1]],
                abs_max=float(stored["abs_max"][i]),
            )
            for i, j in enumerate(stored["dimensions"])
        }


def _dimension(j: int, hits: list[Hits], layers: int, positions: int) -> OutlierDimension:
    patterns, counts = _merged((h.patterns, h.counts) for h in hits)
    values = (patterns << np.uint32(32 - _KEPT_BITS)).view(np.float32).astype(np.float64)
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    q25, q50, q75 = (_weighted_quantile(values, counts, f) for f in (0.25, 0.5, 0.75))
    anywhere = np.bitwise_or.reduce([h.positions for h in hits])
    return OutlierDimension(
        dimension=j,
        layers_fraction=len(hits) / layers,
        positions_fraction=int(np.unpackbits(anywhere, count=positions).sum()) / positions,
        abs_max=max(h.abs_max for h in hits),
        one_sided=bool((values > 0).all() or (values < 0).all()),
        quartiles=(q25, q50, q75),
    )


def _merged(parts: Iterable[tuple[U32, I64]]) -> tuple[U32, I64]:
    """Add up counted patterns."""
    patterns, counts = zip(*parts, strict=True)
    unique, place = np.unique(np.concatenate(patterns), return_inverse=True)
    total = np.bincount(place, weights=np.concatenate(counts)).astype(np.int64)
    return unique.astype(np.uint32), total


def _weighted_quantile(values: npt.NDArray[np.float64], counts: I64, fraction: float) -> float:
    """Quantile of the multiset {values[i] x counts[i]}, values ascending, linear between order statistics."""
    upto = np.cumsum(counts)
    rank = fraction * (int(upto[-1]) - 1)
    below, above = np.searchsorted(upto, [np.floor(rank), np.ceil(rank)], side="right")
    return float(values[below] + (values[above] - values[below]) * (rank - np.floor(rank)))
