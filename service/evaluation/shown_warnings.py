"""Groups warnings by their codes and ranks the codes, because one cause often warns at every site of a model.

`report.json` has every warning.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.contracts.warnings import Warning

SHOWN_PER_CODE = 5
"""Warnings of one code that are shown."""
SHOWN_FIRST = 3
"""Warnings that are shown before all others."""
_BY_IMPORTANCE = (
    "nonfinite-predictions", "reference-guesses", "nothing-quantized", "nonfinite", "over-fp16", "few-sequences",
    "no-intervals", "short-calibration", "left-unquantized", "fp16-columns", "sample-text", "labels-all-equal",
    "scores-all-equal", "labelled-not-ranked",
)  # fmt: skip
"""Codes, the most important first: wrong values, then uncertain ones, then what limits their use. Codes that are not
listed come last."""


@dataclass(frozen=True)
class WarningsOfCode:
    """The warnings of one code, in their order."""

    code: str
    shown: Sequence[Warning]
    rest: Sequence[Warning]


def by_code(warnings: Iterable[Warning], shown: int = SHOWN_PER_CODE) -> list[WarningsOfCode]:
    """Return the warnings by their codes, at most `shown` of each to show; codes in the order of their first ones."""
    groups: dict[str, list[Warning]] = {}
    for warning in warnings:
        groups.setdefault(warning.code, []).append(warning)
    return [WarningsOfCode(code, group[:shown], group[shown:]) for code, group in groups.items()]


def most_important(warnings: Iterable[Warning]) -> tuple[list[Warning], list[Warning]]:
    """Return the `SHOWN_FIRST` most important warnings, no two of one code, and all others.

    Codes are ranked by what they say of the values: wrong, uncertain, limited. The others keep their order.
    """
    rank = {code: place for place, code in enumerate(_BY_IMPORTANCE)}
    every = list(warnings)
    first_of_code: dict[str, int] = {}
    for place, warning in enumerate(every):
        first_of_code.setdefault(warning.code, place)
    ranked = sorted(first_of_code, key=lambda code: rank.get(code, len(rank)))[:SHOWN_FIRST]
    places = [first_of_code[code] for code in ranked]
    return [every[place] for place in places], [w for place, w in enumerate(every) if place not in places]
