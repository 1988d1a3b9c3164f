"""Finds the values that a scheme cannot hold because it casts to fp16, whose largest value is 65504.

Two kernels of bitsandbytes cast all values to fp16, in which 65520 and more is infinite:

- int8 with threshold 0 casts every input: one infinite value makes the token's whole output NaN;
- nf4 and fp4 with compute_dtype=float16 cast the input and compute the output in fp16: the token's output is infinite
  or NaN.

With a threshold over 0, int8 multiplies the columns of such values in the model's own type, so nothing is lost there.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from service.contracts.schemes import BITSANDBYTES_4BIT, BITSANDBYTES_INT8, Scheme
from workers.measurement.layers.sites import Port, Site
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.projections import Projection, projections
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.statistics.reduction import FP16_INFINITE


class Overflow(NamedTuple):
    """A site whose values a scheme makes infinite, and the components that are damaged."""

    layer: int
    site: Site
    abs_max: float
    """Largest magnitude of the reference at the site."""
    components: tuple[str, ...]
    """Those of the modules that the scheme replaced at this site."""


def overflow_ports(scheme: Scheme) -> tuple[Port, ...]:
    """Return the ports of a replaced module at which the scheme casts every value to fp16."""
    if scheme.kernel == BITSANDBYTES_INT8 and scheme.settings["threshold"] == 0:
        return ("input",)
    if scheme.kernel == BITSANDBYTES_4BIT and scheme.settings["compute_dtype"] == "float16":
        return ("input", "output")
    return ()


def overflows(scheme: Scheme, state: SweepState, files: LayerFiles) -> list[Overflow]:
    """Return the sites of the replaced modules where the reference reaches `FP16_INFINITE`, by layer.

    Args:
        scheme: of the sweep.
        state: after the last layer.
        files: of the layers, all done.
    """
    ports = overflow_ports(scheme)
    if not ports:
        return []
    decoder, kept = state.decoder, state.kept.get(scheme.name, frozenset())
    overflowing: list[Overflow] = []
    for index, layer in enumerate(decoder.layers):
        left = files.facts(index).left[scheme.name]
        replaced = [
            projection
            for projection in projections(layer, decoder.layer_config(index))
            if projection.quantized
            and projection.name not in left
            and f"{decoder.prefix}{index}.{projection.name}" not in kept
        ]
        overflowing += _at_layer(index, replaced, ports, files)
    return overflowing


def _at_layer(
    index: int, replaced: Sequence[Projection], ports: Collection[Port], files: LayerFiles
) -> Iterator[Overflow]:
    rows = files.table(index, "sites").select(["component", "port", "abs_max"]).to_pylist()
    for row in rows:
        site = Site(row["component"], row["port"])
        components = [name for one in replaced if site in _sites(one) for name in one.parts]
        if components and site.port in ports and row["abs_max"] is not None and row["abs_max"] >= FP16_INFINITE:
            yield Overflow(index, site, row["abs_max"], tuple(components))


def _sites(projection: Projection) -> set[Site]:
    outputs = {Site(component, "output") for component in projection.parts}
    return outputs | {Site(projection.input_component, "input")}
