"""Concludes a layer: the figures that need all batches of the reference's residual stream after it.

N sequences of S tokens, d hidden dimensions
"""

import functools

import numpy as np
import torch

from workers.measurement.layers.layer_results import LayerResults
from workers.measurement.layers.sites import BLOCK_OUTPUT, HEADS_SITE, ForEach
from workers.measurement.layers.streams import REFERENCE, Streams
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.statistics.heads import head_ranges
from workers.measurement.statistics.outliers.layerwise import median_quantile_dimensions, variance_dimensions
from workers.measurement.statistics.outliers.massive import Limits, MassiveActivation, massive_activations
from workers.measurement.statistics.reduction import F32
from workers.measurement.statistics.surface import Surface, reduce_surface
from workers.measurement.statistics.transfers import HostCopies

_SEARCHES_AT_ONCE = 32
"""Sequences in which massive activations are looked for together: a device must hold their hidden states."""


def conclude_layer(
    results: LayerResults, state: SweepState, query_heads: int | None, copies: HostCopies, for_each: ForEach
) -> None:
    """Add to a layer's results its outlier dimensions, massive activations, heads and surface.

    Args:
        results: with the ranges of all batches.
        state: the reference's stream is through the layer.
        query_heads: how many heads lie side by side at the heads' site; None where that is not known.
        copies: brings figures from a device.
        for_each: applies a function to every item.
    """
    copies.finish()
    peaks = np.nan_to_num(results.ranges[BLOCK_OUTPUT].token_abs_max).reshape(state.sequences, -1)
    massive: dict[int, list[MassiveActivation]] = {}
    over = np.flatnonzero(peaks.max(axis=1) > state.analysis.massive.magnitude).tolist()
    searches = [
        functools.partial(_find_dimensions, results, state),
        *(functools.partial(_find_massive, sequence, peaks[sequence], state, copies, massive) for sequence in over),
    ]
    for begin in range(0, len(searches), _SEARCHES_AT_ONCE):
        for_each(lambda search: search(), searches[begin : begin + _SEARCHES_AT_ONCE])
        copies.finish()
    results.massive = [(sequence, activation) for sequence in over for activation in massive[sequence]]
    results.surface = functools.partial(_surface, state.streams, int(peaks.max(axis=1).argmax()))
    if query_heads and HEADS_SITE in results.ranges:
        channels = results.ranges[HEADS_SITE].channels()
        results.heads = head_ranges(channels.abs_max, channels.mean, channels.variance, query_heads)


def _find_dimensions(results: LayerResults, state: SweepState) -> None:
    """Find the residual stream's outlier dimensions, by the two definitions that look at one layer."""
    block, analysis = results.ranges[BLOCK_OUTPUT], state.analysis
    channels = block.channels()
    results.variance = variance_dimensions(channels.variance, analysis.variance.ratio)
    results.median_quantile = median_quantile_dimensions(
        lambda: state.streams.tokens(REFERENCE, len(state.measured)),
        block.histogram,
        channels.variance + channels.mean**2,
        analysis.median_quantile.quantile,
    )


def _find_massive(
    sequence: int, peaks: F32, state: SweepState, copies: HostCopies, massive: dict[int, list[MassiveActivation]]
) -> None:
    """Find a sequence's massive activations, which are put into `massive`; peaks: its tokens', [S], 0 for none."""
    thresholds = state.analysis.massive
    x: torch.Tensor = state.streams.sequence(REFERENCE, sequence)
    limits = Limits(thresholds.magnitude, thresholds.ratio)
    massive_activations(x, peaks, limits, copies, functools.partial(massive.__setitem__, sequence))


def _surface(streams: Streams, sequence: int) -> Surface:
    return reduce_surface(sequence, streams.sequence(REFERENCE, sequence))
