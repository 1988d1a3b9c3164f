"""The dimensions that are massive in some layer, which `sqnr_db_typical` leaves out."""

from service.contracts.report import Report


def massive_dimensions(report: Report) -> frozenset[int]:
    """Return the dimensions that either definition of massive activations flags."""
    definitions = report.outliers.massive_tensor, report.outliers.massive_token
    return frozenset(found.dimension for of in definitions for found in of.dimensions)
