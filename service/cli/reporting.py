"""Starts the programs that draw reports as children: the service names them and never imports them.

They need the drawing libraries, but neither torch nor a model.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from service.cli.signals import interruptible
from service.errors import HeadroomError
from service.processes import spawn, terminate

REPORT = "workers.reporting"
"""The program that draws one report; both are named, and never imported."""
COMPARISON = "workers.reporting.comparison"
"""The program that draws several side by side."""
GRACE_SECONDS = 10.0
"""How long an interrupted program may take to clear away what it has begun."""
_LIBRARIES = ("matplotlib", "numpy", "jinja2", "pyarrow")
_BAD_INPUT = 2
"""Exit status of a program that was given something it cannot read."""


class DrawingMissing(HeadroomError):
    """The installation can talk to a service, but not draw."""

    code = "drawing-not-installed"
    status = 422


class NotDrawable(HeadroomError):
    """The reporting program refused what it was given."""

    code = "not-drawable"
    status = 422


class DrawingFailed(HeadroomError):
    """The reporting program was given what it can draw, and could not finish."""

    code = "drawing-failed"


class DrawingInterrupted(HeadroomError):
    """The user stopped it."""

    code = "interrupted"


def run(program: str, arguments: Sequence[str]) -> None:
    """Run the module `program` to its end; `arguments` go to it. Ctrl-C ends it, and it leaves nothing half-written.

    Raises:
        DrawingMissing: its libraries are not installed.
        NotDrawable: what it was given is damaged, or of another version.
        DrawingInterrupted: Ctrl-C, or another signal to end.
        DrawingFailed: it ended otherwise.
    """
    require_drawing()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")}
    with (
        interruptible(),
        # -P: no file that happens to lie where the user stands is imported.
        spawn(
            [sys.executable, "-P", "-m", program, *arguments],
            env=environment,
            on_parent_death=signal.SIGTERM,  # so that it can clear away what it has begun
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process,  # closes the pipe, also after Ctrl-C
    ):
        try:
            _, said = process.communicate()
        except KeyboardInterrupt:
            raise DrawingInterrupted("stopped; nothing was changed") from None
        finally:
            terminate(process, GRACE_SECONDS)
    if process.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing on standard error"]
        message = lines[-1].removeprefix("workers.reporting: ")
        if process.returncode == _BAD_INPUT:
            raise NotDrawable(message)
        raise DrawingFailed(f"drawing ended with {process.returncode}: {message}")


def require_drawing() -> None:
    """Raise DrawingMissing unless the drawing libraries are installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise DrawingMissing(f"figures cannot be drawn here without {', '.join(missing)}: pip install 'headroom[draw]'")
