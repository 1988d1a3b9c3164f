"""Formats a value and its 95% interval for a reader, wherever they are shown."""

import math
from collections.abc import Sequence

from service.contracts.report import Estimate

ABSENT = "n/a"
_ROUNDING = 1e-12
"""Relative to its value, a reach so small says how float64 rounds, not how far the value may be off."""


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` to `digits` significant digits; `n/a` for None and NaN, `infinite` for infinities."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 <= magnitude < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def megabytes(size: int) -> str:
    """Return bytes as `3.8 MB` or `5,284 MB`."""
    value = size / 1e6
    return f"{value:,.0f} MB" if abs(value) >= 1000 else f"{value:.3g} MB"


def exact(value: float) -> str:
    """Return the shortest digits that read back as `value`, as somebody wrote it: `1.0001`, `5`, `1e-07`."""
    return repr(float(value)).removesuffix(".0")


def apart(value: float, other: float) -> str:
    """Return `value` to four significant digits, or to as many as it takes to tell it from `other`."""
    shown = ((number(value, digits), number(other, digits)) for digits in range(4, 18))
    return next((first for first, second in shown if _without_zeros(first) != _without_zeros(second)), number(value, 4))


def _without_zeros(text: str) -> str:
    """Return a written number without zeros at the end of its decimals: 0.010000 and 0.01000 are the same."""
    return text.rstrip("0") if "." in text and "e" not in text else text


def estimate(figure: Estimate | None) -> str:
    """Return `value (low to high)`, the 95% interval in brackets; the value alone where it has no interval."""
    return _with(figure, "")


def claim(figure: Estimate | None, unit: str = "", limits: Sequence[float] = ()) -> str:
    """Return `value unit (95% interval low to high)`, for a sentence; the value alone where it has no interval.

    With limits, as many digits are written as it takes to tell the value from each of them.
    """
    return _with(figure, "95% interval ", f" {unit}" if unit else "", limits)


def short_percent(share: float) -> str:
    """Return a share as a percentage to two significant digits."""
    return f"{number(100 * share, 2)}%"


def percent_estimate(share: Estimate | None) -> str:
    """Return a share and its 95% interval in percent; bounds outside of 0% to 100% are written as these."""
    if share is None:
        return ABSENT
    if share.interval is None:
        return f"{share.value:.1%}"
    low, high = (min(1.0, max(0.0, bound)) for bound in share.interval)
    return f"{share.value:.2%} ({low:.2%} to {high:.2%})"


def _with(figure: Estimate | None, words: str, unit: str = "", limits: Sequence[float] = ()) -> str:
    if figure is None:
        return ABSENT
    written = _written(figure, limits)
    if written is None:
        shown = [apart(figure.value, limit) for limit in limits]
        return f"{max(shown, key=len, default=number(figure.value, 4))}{unit}"
    return f"{written[0]}{unit} ({words}{written[1]} to {written[2]})"


def _written(figure: Estimate | None, limits: Sequence[float] = ()) -> tuple[str, str, str] | None:
    """Return value and bounds to the second digit of the interval's reach, a tenth at least under a thousand."""
    if figure is None or figure.interval is None:
        return None
    value, (low, high) = figure.value, figure.interval
    if not all(map(math.isfinite, (value, low, high))):
        return None
    reach = (high - low) / 2
    if reach <= abs(value) * _ROUNDING:
        alone = number(value, 4)
        return alone, alone, alone
    places = min(9, max(int(abs(value) < 1000), 1 - math.floor(math.log10(reach))))
    while places < 9 and any(value != limit and f"{value:.{places}f}" == f"{limit:.{places}f}" for limit in limits):
        places += 1
    first, second, third = (f"{one:,.{places}f}" for one in (value, low, high))
    return first, second, third
