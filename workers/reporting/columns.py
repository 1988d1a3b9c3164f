"""What a reader is told of the input columns that int8 computes in 16 bits."""

from service.contracts.report import SchemeFacts
from workers.reporting.text import number


def fp16_columns(name: str, facts: SchemeFacts) -> str | None:
    """Say in a sentence how many input columns a scheme computes in 16 bits; None for another scheme than int8."""
    found = facts.fp16_columns
    if found is None:
        return None
    if found.largest.prefill == 0:
        return f"{name} computes no input column in 16 bits."
    most = found.largest
    return (
        f"{name} computes {_share(found.prefill)} of the input columns in 16 bits when a call is one sequence, and "
        f"{_share(found.decode)} when it is one token (means over layers and components). The most are "
        f"{_share(most.prefill)}, at layer {most.layer} {most.component}."
    )


def _share(share: float) -> str:
    return f"{number(100 * share, 2)} %"
