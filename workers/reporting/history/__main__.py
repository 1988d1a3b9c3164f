"""`python -m workers.reporting.history OUT SOURCE`: draws the history of an audit.

Exit status: 0 done; 1 it could not be done, with one line on standard error; 2 bad usage, or a history that cannot be
read.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import HeadroomError
from workers.reporting.history.program import draw_history
from workers.reporting.text import visible

BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; SIGTERM and Ctrl-C leave nothing half-written."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.reporting.history", description="Draw the history of an audit."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="where it goes: a new or empty directory")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="directory with history.json and history.csv")
    options = parser.parse_args(arguments)
    try:
        draw_history(options.out, options.source)
    except KeyboardInterrupt:
        print("workers.reporting: stopped", file=sys.stderr)
        return 1
    except (HeadroomError, OSError) as error:
        print(f"workers.reporting: {visible(str(error))}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, HeadroomError) and error.status < 500 else 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
