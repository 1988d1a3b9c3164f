"""`python -m workers.reporting DIR`: draws the figures and the page of the report in DIR.

Exit status: 0 done; 1 it could not be done, with one line on standard error; 2 bad usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import HeadroomError
from workers.reporting.render import render
from workers.reporting.text import visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.reporting", description="Draw a report from its tables.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory with report.json and tables/")
    directory = parser.parse_args(arguments).directory
    try:
        render(directory)
    except (HeadroomError, OSError) as error:
        print(f"workers.reporting: {visible(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
