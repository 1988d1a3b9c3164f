"""Holds the results of one layer, which depend on no other layer's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.measurement.layers.sites import Site
from workers.measurement.statistics.deviation import ChannelErrors, DeviationStatistics
from workers.measurement.statistics.fp16_columns import Fp16Columns
from workers.measurement.statistics.heads import HeadDeviation, HeadRange
from workers.measurement.statistics.outliers.llm_int8 import LayerHits
from workers.measurement.statistics.outliers.massive import MassiveActivation
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.surface import Surface

F32 = NDArray[np.float32]


@dataclass
class SchemeResults:
    """The results of one scheme at a layer."""

    weight_errors: dict[str, float | None]
    """norm_F(W - Q(W)) / norm_F(W) by component; None where W is zero."""
    saved: Mapping[str, int]
    """By module that it replaced: bytes by which the quantized weight is smaller than the layer's own."""
    paths: frozenset[str]
    """Code paths that compute the projections."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Projections that are as they were because the scheme has no way of replacing them, and why."""
    isolated: dict[Site, DeviationStatistics] = field(default_factory=dict)
    """The quantized module applied to the reference's input."""
    accumulated: dict[Site, DeviationStatistics] = field(default_factory=dict)
    """In the scheme's own stream."""
    heads: HeadDeviation | None = None
    """None where the architecture has no heads that are known."""
    fp16_columns: Mapping[str, Fp16Columns] = field(default_factory=dict)
    """By component: the input columns that int8 computes in 16 bits; of other kernels none."""
    channel_errors: ChannelErrors | None = None
    """At block.output, in the scheme's own stream."""


@dataclass
class LayerResults:
    """The results of one layer."""

    layer: int
    schemes: dict[str, SchemeResults]
    llm_int8: LayerHits
    """Where the magnitude of LLM.int8() was reached."""
    llm_int8_relative: LayerHits
    """Where the magnitude relative to the token's own was reached."""
    ranges: dict[Site, SiteStatistics] = field(default_factory=dict)
    massive: list[tuple[int, MassiveActivation]] = field(default_factory=list)
    """Massive activations at block.output, with the number of their sequence."""
    median_quantile: list[int] = field(default_factory=list)
    """Dimensions that the definition flags at block.output."""
    variance: list[int] = field(default_factory=list)
    """Dimensions that the definition flags at block.output."""
    heads: list[HeadRange] = field(default_factory=list)
    """Empty where the architecture has no heads that are known."""
    labelled: dict[str, list[F32]] = field(default_factory=dict)
    """By stream: the last tokens of the labeled prompts, [B, d] a batch; only at the depth that was asked for."""
    surface: Callable[[], Surface] | None = None
    """Makes that of the sequence with the largest magnitude at block.output, before the streams move on."""
