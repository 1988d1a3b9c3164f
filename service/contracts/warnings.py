"""A warning of a measurement or a comparison: a progress line while it runs, and an entry of a report's `warnings`."""

from typing import ClassVar, Literal

from service.contracts.record import Record


class Warning(Record):
    """Something the reader of a report must know."""

    kind: ClassVar[Literal["warning"]] = "warning"
    """Of the progress line."""
    code: str
    message: str
    """What is wrong or unusual, in whole sentences."""
    where: str | None = None
    """The variant, site, module or report that it is about; None where it is about the whole report."""
    advice: str | None = None
    """What to do next, in one sentence; None in earlier reports."""
