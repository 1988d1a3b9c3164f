"""Writes the outcomes of a gate into files, each whole or not at all."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from service.cli.gating.junit import junit
from service.cli.gating.markdown import markdown
from service.cli.gating.outcome import Gated
from service.cli.gating.sarif import sarif
from service.errors import InvalidRequest

FORMATS: Mapping[str, Callable[[Gated], str]] = {"markdown": markdown, "junit": junit, "sarif": sarif}
"""Formats by the names of their options."""


def check(paths: Mapping[str, Path]) -> None:
    """Raise InvalidRequest, before anything is measured, for a file that cannot be written.

    Args:
        paths: By format.
    """
    for name, path in paths.items():
        above = path.absolute().parent
        if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            problem = "is a directory" if path.is_dir() else "cannot be written"
            raise InvalidRequest(f"--{name}", str(path), "a file in a directory that you can write to", problem=problem)


def write(paths: Mapping[str, Path], gated: Gated) -> list[str]:
    """Write the outcome in every format that was asked for; return what could not be written, as messages."""
    failures = []
    for name, path in paths.items():
        beside = path.absolute().with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(FORMATS[name](gated), encoding="utf-8")
            beside.replace(path.absolute())
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            failures.append(f"--{name}: {str(path)!r} could not be written: {error.strerror or error}")
    return failures
