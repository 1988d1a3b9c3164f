"""From what was typed to an exit code: every trouble of a user's making ends in a message, never in a traceback."""

import sys

import typer

from service.cli.errors import BAD_INPUT, DONE, JOB_FAILED, as_document, exit_code
from service.errors import HeadroomError

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
