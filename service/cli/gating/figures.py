"""Writes a finding's value, interval, baseline and bound for a reader."""

from service.audits.limits import is_against_baseline
from service.contracts.audits.audit import Finding
from service.contracts.report import Estimate
from service.evaluation.numbers import estimate, exact, number

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


def baseline(figure: float | str | None) -> str:
    """Return a baseline's figure."""
    return number(figure, 4) if isinstance(figure, float) else figure or NONE


def bound(limit: str, held_to: float | str | None) -> str:
    """Return what a figure is held to: as the limit has it, unless it follows from the baseline's figure."""
    if isinstance(held_to, float) and not is_against_baseline(limit):
        return exact(held_to)
    return baseline(held_to)


def _dimensions(gained: tuple[int, ...]) -> str:
    if not gained:
        return "none gained"
    more = f" and {len(gained) - _SHOWN} more" if len(gained) > _SHOWN else ""
    return f"{len(gained)} gained: {', '.join(map(str, gained[:_SHOWN]))}{more}"
