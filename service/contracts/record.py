"""Base classes: of requests, and of the records in a report."""

import re
from typing import Any, LiteralString

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError


def no_boolean(value: Any) -> Any:
    """Return the value; raises for true and false, which Python treats as 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number, not true or false")
    return value


NoBoolean = BeforeValidator(no_boolean)
"""Refuses true and false in place of a number."""


def _no_part_of_a_byte(value: Any) -> Any:
    """Return the value; raises for a number of bytes with a fraction, which pydantic rounds down."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d*\.\d*\s*b?\s*", value, re.IGNORECASE):
        raise PydanticCustomError("part_of_a_byte", "Input should be a whole number of bytes")
    return value


WholeBytes = BeforeValidator(_no_part_of_a_byte)
"""Refuses 4.6 in place of 4.6GB."""


def allowing(allowed: LiteralString) -> WrapValidator:
    """Replace the message of a failed check by `allowed`."""

    def check(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
        try:
            return parse(no_boolean(value))
        except (ValidationError, PydanticCustomError) as error:
            raise PydanticCustomError("not_allowed", allowed) from error

    return WrapValidator(check)


def at_most(items: int) -> BeforeValidator:
    """Return a validator that refuses a list of more than `items` items before it validates any of them."""

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
