"""Picks the hidden state that a report shows whole: of all layers the one that stands out most."""

import pyarrow.compute as pc

from service.contracts import report as contract
from workers.measurement.capture import BLOCK_OUTPUT
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.tables import TableWriter


def write_surface(files: LayerFiles, layers: int, table: TableWriter) -> contract.SurfaceFacts:
    """Write the `surface` table, and say which sequence and layer it holds.

    It is the sequence with the largest magnitude of the layer whose max_to_median at block.output is the largest, the
    first of equals; a layer without such a figure ranks last.
    """
    here = (pc.field("component") == BLOCK_OUTPUT.component) & (pc.field("port") == BLOCK_OUTPUT.port)
    sites = [files.table(layer, "sites").filter(here).to_pylist()[0] for layer in range(layers)]
    chosen = max(sites, key=lambda site: -1.0 if site["max_to_median"] is None else site["max_to_median"])
    surface = files.surface(chosen["layer"])
    table.append({name: getattr(surface, name).reshape(-1) for name in ("position", "channel", "value")})
    return contract.SurfaceFacts(
        layer=chosen["layer"],
        sequence=surface.sequence,
        positions=surface.positions,
        channels=surface.channels,
        positions_per_cell=surface.positions_per_cell,
        channels_per_cell=surface.channels_per_cell,
        median_abs=chosen["median_abs"],
        max_to_median=chosen["max_to_median"],
    )
