"""Finds outlier dimensions after LLM.int8() (Dettmers et al., arXiv 2208.07339, section 4.1).

A hidden dimension j is an outlier when abs(x) reaches the magnitude at j in enough of the layers, and enough of
the token positions have it in one layer or more. The layers look at what enters the attention's and the MLP's
projections. Each layer keeps what it saw of the dimensions that reach the magnitude at all; the definition is
applied to all layers together at the end. In some models those are a few dimensions, in others all.

The magnitude is a number, or a multiple of the root mean square of the token's channels: every token has a limit of
its own, and what is said here holds of both.

    T token positions of a batch, d hidden dimensions, k dimensions that reached the magnitude
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workers.measurement.statistics import backends
from workers.measurement.statistics.cpu.bit_patterns import INFINITY, MAGNITUDE, Patterns, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.reduction import F32, F64, I64
from workers.measurement.statistics.transfers import HostCopies

_KEPT_BITS = 20
"""Values over the magnitude are counted by the top 20 bits of their pattern: exact for what bf16 and fp16 hold
(but fp16 subnormals), within 2^-11 of its value for float32."""
_MOST_KEYS = 1 << 25
"""Values that are kept on a device one by one; past that, equal ones are counted before the layer is done."""
_NO_VALUES = (np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Hits:
    """Where one layer reached the magnitude."""

    dimensions: I64
    """[k], ascending."""
    positions: NDArray[np.uint8]
    """[k, bytes]: a bit for every token position, set where abs(x) reached the magnitude; batches begin with a byte."""
    abs_max: F32
    """[k]."""
    values: I64
    """[n], ascending: dimension and top bits of the pattern of the values that reached it, each pair once."""
    counts: I64
    """[n]: how often each occurred."""


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


class _DeviceHits(NamedTuple):
    """What a batch left on a device."""

    batch: int
    dimensions: I64
    """[k], on the host."""
    positions: torch.Tensor
    """[k, bytes], uint8."""
    abs_max: torch.Tensor
    """[k], float32."""
    keys: torch.Tensor
    """[values], int64: dimension and top bits of the pattern of every value that reached the magnitude."""


class LayerHits:
    """Accumulates where one layer reached the magnitude."""

    def __init__(self, tokens: Sequence[int], copies: HostCopies | None = None) -> None:
        """Begin with nothing; tokens: of every batch; `copies` brings counts from a device, together with others."""
        self._bytes = [0, *np.cumsum([_bytes(count) for count in tokens]).tolist()]
        self._hits: list[tuple[int, Hits]] = []
        self._on_device: list[_DeviceHits] = []
        self._copies = copies or HostCopies()

    def add(self, batch: int, x: torch.Tensor, limits: torch.Tensor, over: torch.Tensor) -> None:
        """Add what enters a batch's projections, [T, d], with each token's limit [T], float32, on the same device.

        over: [d], how many values reach them, on the same device.

        On a device, what is noted stays there until the layer's hits are asked for; only the counts are fetched.
        """
        note = self._note if self._copies.on_host else self._note_on_device
        self._copies.add((over,), functools.partial(note, batch, x, limits))

    def _note(self, batch: int, x: torch.Tensor, limits: torch.Tensor, over: I64) -> None:
        dimensions = np.flatnonzero(over)
        if not dimensions.size:
            return
        positions = np.zeros((len(dimensions), _bytes(len(x))), np.uint8)
        abs_max = np.zeros(len(dimensions), np.float32)
        values = np.empty(int(over.sum()), np.int64)
        _note(patterns(x), limits.numpy(), dimensions, positions, abs_max, values)
        self._hits.append((batch, Hits(dimensions, positions, abs_max, *np.unique(values, return_counts=True))))

    def _note_on_device(self, batch: int, x: torch.Tensor, limits: torch.Tensor, over: I64) -> None:
        dimensions = np.flatnonzero(over)
        if not dimensions.size:
            return
        chosen = torch.from_numpy(dimensions).to(x.device, non_blocking=True)
        noted = backends.note_hits(x, chosen, int(over.sum()), limits, _KEPT_BITS)
        self._on_device.append(_DeviceHits(batch, dimensions, *noted))
        if sum(len(hits.keys) for hits in self._on_device) > _MOST_KEYS:
            self._fetch()

    def _fetch(self) -> None:
        """Begin to bring what was noted on the device to the host; equal values are counted there first."""
        noted, self._on_device = self._on_device, []
        if not noted:
            return
        keys, counts = torch.unique(torch.cat([hits.keys for hits in noted]), return_counts=True)
        for number, hits in enumerate(noted):
            # The values of all batches come with the first.
            values = (keys, counts) if number == 0 else ()
            self._copies.add((hits.positions, hits.abs_max, *values), functools.partial(self._take, hits))

    def _take(self, noted: _DeviceHits, positions: NDArray[np.uint8], abs_max: F32, *values: I64) -> None:
        """Keep what came from the device."""
        keys, counts = (array.copy() for array in values or _NO_VALUES)
        self._hits.append((noted.batch, Hits(noted.dimensions, positions.copy(), abs_max.copy(), keys, counts)))

    def hits(self) -> Hits:
        """Return what was seen."""
        self._copies.finish()
        self._fetch()
        self._copies.finish()
        dimensions = np.unique(np.concatenate([np.empty(0, np.int64), *(hits.dimensions for _, hits in self._hits)]))
        positions = np.zeros((len(dimensions), self._bytes[-1]), np.uint8)
        abs_max = np.zeros(len(dimensions), np.float32)
        for batch, hits in self._hits:
            rows = np.searchsorted(dimensions, hits.dimensions)
            positions[rows, self._bytes[batch] : self._bytes[batch + 1]] |= hits.positions
            abs_max[rows] = np.maximum(abs_max[rows], hits.abs_max)
        return Hits(dimensions, positions, abs_max, *_added_up((hits.values, hits.counts) for _, hits in self._hits))


def outlier_dimensions(
    hits_of: Callable[[int], Hits], layers: int, positions: int, layers_fraction: float, positions_fraction: float
) -> list[OutlierDimension]:
    """Apply the definition: return the dimensions that reach both fractions, in ascending order.

    Args:
        hits_of: returns a layer's hits.
        layers: how many there are.
        positions: token positions in all.
        layers_fraction: share of the layers in which a dimension must reach the magnitude.
        positions_fraction: share of the positions that must have it in one layer or more.
    """
    dimensions, times = np.unique(
        np.concatenate([hits_of(layer).dimensions for layer in range(layers)]), return_counts=True
    )
    enough = times / layers >= layers_fraction
    dimensions, times = dimensions[enough], times[enough]
    if not dimensions.size:
        return []
    seen = _over_all_layers(hits_of, layers, dimensions)
    flagged = []
    for j, count, bits, abs_max in zip(dimensions.tolist(), times.tolist(), seen.positions, seen.abs_max, strict=True):
        share = int(np.unpackbits(bits).sum()) / positions
        if share >= positions_fraction:
            values, counts = _values_of(seen, j)
            flagged.append(
                OutlierDimension(
                    dimension=j,
                    layers_fraction=count / layers,
                    positions_fraction=share,
                    abs_max=float(abs_max),
                    one_sided=bool(values[0] > 0 or values[-1] < 0),
                    quartiles=_weighted_quartiles(values, counts),
                )
            )
    return flagged


def _bytes(positions: int) -> int:
    return -(-positions // 8)


@compiled()
def _note(
    x: Patterns, limits: F32, dimensions: I64, positions: NDArray[np.uint8], abs_max: F32, values: I64
) -> None:  # pragma: no cover - compiled
    """Note every value of dimensions [k] of tokens [T, d] that reaches its token's limit [T].

    positions [k, bytes], abs_max [k] and values, which has room for as many, are those of `Hits`.
    """
    width, n = len(dimensions), 0
    row, bits = np.empty(width, x.flat.dtype), np.empty(width, np.uint32)
    decoded, peaks = bits.view(np.float32), abs_max.view(np.uint32)
    for t, limit in enumerate(limits):
        # Gather the token's values at these dimensions, and decode them together.
        for k in range(width):
            row[k] = x.flat[t * x.strides[0] + dimensions[k]]
        decode(row, x.kind, bits)
        for k in range(width):
            pattern = bits[k] & MAGNITUDE
            if abs(decoded[k]) >= limit and pattern < INFINITY:
                # The first token is the highest bit of the first byte. Magnitudes order as their patterns do.
                positions[k, t // 8] |= np.uint8(128 >> t % 8)
                peaks[k] = max(peaks[k], pattern)
                values[n] = dimensions[k] << _KEPT_BITS | bits[k] >> np.uint32(32 - _KEPT_BITS)
                n += 1


def _over_all_layers(hits_of: Callable[[int], Hits], layers: int, dimensions: I64) -> Hits:
    """Return the hits of all layers together, of these dimensions alone; each layer has some of them."""
    positions, abs_max = None, np.zeros(len(dimensions), np.float32)
    values = counts = np.empty(0, np.int64)
    for layer in range(layers):
        hits = hits_of(layer)
        chosen = np.isin(hits.dimensions, dimensions)
        rows = np.searchsorted(dimensions, hits.dimensions[chosen])
        if positions is None:
            positions = np.zeros((len(dimensions), hits.positions.shape[1]), np.uint8)
        positions[rows] |= hits.positions[chosen]
        abs_max[rows] = np.maximum(abs_max[rows], hits.abs_max[chosen])
        own = np.isin(hits.values >> _KEPT_BITS, dimensions)
        values, counts = _added_up([(values, counts), (hits.values[own], hits.counts[own])])
    assert positions is not None, "no layers"
    return Hits(dimensions, positions, abs_max, values, counts)


def _added_up(parts: Iterable[tuple[I64, I64]]) -> tuple[I64, I64]:
    """Add up counted values; each of them stands once in the result, in ascending order."""
    values, counts = zip(_NO_VALUES, *parts, strict=True)
    unique, place = np.unique(np.concatenate(values), return_inverse=True)
    total = np.bincount(place, weights=np.concatenate(counts)).astype(np.int64)
    return unique, total


def _values_of(hits: Hits, dimension: int) -> tuple[F64, I64]:
    """Return a dimension's values, ascending, and how often each occurred."""
    first, last = np.searchsorted(hits.values, [dimension << _KEPT_BITS, (dimension + 1) << _KEPT_BITS])
    kept = (hits.values[first:last] & ((1 << _KEPT_BITS) - 1)).astype(np.uint32)
    values = (kept << np.uint32(32 - _KEPT_BITS)).view(np.float32).astype(np.float64)
    order = np.argsort(values)
    return values[order], hits.counts[first:last][order]


def _weighted_quartiles(values: F64, counts: I64) -> tuple[float, float, float]:
    """Quartiles of the multiset {values[i] x counts[i]}, values ascending, linear between order statistics."""
    upto = np.cumsum(counts)
    ranks = np.array([0.25, 0.5, 0.75]) * (int(upto[-1]) - 1)
    below, above = (values[np.searchsorted(upto, whole(ranks), side="right")] for whole in (np.floor, np.ceil))
    q25, q50, q75 = (below + (above - below) * (ranks - np.floor(ranks))).tolist()
    return q25, q50, q75
