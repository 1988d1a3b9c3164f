"""The bases of everything that is asked for, and of everything that a report holds."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError, PydanticKnownError


def no_boolean(value: Any) -> Any:
    """Return a value that is neither true nor false, which Python treats as 1 and 0; refuse these."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number, not true or false")
    return value


NoBoolean = BeforeValidator(no_boolean)
"""Refuses true and false in place of a number."""


def at_most(items: int) -> BeforeValidator:
    """Refuse a list of more than so many items before any is looked at, and named if it is wrong."""

    def check(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) > items:
            context = {"field_type": "List", "max_length": items, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(check)


class Frozen(BaseModel):
    """Base of every contract: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """Base of everything in a report: immutable; keys that a newer version added are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")
