"""Base classes: of requests, and of the records in a report."""

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
