"""Resolves the patterns of modules that a variant of a scheme keeps in 16 bits to names of the model's modules.

A pattern is a module's full name, a component of one layer (`layers.11.mlp.down`) or a component of every layer
(`mlp.down`). What it names must be a whole module: of a fused one, all components or none.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from service.contracts.variants import Variant
from workers.measurement.errors import BadRequest
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import Projection, projections

Place = tuple[int, str]
"""A layer and a component of it."""


def kept_modules(variants: Iterable[Variant], decoder: Decoder) -> dict[str, frozenset[str]]:
    """Return the full names of the modules that each variant keeps, by the variant's name; variants that keep any.

    Raises:
        BadRequest: a pattern names no module of the model, or only a part of a fused one; or the patterns of a variant
            keep every module that it would replace, or none.
    """
    asked = [variant for variant in variants if variant.keep]
    if not asked:
        return {}
    layers = [projections(layer, decoder.layer_config(index)) for index, layer in enumerate(decoder.layers)]
    return {variant.name: _Resolver(variant, layers, decoder).modules() for variant in asked}


class _Resolver:
    """Finds what the patterns of one variant name."""

    def __init__(self, variant: Variant, layers: Sequence[Sequence[Projection]], decoder: Decoder) -> None:
        self._variant = variant
        self._decoder = decoder
        self._modules = {
            f"{decoder.prefix}{index}.{projection.name}": (index, projection)
            for index, parts in enumerate(layers)
            for projection in parts
        }
        self._places: dict[str, set[Place]] = {}
        for name, (index, projection) in self._modules.items():
            for component in projection.parts:
                for pattern in (name, f"layers.{index}.{component}", component):
                    self._places.setdefault(pattern, set()).add((index, component))

    def modules(self) -> frozenset[str]:
        """Return the full names of the modules that are kept."""
        places: set[Place] = set()
        elsewhere = set()
        for pattern in self._variant.keep:
            if pattern in self._places:
                places |= self._places[pattern]
            elif pattern in self._outside():
                elsewhere.add(pattern)
            else:
                raise BadRequest(f"{self._where(pattern)} is not a module of the model; {self._nearest(pattern)}")
        kept = frozenset(elsewhere | {name for name in self._modules if self._is_kept(name, places)})
        self._check_share(kept)
        return kept

    def _check_share(self, kept: frozenset[str]) -> None:
        """Refuse what keeps all modules that would be replaced, or none of them."""
        replaced = {name for name, (_, projection) in self._modules.items() if projection.quantized}
        replaced |= set(self._decoder.outside)
        if kept >= replaced or not kept & replaced:
            how = "every" if kept >= replaced else "no"
            patterns = ", ".join(repr(pattern) for pattern in dict.fromkeys(self._variant.keep))
            raise BadRequest(
                f"schemes: {self._variant.name}: keep: {patterns} keeps {how} module that {self._variant.scheme} would "
                "replace; allowed: patterns that keep some of them"
            )

    def _outside(self) -> Mapping[str, object]:
        """Return the modules outside the layers, which may be named in full; most are never quantized anyway."""
        return {
            name: module
            for name, module in self._decoder.model.named_modules()
            if not name.startswith(self._decoder.prefix) and [*module.parameters(recurse=False)]
        }

    def _is_kept(self, name: str, places: set[Place]) -> bool:
        """Whether all components of a module are among the places. Raises BadRequest where only some are."""
        index, projection = self._modules[name]
        kept = [component for component in projection.parts if (index, component) in places]
        if kept and len(kept) < len(projection.parts):
            blamed = next(p for p in self._variant.keep if (index, kept[0]) in self._places.get(p, ()))
            before = f"layers.{index}." if blamed.startswith("layers.") else ""
            together = ",".join(f"keep={before}{component}" for component in projection.parts)
            raise BadRequest(
                f"{self._where(blamed)} is a part of {name}, which computes {', '.join(projection.parts)} together; "
                f"keep all of them ({together}) or none"
            )
        return bool(kept)

    def _where(self, pattern: str) -> str:
        return f"schemes: {self._variant.name}: keep: {pattern!r}"

    def _nearest(self, pattern: str) -> str:
        """Say what the pattern may have been meant to be."""
        names = [*self._places, *self._outside()]
        near = difflib.get_close_matches(pattern, names, n=3)
        components = sorted({component for _, projection in self._modules.values() for component in projection.parts})
        last = len(self._decoder.layers) - 1
        allowed = f"allowed: {', '.join(components)}, one of these after layers.0. to layers.{last}., or a full name"
        return f"{allowed}; nearest: {', '.join(near)}" if near else allowed
