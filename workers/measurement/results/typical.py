"""Adds `sqnr_db_typical` to the errors of a layer: the residual stream's, without the dimensions that are massive.

Which those are is known only when every layer is done, for a dimension that is massive in any layer counts in none.
"""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workers.measurement.layers.capture import BLOCK_OUTPUT
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.statistics.channel_errors import sqnr_without

_COLUMN = "sqnr_db_typical"
_MASSIVE = ("massive_tensor", "massive_token")


def massive_dimensions(files: LayerFiles, layers: int) -> frozenset[int]:
    """Return the dimensions that either definition of massive activations flags in any layer."""
    return frozenset(
        row["dimension"]
        for layer in range(layers)
        for row in files.table(layer, "outlier_dimensions").to_pylist()
        if row["definition"] in _MASSIVE
    )


def with_typical(errors: pa.Table, sums: Mapping[str, NDArray[np.float64]], massive: Collection[int]) -> pa.Table:
    """Return a layer's rows of the `errors` table with the column filled in.

    Args:
        errors: the rows.
        sums: by scheme, of y^2 and (y - q)^2 of every dimension at block.output, [2, d].
        massive: the dimensions to leave out.
    """
    ratios = {scheme: sqnr_without(of, massive) for scheme, of in sums.items()}
    where = errors.select(["scheme", "mode", "component", "port"]).to_pylist()
    column = [ratios.get(row["scheme"]) if _is_stream(row) else None for row in where]
    place = errors.schema.get_field_index(_COLUMN)
    return errors.set_column(place, errors.schema.field(place), pa.array(column, errors.schema.field(place).type))


def _is_stream(row: Mapping[str, str]) -> bool:
    return row["mode"] == "accumulated" and (row["component"], row["port"]) == BLOCK_OUTPUT
