"""What happens while one layer is in memory: every stream advances through it, and is measured on the way.

B sequences of S tokens in a batch; T token positions in all; d channels of a site
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.measurement.errors import CannotQuantize, first_line
from workers.measurement.layers.capture import BLOCK_OUTPUT, Capture, Site, capturing
from workers.measurement.layers.int8_columns import Int8Columns
from workers.measurement.layers.layer_results import LayerFindings, SchemeFindings
from workers.measurement.layers.streams import REFERENCE, Streams
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.components import heads
from workers.measurement.models.decoder import run_layer
from workers.measurement.models.projections import ATTENTION_INPUT, MLP_INPUT, Projection, projections
from workers.measurement.runtime.memory import is_fatal
from workers.measurement.statistics import backends
from workers.measurement.statistics.channel_errors import ChannelErrors
from workers.measurement.statistics.cpu.threads import each
from workers.measurement.statistics.deviation import DeviationStatistics
from workers.measurement.statistics.heads import HeadDeviation, head_ranges
from workers.measurement.statistics.layerwise import median_quantile_dimensions, variance_dimensions
from workers.measurement.statistics.llm_int8 import LayerHits
from workers.measurement.statistics.massive import Limits, MassiveActivation, massive_activations
from workers.measurement.statistics.reduction import F32
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.surface import Surface, reduce_surface
from workers.measurement.statistics.transfers import HostCopies

LLM_INT8_SITES = frozenset({Site(ATTENTION_INPUT[0], "input"), Site(MLP_INPUT[0], "input")})
"""Where LLM.int8() looks for outlier dimensions."""
HEADS_SITE = Site("attn.o", "input")
"""The heads' outputs, side by side."""
_SEARCHES_AT_ONCE = 32
"""Sequences in which massive activations are looked for together: a device must hold their hidden states."""


