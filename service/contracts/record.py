"""The bases of everything that is asked for, and of everything that a report holds."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


def no_boolean(value: Any) -> Any:
    """Return a value that is neither true nor false, which Python treats as 1 and 0; refuse these."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number, not true or false")
    return value


NoBoolean = BeforeValidator(no_boolean)
"""Refuses true and false in place of a number."""


class Frozen(BaseModel):
    """Base of every contract: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """Base of everything in a report: immutable; keys that a newer version added are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")
