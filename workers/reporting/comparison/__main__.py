"""`python -m workers.reporting.comparison OUT REPORT REPORT...`: compares report directories, the first the baseline.

Exit status: 0 done; 1 it could not be done, with one line on standard error; 2 bad usage, or reports that cannot be
read or compared.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import HeadroomError, NotComparable, ReportUnreadable
from workers.reporting.comparison.program import compare_reports
from workers.reporting.publish import OutTaken
from workers.reporting.text import visible

BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; SIGTERM and Ctrl-C leave nothing half-written."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.reporting.comparison", description="Compare reports; the first is the baseline."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="where the comparison goes: a new or empty directory")
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT", help="directory of a report")
    options = parser.parse_args(arguments)
    try:
        compare_reports(options.out, options.reports)
    except KeyboardInterrupt:
        print("workers.reporting: stopped", file=sys.stderr)
        return 1
    except (HeadroomError, OSError) as error:
        print(f"workers.reporting: {visible(str(error))}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ReportUnreadable | NotComparable | OutTaken) else 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
