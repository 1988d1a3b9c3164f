"""Advances the streams of the reference and of every scheme through all decoder layers, side by side.

Each layer is read once. The reference stream advances through it and every site is measured; every scheme's copy
of the layer is made from the same weights, answers the reference's inputs (the error where it arises: isolated)
and advances the scheme's own stream (the error where it has accumulated). Then the layer and its copies are freed.
So memory holds one layer and its copies, whatever the depth, and nothing is carried from layer to layer but the
streams: every layer boundary is a place to go on from.
"""

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from workers.measurement.layers.arguments import SharedTensors
from workers.measurement.layers.copies.outer_projections import QuantizedOutside, in_place, quantize_outside
from workers.measurement.layers.copies.replaceability import ReplaceabilityProbe
from workers.measurement.layers.layer_pass import LayerPass
from workers.measurement.layers.layer_results import LayerResults
from workers.measurement.layers.streams import REFERENCE, Layout, Streams
from workers.measurement.layers.sweep_state import Batch, SweepState
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.stand_ins import Arguments
from workers.measurement.quantization.resolving import resolved
from workers.measurement.runtime.memory import drop_code_pages, keep_what_is_loaded, return_pages


def prepare_sweep(
    decoder: Decoder,
    batches: Sequence[Batch],
    schemes: Sequence[Scheme],
    analysis: Analysis,
    *,
    budget_bytes: int,
    directory: Path,
    kept: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> SweepState:
    """Run the embedding, record the arguments of each layer, and start every stream.

    Args:
        decoder: the model.
        batches: measured ones first.
        schemes: each gets a stream of its own; settings that depend on the model are settled here.
        analysis: thresholds.
        budget_bytes: streams that are larger than this in all lie in files.
        directory: where those files go; made when it is needed.
        kept: by scheme, full names of the modules that it leaves as they are.
    """
    schemes = [resolved(scheme, decoder.dtype) for scheme in schemes]
    names = [REFERENCE, *(scheme.name for scheme in schemes)]
    hidden, recorded = decoder.record(batches[0].token_ids[:1, :_TRIAL_TOKENS])
    replaceability = ReplaceabilityProbe(hidden, recorded)
    layout = Layout(tuple((*batch.token_ids.shape, hidden.shape[-1]) for batch in batches), hidden.dtype)
    streams = Streams(names, layout, decoder.device, budget_bytes, directory)
    outside = {s.name: _quantized_outside(decoder, s, kept.get(s.name, ())) for s in schemes}
    arguments = _start(decoder, batches, streams, outside)
    decoder.drop_pages()
    drop_code_pages()
    return SweepState(decoder, batches, schemes, analysis, arguments, streams, outside, replaceability, kept)


def _quantized_outside(decoder: Decoder, scheme: Scheme, kept: Collection[str]) -> QuantizedOutside:
    """Quantize what lies outside the layers and is not kept."""
    return quantize_outside(decoder.model, [name for name in decoder.outside if name not in kept], scheme)


def _start(
    decoder: Decoder, batches: Sequence[Batch], streams: Streams, outside: Mapping[str, QuantizedOutside]
) -> list[list[Arguments]]:
    """Fill every stream with what enters the first layer, and return what the model hands to each layer, by batch."""
    shared = SharedTensors()
    arguments = []
    for number, batch in enumerate(batches):
        hidden, recorded = decoder.record(batch.token_ids)
        arguments.append(shared.share(recorded))
        streams.put(REFERENCE, number, hidden)
        for name, quantized in outside.items():
            own = hidden
            if quantized.modules:
                with in_place(decoder.model, quantized.modules):
                    own, _ = decoder.record(batch.token_ids)
            streams.put(name, number, own)
    return arguments


def sweep_layers(state: SweepState, first: int = 0) -> Iterator[LayerResults]:
    """Advance every stream from layer `first` on, and yield each layer's results."""
    keep_what_is_loaded()
    for index in range(first, len(state.decoder.layers)):
        with state.decoder.resident(index) as layer:
            results = LayerPass(state, index, layer).run()
        gc.collect()
        state.pages.check()
        yield results
    return_pages()


_TRIAL_TOKENS = 2
"""One more than the layers of some models treat in a way of their own."""
