"""Measures the reference at the sites of a layer: ranges, and where the magnitudes of LLM.int8() are reached.

N sequences of S tokens in a batch, T = N * S token positions, d channels of a site
"""

import torch

from service.contracts.request import Analysis
from workers.measurement.layers.int8_columns import Int8Columns
from workers.measurement.layers.layer_results import LayerResults
from workers.measurement.layers.sites import ForEach, Site, largest_first
from workers.measurement.models.projections import ATTENTION_INPUT, MLP_INPUT
from workers.measurement.statistics import backends
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.transfers import HostCopies

LLM_INT8_SITES = frozenset({Site(ATTENTION_INPUT[0], "input"), Site(MLP_INPUT[0], "input")})
"""Where LLM.int8() looks for outlier dimensions."""


class ReferenceMeasurement:
    """Adds the reference's tensors at one layer to that layer's results, batch by batch."""

    def __init__(
        self, results: LayerResults, analysis: Analysis, columns: Int8Columns, copies: HostCopies, for_each: ForEach
    ) -> None:
        """Begin with nothing.

        Args:
            results: takes the ranges and the hits.
            analysis: the magnitudes.
            columns: is shown every site's tensor.
            copies: brings figures from a device.
            for_each: applies a function to every site.
        """
        self._results = results
        self._analysis = analysis
        self._columns = columns
        self._copies = copies
        self._for_each = for_each

    def add(self, batch: int, sites: dict[Site, torch.Tensor]) -> None:
        """Add a batch's tensor at every site, [..., S, d]."""
        ranges = self._results.ranges
        for site, tensor in sites.items():
            if site not in ranges:
                ranges[site] = SiteStatistics(tensor.shape[-1], self._analysis.llm_int8.magnitude, self._copies)

        def add_site(site: Site) -> None:
            over = ranges[site].add(sites[site])
            self._columns.add(site, sites[site], over)
            if site in LLM_INT8_SITES:
                self._add_hits(batch, sites[site], over)

        self._for_each(add_site, largest_first(sites))

    def _add_hits(self, batch: int, x: torch.Tensor, over: torch.Tensor) -> None:
        """Add what enters projections, [..., S, d], to both definitions after LLM.int8().

        over: [N, d], how many values of each sequence reach the magnitude.
        """
        analysis, results = self._analysis, self._results
        sequences, tokens = x.reshape(-1, *x.shape[-2:]), x.flatten(0, -2)
        magnitude = torch.full((len(tokens),), analysis.llm_int8.magnitude, dtype=torch.float32, device=x.device)
        results.llm_int8.add(batch, tokens, magnitude, over.sum(dim=0))
        limits = backends.token_limits(sequences, analysis.llm_int8_relative.magnitude)
        reaching = backends.count_reaching(sequences, limits).sum(dim=0)
        results.llm_int8_relative.add(batch, tokens, limits.flatten(), reaching)
