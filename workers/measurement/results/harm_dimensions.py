"""Writes the share of every dimension of the residual stream in a scheme's estimated harm, and the outliers' share."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from service.contracts.harm.facts import DimensionHarm, DimensionShares, HarmFigure
from service.contracts.harm.tables import OTHER_INPUTS, RESIDUAL_STREAM
from service.contracts.sections.outliers import Definition
from workers.measurement.harm.estimates.dimensions import Bools, Division, Shares, significant
from workers.measurement.harm.measuring import SchemeHarm
from workers.measurement.runtime.table_writer import TableWriter

NAMED_DIMENSIONS = 10
"""Dimensions that the section names."""


def write_dimensions(
    scheme: str, harm: SchemeHarm, flagged: Mapping[str, Definition], tables: Mapping[str, TableWriter]
) -> DimensionShares | None:
    """Write a scheme's rows of `dimension_harm`, and return the section; None where its harm is not divided.

    Args:
        scheme: its name.
        harm: of the scheme.
        flagged: by definition of outliers, the dimensions that it flags.
        tables: writers by name.
    """
    products = harm.products
    if products is None or products.channels is None or products.others is None:
        return None
    division = Division(products.channels, products.others)
    shares, others = division.dimensions(), division.other_inputs()
    certain = significant(shares, len(products.channels))
    definitions = [_definitions(dimension, flagged) for dimension in range(len(shares.values))]
    tables["dimension_harm"].append_rows(
        [
            *_rows(scheme, shares, certain, definitions),
            {"scheme": scheme, "inputs": OTHER_INPUTS, "definitions": "", "significant": False} | _figures(others, 0),
        ]
    )
    if not np.isfinite(shares.values).all():  # nothing does any harm, or a gradient is not finite
        return None
    outliers = [dimension for dimension, names in enumerate(definitions) if names]
    rest = [dimension for dimension, names in enumerate(definitions) if not names]
    return DimensionShares(
        flagged=_together(division, outliers),
        flagged_dimensions=len(outliers),
        unflagged=_together(division, rest),
        other_inputs=HarmFigure(**_figure(others, 0)),
        dimensions=_largest(shares, certain, definitions),
    )


def _largest(shares: Shares, certain: Bools, definitions: Sequence[tuple[str, ...]]) -> tuple[DimensionHarm, ...]:
    """Return the dimensions with the largest significant shares, the largest first."""
    largest = [int(j) for j in np.argsort(-shares.values, kind="stable") if certain[j]][:NAMED_DIMENSIONS]
    return tuple(
        DimensionHarm(
            dimension=j,
            share=float(shares.values[j]),
            standard_error=_known(shares.errors[j]),
            definitions=definitions[j],
        )
        for j in largest
    )


def _rows(
    scheme: str, shares: Shares, certain: Collection[bool], definitions: list[tuple[str, ...]]
) -> list[dict[str, Any]]:
    return [
        {
            "scheme": scheme,
            "inputs": RESIDUAL_STREAM,
            "dimension": dimension,
            "significant": bool(is_certain),
            "definitions": " ".join(names),
        }
        | _figures(shares, dimension)
        for dimension, (is_certain, names) in enumerate(zip(certain, definitions, strict=True))
    ]


def _definitions(dimension: int, flagged: Mapping[str, Definition]) -> tuple[str, ...]:
    """Return the definitions that flag a dimension."""
    return tuple(name for name, of in flagged.items() if any(one.dimension == dimension for one in of.dimensions))


def _together(division: Division, dimensions: Collection[int]) -> HarmFigure:
    return HarmFigure(**_figure(division.together(dimensions), 0))


def _figure(shares: Shares, place: int) -> dict[str, Any]:
    return {"value": float(shares.values[place]), "standard_error": _known(shares.errors[place])}


def _figures(shares: Shares, place: int) -> dict[str, float]:
    return {"share": float(shares.values[place]), "standard_error": float(shares.errors[place])}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
