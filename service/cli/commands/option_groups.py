"""Declares options that several commands share once, as the fields of a dataclass."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

Result = TypeVar("Result")
Command = Callable[..., Result]


def with_options(group: type[Any]) -> Callable[[Command[Result]], Command[Result]]:
    """Return a decorator for commands of typer: every field of the dataclass `group` becomes an option of the command.

    The command has one keyword parameter `options`, which gets an instance of `group`. The fields stand in its place.
    """

    def decorate(command: Command[Result]) -> Command[Result]:
        own, shared = inspect.signature(command), inspect.signature(group).parameters.values()

        @wraps(command)
        def run(**typed: Any) -> Result:
            options = group(**{field.name: typed.pop(field.name) for field in fields(group)})
            return command(**typed, options=options)

        parameters = [
            one for name, parameter in own.parameters.items() for one in (shared if name == "options" else [parameter])
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate
