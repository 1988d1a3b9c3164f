"""Writes a finding's value, interval, baseline and bound for a reader."""

from service.contracts.audits.audit import Finding
from service.contracts.report import Estimate
from service.evaluation.numbers import estimate, number

NONE = "-"
"""Stands for a figure that there is none of."""
_SHOWN = 8
"""Of more gained dimensions the first are shown."""


def value(finding: Finding) -> str:
    """Return the report's figure with its 95% interval: `0.0239 (0.0214 to 0.0264)`."""
    if isinstance(finding.value, tuple):
        return _dimensions(finding.value)
    if isinstance(finding.value, float):
        return estimate(Estimate(value=finding.value, standard_error=None, interval=finding.interval))
    return finding.value or NONE


def other(figure: float | str | None) -> str:
    """Return a baseline's figure, or a bound."""
    return number(figure, 4) if isinstance(figure, float) else figure or NONE


def _dimensions(gained: tuple[int, ...]) -> str:
    if not gained:
        return "none gained"
    more = f" and {len(gained) - _SHOWN} more" if len(gained) > _SHOWN else ""
    return f"{len(gained)} gained: {', '.join(map(str, gained[:_SHOWN]))}{more}"
