"""`python -m workers.reporting DIR`: draws the figures and the page of the report in DIR.

Exit status: 0 done; 1 it could not be done, with one line on standard error; 2 bad usage, or a report that cannot be
read.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import HeadroomError, ReportUnreadable
from workers.reporting.render import render
from workers.reporting.text import visible

BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; SIGTERM and Ctrl-C leave nothing half-written."""
    parser = argparse.ArgumentParser(prog="python -m workers.reporting", description="Draw a report from its tables.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory with report.json and tables/")
    parser.add_argument(
        "--processes", type=_count, metavar="N", help="how many draw at once; default: by size and CPUs"
    )
    parser.add_argument("--density", action="store_true", help="labeled prompts: densities instead of counts")
    options = parser.parse_args(arguments)
    try:
        render(options.directory, options.processes, density=options.density)
    except KeyboardInterrupt:
        print("workers.reporting: stopped", file=sys.stderr)
        return 1
    except (HeadroomError, OSError) as error:
        print(f"workers.reporting: {visible(str(error))}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ReportUnreadable) else 1
    return 0


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; 1 or more is")
    return int(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
