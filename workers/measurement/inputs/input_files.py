"""Reads JSON Lines, and makes the errors about an input file, which name the file and the place in it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from service.contracts.request import CalibrationFile, LabelledFile
from workers.measurement.errors import MeasurementError

Refuse = Callable[[str], MeasurementError]
"""Makes the error out of what is wrong: `line 3: ...`, `row 3: ...`, or a sentence about the file, `is empty`."""


def refuser(kind: type[MeasurementError], parameter: str, file: CalibrationFile | LabelledFile) -> Refuse:
    """Return a function that makes the errors about a file that came as `parameter`."""
    # The path of an upload means nothing to its sender.
    name = str(file.path) if file.source == file.path.name else file.source

    def refuse(problem: str) -> MeasurementError:
        between = ", " if problem.startswith(("line ", "row ")) else " "
        return kind(f"{parameter}: {name!r}{between}{problem}")

    return refuse


def read_json_lines(path: Path, refuse: Refuse) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of every line that is not blank.

    Raises what `refuse` makes: the file cannot be read, a line is not UTF-8, not JSON, or no object.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise refuse(f"line {number}: {_reason(error)}") from error


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line.decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"it holds a JSON {type(value).__name__}; an object is needed")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start} of the line"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error.msg} at character {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
