"""Writes the hidden state that a report shows whole: of all layers that of the one that stands out most."""

from service.contracts import report as contract
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.runtime.table_writer import TableWriter


def write_surface(files: LayerFiles, layers: int, table: TableWriter) -> contract.SurfaceFacts:
    """Write the `surface` table, and say which sequence and layer it holds."""
    layer = files.standing_out(layers)
    site, surface = files.block_output(layer), files.surface(layer)
    table.append({name: getattr(surface, name).reshape(-1) for name in ("position", "channel", "value")})
    return contract.SurfaceFacts(
        layer=layer,
        sequence=surface.sequence,
        positions=surface.positions,
        channels=surface.channels,
        positions_per_cell=surface.positions_per_cell,
        channels_per_cell=surface.channels_per_cell,
        median_abs=site["median_abs"],
        max_to_median=site["max_to_median"],
    )