class LayerPass:
    """One layer, its quantized copies, and what is found at them."""

    def __init__(self, state: SweepState, index: int, layer: nn.Module) -> None:
        self._state = state
        self._layer = layer
        self._config = state.decoder.layer_config(index)
        self._parts = projections(layer, self._config)
        self._heads = heads(self._config)
        self._each = each if state.decoder.device.type == "cpu" else _in_turn
        copies = {s.name: state.trials.quantize(index, layer, self._replaced(index, s.name), s) for s in state.schemes}
        state.pages.check()
        self._modules = {name: copied.module for name, copied in copies.items()}
        schemes = {name: SchemeFindings(c.weight_errors, c.saved_bytes, c.paths, c.left) for name, c in copies.items()}
        self._copies = HostCopies(state.decoder.device)
        self._columns = Int8Columns(state.analysis.llm_int8.magnitude, self._copies)
        for scheme in state.schemes:
            found, replaced = schemes[scheme.name], self._replaced(index, scheme.name)
            found.fp16_columns = self._columns.watch(scheme, replaced, found.left)
        tokens = [batch.token_ids.numel() for batch in state.measured]
        hits, relative = (LayerHits(tokens, self._copies) for _ in range(2))
        self._found = LayerFindings(index, schemes, hits, relative)

    def run(self) -> LayerFindings:
        """Advance every stream, batch by batch, and return what was found."""
        for number, batch in enumerate(self._state.batches):
            if batch.measured:
                self._measure(number)
                self._copies.next_batch()
                self._state.pages.after_batch()
            else:
                self._pass(number)
        self._conclude()
        return self._found

    def _replaced(self, index: int, scheme: str) -> list[Projection]:
        """Return the projections that a scheme may replace: those that it does not keep."""
        kept, layer = self._state.kept.get(scheme, ()), f"{self._state.decoder.prefix}{index}"
        return [part for part in self._parts if f"{layer}.{part.name}" not in kept]

    def _pass(self, number: int) -> None:
        """Advance every stream by one batch without measuring it; keep the last tokens at the depth asked for."""
        for name, module in {REFERENCE: self._layer, **self._modules}.items():
            hidden = self._advance(name, module, number)
            if self._found.layer == self._state.analysis.label_depth:
                self._found.labelled.setdefault(name, []).append(hidden[:, -1].float().cpu().numpy())

    def _measure(self, number: int) -> None:
        """Advance every stream by one batch, and measure it: the reference first, then each scheme against it."""
        captured, hidden = self._advance_captured(REFERENCE, self._layer, number)
        sites = captured.sites(self._parts) | {BLOCK_OUTPUT: hidden}
        self._measure_ranges(sites, number)
        for name, found in self._found.schemes.items():
            self._measure_isolated(found, self._modules[name], captured)
            self._measure_accumulated(name, found, sites, number)

    def _measure_isolated(self, found: SchemeFindings, module: nn.Module, captured: Capture) -> None:
        """Apply a scheme's projections to the reference's inputs, and compare what they give."""
        for projection in self._parts:
            if projection.name not in captured.inputs or not projection.quantized:
                continue
            with torch.no_grad():
                output = module.get_submodule(projection.name)(captured.inputs[projection.name])
            for component, rows in projection.parts.items():
                reference = captured.outputs[projection.name][..., rows]
                statistics = found.isolated.setdefault(Site(component, "output"), DeviationStatistics(self._copies))
                statistics.add(reference, output[..., rows])
            del output  # before the next one comes up

    def _measure_accumulated(
        self, name: str, found: SchemeFindings, sites: dict[Site, torch.Tensor], number: int
    ) -> None:
        """Advance a scheme's own stream by one batch, and hold it against the reference's sites."""
        module = self._modules[name]
        own, hidden = self._advance_captured(name, module, number)
        own_sites = own.sites(self._parts) | {BLOCK_OUTPUT: hidden}
        both = [site for site in _largest_first(sites) if site in own_sites]
        for site in both:
            found.accumulated.setdefault(site, DeviationStatistics(self._copies))
        found.channel_errors = found.channel_errors or ChannelErrors(self._copies)
        found.channel_errors.add(sites[BLOCK_OUTPUT], hidden)
        self._each(lambda site: found.accumulated[site].add(sites[site], own_sites[site]), both)
        if self._heads and HEADS_SITE in sites:
            found.heads = found.heads or HeadDeviation(self._heads.query, self._copies)
            found.heads.add(sites[HEADS_SITE], own_sites[HEADS_SITE])

    def _advance_captured(self, stream: str, module: nn.Module, number: int) -> tuple[Capture, torch.Tensor]:
        """Advance a stream by one batch, and capture its projections as they were, whatever the layer did to them."""
        with capturing(module, self._parts, self._state.overwritten) as captured:
            hidden = self._run(stream, module, number)
        if overwritten := captured.overwritten():
            self._state.overwritten.update(overwritten)
            return self._advance_captured(stream, module, number)
        self._state.streams.put(stream, number, hidden)
        return captured, hidden

    def _advance(self, stream: str, module: nn.Module, number: int) -> torch.Tensor:
        hidden = self._run(stream, module, number)
        self._state.streams.put(stream, number, hidden)
        return hidden

    def _run(self, stream: str, module: nn.Module, number: int) -> torch.Tensor:
        """Return what a layer makes of a stream's batch."""
        arguments = self._state.arguments[number][self._found.layer]
        try:
            return run_layer(module, self._state.streams.get(stream, number), arguments)
        except RuntimeError as error:
            if stream == REFERENCE or is_fatal(error):
                raise
            # On a few tokens the first layer of its kind did.
            where = f"{stream}: layer {self._found.layer}"
            raise CannotQuantize(f"{where} does not run quantized: {first_line(error)}") from error

    def _measure_ranges(self, sites: dict[Site, torch.Tensor], number: int) -> None:
        ranges = self._found.ranges
        for site, tensor in sites.items():
            if site not in ranges:
                magnitude = self._state.analysis.llm_int8.magnitude
                ranges[site] = SiteStatistics(tensor.shape[-1], magnitude, self._copies)

        def add(site: Site) -> None:
            over = ranges[site].add(sites[site])
            self._columns.add(site, sites[site], over)
            if site in LLM_INT8_SITES:
                self._find_hits(number, sites[site], over)

        self._each(add, _largest_first(sites))

    def _find_hits(self, number: int, x: torch.Tensor, over: torch.Tensor) -> None:
        """Add what enters projections to the outlier dimensions; over: [N, d], values that reach the magnitude."""
        analysis, found = self._state.analysis, self._found
        sequences, tokens = x.reshape(-1, *x.shape[-2:]), x.flatten(0, -2)
        magnitude = torch.full((len(tokens),), analysis.llm_int8.magnitude, dtype=torch.float32, device=x.device)
        found.llm_int8.add(number, tokens, magnitude, over.sum(dim=0))
        limits = backends.token_limits(sequences, analysis.llm_int8_relative.magnitude)
        reaching = backends.count_reaching(sequences, limits).sum(dim=0)
        found.llm_int8_relative.add(number, tokens, limits.flatten(), reaching)

    def _conclude(self) -> None:
        """Find what only the whole layer shows."""
        self._copies.finish()
        found, magnitude = self._found, self._state.analysis.massive.magnitude
        peaks = np.nan_to_num(found.ranges[BLOCK_OUTPUT].token_abs_max).reshape(self._state.sequences, -1)
        standing_out = np.flatnonzero(peaks.max(axis=1) > magnitude).tolist()
        massive: dict[int, list[MassiveActivation]] = {}
        of_sequences = [functools.partial(self._massive, number, peaks[number], massive) for number in standing_out]
        searches = [self._find_dimensions, *of_sequences]
        for begin in range(0, len(searches), _SEARCHES_AT_ONCE):
            self._each(lambda find: find(), searches[begin : begin + _SEARCHES_AT_ONCE])
            self._copies.finish()
        found.massive = [(number, one) for number in standing_out for one in massive[number]]
        found.surface = functools.partial(_surface, self._state.streams, int(peaks.max(axis=1).argmax()))
        self._find_heads()

    def _find_dimensions(self) -> None:
        """Find the residual stream's outlier dimensions."""
        found, analysis = self._found, self._state.analysis
        block = found.ranges[BLOCK_OUTPUT]
        channels = block.channels()
        found.variance = variance_dimensions(channels.variance, analysis.variance.ratio)
        found.median_quantile = median_quantile_dimensions(
            self._residual_stream,
            block.histogram,
            channels.variance + channels.mean**2,
            analysis.median_quantile.quantile,
        )

    def _massive(self, number: int, peaks: F32, found: dict[int, list[MassiveActivation]]) -> None:
        """Find the massive activations of a sequence; peaks: its tokens', [S], 0 for none."""
        thresholds = self._state.analysis.massive
        limits = Limits(thresholds.magnitude, thresholds.ratio)
        x = self._state.streams.sequence(REFERENCE, number)
        massive_activations(x, peaks, limits, self._copies, functools.partial(found.__setitem__, number))

    def _find_heads(self) -> None:
        """Find what the heads reach."""
        found, heads = self._found, self._heads
        if heads is None or HEADS_SITE not in found.ranges:
            return
        channels = found.ranges[HEADS_SITE].channels()
        found.heads = head_ranges(channels.abs_max, channels.mean, channels.variance, heads.query)

    def _residual_stream(self) -> Iterable[torch.Tensor]:
        return self._state.streams.tokens(REFERENCE, len(self._state.measured))


def _surface(streams: Streams, sequence: int) -> Surface:
    return reduce_surface(sequence, streams.sequence(REFERENCE, sequence))


def _largest_first(sites: dict[Site, torch.Tensor]) -> list[Site]:
    return sorted(sites, key=lambda site: sites[site].numel(), reverse=True)


def _in_turn(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return list(map(work, items))
