"""The sentence about the input columns that int8 computes in 16 bits."""

from service.contracts.report import SchemeFacts
from workers.reporting.text import number


def fp16_columns(name: str, facts: SchemeFacts) -> str | None:
    """Return how many input columns a scheme computes in 16 bits, as a sentence; None for a scheme other than int8."""
    columns = facts.fp16_columns
    if columns is None:
        return None
    if columns.largest.prefill == 0:
        return f"{name} computes no input column in 16 bits."
    most = columns.largest
    return (
        f"{name} computes {share(columns.prefill)} of the input columns in 16 bits per sequence and "
        f"{share(columns.decode)} per token (means over layers and components); at most {share(most.prefill)}, at "
        f"layer {most.layer} {most.component}."
    )


def share(columns: float) -> str:
    """Return a share of columns as a percentage to two digits."""
    return f"{number(100 * columns, 2)}%"
