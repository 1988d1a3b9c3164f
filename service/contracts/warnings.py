"""Warnings as a person is shown them: one cause often warns at every site of a model, so the first few stand for all.

`report.json` has every one of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

FEW = 5
"""Warnings of one code that are shown."""
FIRST = 3
"""Warnings that are shown before all others."""
_BY_IMPORTANCE = (
    "nonfinite-predictions", "reference-guesses", "nothing-quantized", "nonfinite", "over-fp16", "few-sequences",
    "no-intervals", "short-calibration", "left-unquantized", "fp16-columns", "sample-text", "labels-all-equal",
    "scores-all-equal", "labelled-not-ranked",
)  # fmt: skip
"""Codes, the most important first: wrong figures, then uncertain ones, then what limits their use. Codes that are not
listed come last."""

T = TypeVar("T")


@dataclass(frozen=True)
class OneCode(Generic[T]):
    """The warnings of one code, in their order."""

    code: str
    first: list[T]
    """The few that are shown."""
    rest: list[T]


def by_code(warnings: Iterable[T], code_of: Callable[[T], str]) -> list[OneCode[T]]:
    """Return the warnings by their codes; the codes are in the order of their first warnings."""
    found: dict[str, list[T]] = {}
    for warning in warnings:
        found.setdefault(code_of(warning), []).append(warning)
    return [OneCode(code, same[:FEW], same[FEW:]) for code, same in found.items()]


def most_important(warnings: Iterable[T], code_of: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """Return the `FIRST` most important warnings, no two of one code, and all others.

    Codes are ranked by what they say of the figures: wrong, uncertain, limited. The others keep their order.
    """
    rank = {code: place for place, code in enumerate(_BY_IMPORTANCE)}
    every = list(warnings)
    first_of_code: dict[str, int] = {}
    for place, warning in enumerate(every):
        first_of_code.setdefault(code_of(warning), place)
    shown = sorted(first_of_code, key=lambda code: rank.get(code, len(rank)))[:FIRST]
    places = [first_of_code[code] for code in shown]
    return [every[place] for place in places], [w for place, w in enumerate(every) if place not in places]
