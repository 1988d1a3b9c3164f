"""Says from the shapes of its modules what each scheme is going to replace, before anything is measured.

A module that turns out to be no such thing as a kernel takes, or whose weight the layer uses by itself, stays as it is
after all. So a scheme replaces these modules at most, and the model takes these bytes at least.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.contracts.request import Analysis, schemes_for, variants_for
from service.contracts.schemes import Scheme
from workers.measurement.harm.copies import Module, component_of
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.kept_modules import kept_modules
from workers.measurement.models.projections import projections, weight_rows
from workers.measurement.quantization.stored_bytes import stored_bytes


@dataclass(frozen=True)
class Expected:
    """What one scheme is going to replace."""

    scheme: Scheme
    components: Mapping[Module, str]
    """Of the modules of the layers."""
    uniform_bytes: int
    """Of the model under the scheme: weights with scales, embeddings included."""
    reference_bytes: int
    """Of the model as it came."""


def expected_replacements(analysis: Analysis, decoder: Decoder) -> list[Expected]:
    """Return what every scheme is going to replace.

    Raises:
        BadRequest: a pattern of modules to keep names none, or those of a scheme keep all that it replaces, or none.
    """
    kept = kept_modules(variants_for(analysis), decoder)
    return [_expected(scheme, kept.get(scheme.name, ()), decoder) for scheme in schemes_for(analysis)]


def _expected(scheme: Scheme, kept: Iterable[str], decoder: Decoder) -> Expected:
    kept, components, saved = frozenset(kept), {}, 0
    for index, layer in enumerate(decoder.layers):
        for part in projections(layer, decoder.layer_config(index)):
            if part.quantized and f"{decoder.prefix}{index}.{part.name}" not in kept:
                components[Module(index, part.name)] = component_of(part)
                weight = weight_rows(layer.get_submodule(part.name))
                saved += weight.nbytes - stored_bytes(scheme, weight)
    for name in decoder.outside:
        if name not in kept:
            weight = weight_rows(decoder.model.get_submodule(name))
            saved += weight.nbytes - stored_bytes(scheme, weight)
    reference = sum(parameter.nbytes for parameter in decoder.model.parameters())
    return Expected(scheme, components, reference - saved, reference)
