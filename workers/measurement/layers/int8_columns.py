"""Counts, at the inputs of the projections that int8 replaces, the columns that it computes in 16 bits.

An input that several projections share is counted once for each threshold, and where the magnitude of the definition
of outlier dimensions selects the same values, not at all: those counts are there already.

    N sequences of S tokens, d columns
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import torch

from service.contracts.schemes import BITSANDBYTES_INT8, Scheme
from workers.measurement.layers.sites import Site
from workers.measurement.models.projections import Projection
from workers.measurement.statistics import backends
from workers.measurement.statistics.fp16_columns import Fp16Columns, reaching, reaching_in_fp16
from workers.measurement.statistics.transfers import HostCopies


class Int8Columns:
    """The inputs of one layer, by every threshold of an int8 scheme that replaces what they enter."""

    def __init__(self, magnitude: float, copies: HostCopies) -> None:
        """Begin with nothing; magnitude: at which values have been counted when `add` is called."""
        self._magnitude = magnitude
        self._copies = copies
        self._at: defaultdict[Site, dict[float, Fp16Columns]] = defaultdict(dict)

    def watch(self, scheme: Scheme, replaced: Iterable[Projection], left: Collection[str]) -> Mapping[str, Fp16Columns]:
        """Count for a scheme from now on; return the counts by component, none for another kernel than int8.

        Args:
            scheme: with its settings.
            replaced: the projections that it may replace.
            left: names of those that it leaves all the same.
        """
        if scheme.kernel != BITSANDBYTES_INT8:
            return {}
        threshold = float(scheme.settings["threshold"])
        by_component: dict[str, Fp16Columns] = {}
        for projection in replaced:
            if projection.quantized and projection.name not in left:
                by_threshold = self._at[Site(projection.input_component, "input")]
                columns = by_threshold.setdefault(threshold, Fp16Columns(self._copies))
                by_component |= dict.fromkeys(projection.parts, columns)
        return by_component

    def add(self, site: Site, x: torch.Tensor, over: torch.Tensor) -> None:
        """Add what is at a site, [..., S, d]; over: [N, d], values of each sequence that reach the magnitude."""
        if site not in self._at:
            return
        sequences = x.reshape(-1, *x.shape[-2:])
        for threshold, columns in self._at[site].items():
            columns.add(self._reaching(threshold, sequences, over), sequences.shape[1])

    def _reaching(self, threshold: float, x: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
        if threshold == 0:  # stands for none
            return torch.zeros_like(over)
        limit = reaching_in_fp16(threshold, x.dtype)
        if limit == reaching(self._magnitude, x.dtype):
            return over
        return backends.count_reaching(x, torch.full(x.shape[:2], limit, dtype=torch.float32, device=x.device))
