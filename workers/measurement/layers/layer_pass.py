"""Advances every stream through one layer in memory, measures the reference and compares each scheme.

    quantize a copy for every scheme
    for every batch:    advance the reference, and measure it
                        for every scheme: apply its copy to the reference's inputs, advance its own stream, compare both
    conclude

B sequences of S tokens in a batch, d hidden dimensions
"""

from collections.abc import Mapping

import torch
from torch import nn

from workers.measurement.layers.advance import LayerStreams
from workers.measurement.layers.capture import Capture
from workers.measurement.layers.conclusion import conclude_layer
from workers.measurement.layers.copies.quantize_layer import QuantizedLayer
from workers.measurement.layers.int8_columns import Int8Columns
from workers.measurement.layers.layer_results import LayerResults, SchemeResults
from workers.measurement.layers.reference_measurement import ReferenceMeasurement
from workers.measurement.layers.scheme_comparison import SchemeComparison
from workers.measurement.layers.sites import BLOCK_OUTPUT, Site, for_each_on
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.components import heads
from workers.measurement.models.projections import projections
from workers.measurement.statistics.fp16_columns import Fp16Columns
from workers.measurement.statistics.outliers.llm_int8 import LayerHits
from workers.measurement.statistics.transfers import HostCopies


class LayerPass:
    """One layer with its quantized copies, the measurement of the reference and a comparison for each scheme."""

    def __init__(self, state: SweepState, index: int, layer: nn.Module) -> None:
        """Make every scheme's copy of the layer; no stream has gone through it yet."""
        config = state.decoder.layer_config(index)
        parts, head_counts = projections(layer, config), heads(config)
        replaced = {scheme.name: state.replaceable(index, parts, scheme.name) for scheme in state.schemes}
        quantized = {s.name: state.replaceability.quantize(index, layer, replaced[s.name], s) for s in state.schemes}
        state.pages.check()
        self._state, self._layer = state, layer
        self._streams = LayerStreams(state, index, parts)
        self._query_heads = head_counts.query if head_counts else None
        self._copies = HostCopies(state.decoder.device)
        self._for_each = for_each_on(state.decoder.device)
        columns = Int8Columns(state.analysis.llm_int8.magnitude, self._copies)
        fp16_columns = {s.name: columns.watch(s, replaced[s.name], quantized[s.name].left) for s in state.schemes}
        tokens = [batch.token_ids.numel() for batch in state.measured]
        self._results = LayerResults(
            layer=index,
            schemes={name: _of_copy(copied, fp16_columns[name]) for name, copied in quantized.items()},
            llm_int8=LayerHits(tokens, self._copies),
            llm_int8_relative=LayerHits(tokens, self._copies),
        )
        self._reference = ReferenceMeasurement(self._results, state.analysis, columns, self._copies, self._for_each)
        self._comparisons = {
            name: SchemeComparison(
                results, quantized[name].module, parts, self._query_heads, self._copies, self._for_each
            )
            for name, results in self._results.schemes.items()
        }

    def run(self) -> LayerResults:
        """Advance every stream, batch by batch, and return the layer's results."""
        for number, batch in enumerate(self._state.batches):
            if batch.measured:
                self._measure(number)
                self._copies.next_batch()
                self._state.pages.after_batch()
            else:
                self._advance_labelled(number)
        conclude_layer(self._results, self._state, self._query_heads, self._copies, self._for_each)
        return self._results

    def _measure(self, batch: int) -> None:
        """Advance every stream by one batch: the reference, which is measured, then each scheme against it."""
        streams = self._streams
        captured, hidden = streams.advance_captured(REFERENCE, self._layer, batch)
        sites = captured.sites(streams.parts) | {BLOCK_OUTPUT: hidden}
        self._reference.add(batch, sites)
        for name in self._comparisons:
            self._compare(name, captured, sites, batch)

    def _compare(self, scheme: str, captured: Capture, sites: dict[Site, torch.Tensor], batch: int) -> None:
        """Advance a scheme's stream by one batch, and compare it with what was captured of the reference."""
        comparison = self._comparisons[scheme]
        comparison.add_isolated(captured)
        own, hidden = self._streams.advance_captured(scheme, comparison.module, batch)
        comparison.add_accumulated(sites, own.sites(self._streams.parts) | {BLOCK_OUTPUT: hidden})

    def _advance_labelled(self, batch: int) -> None:
        """Advance every stream by a batch of labeled prompts; keep their last tokens at the depth asked for."""
        modules = {name: comparison.module for name, comparison in self._comparisons.items()}
        for name, module in {REFERENCE: self._layer, **modules}.items():
            hidden = self._streams.advance(name, module, batch)
            if self._results.layer == self._state.analysis.label_depth:
                self._results.labelled.setdefault(name, []).append(hidden[:, -1].float().cpu().numpy())


def _of_copy(copied: QuantizedLayer, fp16_columns: Mapping[str, Fp16Columns]) -> SchemeResults:
    """Return a scheme's results before any batch: those of its copy's weights."""
    return SchemeResults(copied.weight_errors, copied.saved, copied.paths, copied.left, fp16_columns=fp16_columns)
