"""Runs a command and returns its exit code; every HeadroomError ends in a message, never in a traceback."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from service.errors import HeadroomError, ServiceUnreachable

DONE = 0
JOB_FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3
LIMIT_BROKEN = 4
"""Of gates: the figures are worse than was allowed."""
_CTRL_C = 130
"""What typer returns for KeyboardInterrupt."""


class Refused(HeadroomError):
    """The service answered with a problem document."""

    def __init__(self, code: str, status: int, detail: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(detail)
        self.refusal = code
        self.answered = status
        self.errors = list(errors)


class JobFailed(HeadroomError):
    """The job ended without a report."""

    def __init__(self, job_id: str, code: str, message: str, *, bad_input: bool) -> None:
        super().__init__(f"job {job_id} failed ({code}): {message}")
        self.job_id = job_id
        self.reason = code
        self.bad_input = bad_input


class JobCancelled(HeadroomError):
    """The job was stopped before it left a report."""

    code = "cancelled"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was canceled and has no report")
        self.job_id = job_id


def exit_code(error: HeadroomError) -> int:
    """Return the exit code that tells a calling program what kind of error it is."""
    if isinstance(error, JobFailed):
        return BAD_INPUT if error.bad_input else JOB_FAILED
    if isinstance(error, ServiceUnreachable):
        return UNREACHABLE
    status = error.answered if isinstance(error, Refused) else error.status
    if status == ServiceUnreachable.status:
        return UNREACHABLE
    return BAD_INPUT if 400 <= status < 500 else JOB_FAILED


def as_document(error: HeadroomError) -> dict[str, Any]:
    """Return what `--json` prints for `error`."""
    content: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, Refused):
        content |= {"code": error.refusal, "errors": error.errors}
    if isinstance(error, JobFailed):
        content |= {"code": error.reason, "job_id": error.job_id}
    if isinstance(error, JobCancelled):
        content |= {"job_id": error.job_id}
    return {"error": content}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, also where the shell had SIGINT ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Typer brings click under different names from version to version; the class is the same relation.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run `app` and return the exit code.

    Errors go to standard error, and with `--json` also to standard output, as a document.
    """
    as_json = "--json" in arguments
    try:
        code = app(arguments, prog_name="headroom", standalone_mode=False)
    except UsageError as error:
        return _usage(error, as_json=as_json)
    except HeadroomError as error:
        _tell(str(error))
        if as_json:
            _print(as_document(error))
        return exit_code(error)
    except OSError as error:  # a disk that is full, a file that may not be read
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
        _tell(message)
        if as_json:
            _print({"error": {"code": "system", "message": message}})
        return JOB_FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = _CTRL_C
    if code == _CTRL_C:
        _tell("stopped")
        return JOB_FAILED
    return code if isinstance(code, int) else DONE


def _usage(error: Exception, *, as_json: bool) -> int:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    if message.startswith("No such command") and context:
        message += f" Available: {', '.join(context.command.commands)}."
    if not message:  # the command group has printed its help
        return BAD_INPUT
    _tell(f"{message}\nTry '{context.command_path if context else 'headroom'} --help'.")
    if as_json:
        _print({"error": {"code": "usage", "message": message}})
    return BAD_INPUT


def _tell(message: str) -> None:
    print(f"headroom: {message}", file=sys.stderr)


def _print(document: dict[str, object]) -> None:
    from service.cli import output

    output.document(document)
