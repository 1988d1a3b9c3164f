"""Compares a scheme with the reference at the sites of a layer: isolated and accumulated errors.

B sequences of S tokens in a batch, d channels of a site
"""

from collections.abc import Sequence

import torch
from torch import nn

from workers.measurement.layers.capture import Capture
from workers.measurement.layers.layer_results import SchemeResults
from workers.measurement.layers.sites import BLOCK_OUTPUT, HEADS_SITE, ForEach, Site, largest_first
from workers.measurement.models.projections import Projection
from workers.measurement.statistics.deviation import ChannelErrors, DeviationStatistics
from workers.measurement.statistics.heads import HeadDeviation
from workers.measurement.statistics.transfers import HostCopies


class SchemeComparison:
    """Adds a scheme's errors at one layer to its results there, batch by batch."""

    def __init__(
        self,
        results: SchemeResults,
        module: nn.Module,
        parts: Sequence[Projection],
        query_heads: int | None,
        copies: HostCopies,
        for_each: ForEach,
    ) -> None:
        """Begin with nothing.

        Args:
            results: takes the errors.
            module: the scheme's copy of the layer.
            parts: the layer's projections.
            query_heads: how many heads lie side by side at the heads' site; None where that is not known.
            copies: brings figures from a device.
            for_each: applies a function to every site.
        """
        self.module = module
        self._results = results
        self._parts = parts
        self._query_heads = query_heads
        self._copies = copies
        self._for_each = for_each

    def add_isolated(self, reference: Capture) -> None:
        """Apply the quantized projections to the reference's inputs, and compare their outputs with the reference's."""
        for projection in self._parts:
            if projection.name not in reference.inputs or not projection.quantized:
                continue
            with torch.no_grad():
                output = self.module.get_submodule(projection.name)(reference.inputs[projection.name])
            for component, rows in projection.parts.items():
                site = Site(component, "output")
                statistics = self._results.isolated.setdefault(site, DeviationStatistics(self._copies))
                statistics.add(reference.outputs[projection.name][..., rows], output[..., rows])
            del output  # before the next one comes up

    def add_accumulated(self, reference: dict[Site, torch.Tensor], own: dict[Site, torch.Tensor]) -> None:
        """Compare the scheme's own stream with the reference's, [..., S, d] at every site that both have.

        One of them lacks a site where no token went to an expert.
        """
        results = self._results
        both = [site for site in largest_first(reference) if site in own]
        for site in both:
            results.accumulated.setdefault(site, DeviationStatistics(self._copies))
        results.channel_errors = results.channel_errors or ChannelErrors(self._copies)
        results.channel_errors.add(reference[BLOCK_OUTPUT], own[BLOCK_OUTPUT])
        self._for_each(lambda site: results.accumulated[site].add(reference[site], own[site]), both)
        if self._query_heads and HEADS_SITE in reference:
            results.heads = results.heads or HeadDeviation(self._query_heads, self._copies)
            results.heads.add(reference[HEADS_SITE], own[HEADS_SITE])
