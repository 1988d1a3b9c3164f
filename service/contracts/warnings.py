"""Warnings as a person is shown them: one cause often warns at every site of a model, so the first few stand for all.

`report.json` has every one of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

FEW = 5
"""Warnings of one code that are shown."""

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
