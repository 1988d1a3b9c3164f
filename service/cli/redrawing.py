"""`headroom reports render`: figures and page anew, from the tables of a report that lies on this machine."""

import json
from pathlib import Path

from service.cli import output, reporting
from service.errors import InvalidRequest


def render(directory: Path, *, density: bool, as_json: bool) -> None:
    """Draw the report in `directory` anew, in place, labeled prompts as densities if asked.

    Raises InvalidRequest where no report lies.
    """
    check_report(directory, "DIR")
    reporting.run(reporting.REPORT, [str(directory.absolute()), *(["--density"] if density else [])])
    report = json.loads((directory / "report.json").read_bytes())
    page = directory.absolute() / "report.html"
    left_out = report["figures_left_out"]
    if as_json:
        names = [figure["name"] for figure in report["figures"]]
        output.document(
            {"directory": str(directory.absolute()), "page": str(page), "figures": names, "left_out": left_out}
        )
        return
    console = output.results()
    for figure in left_out:
        output.line(console, f"Not drawn: {figure['name']}: {figure['reason']}")
    output.line(console, f"Report: {page}")


def check_report(directory: Path, parameter: str) -> None:
    """Raise InvalidRequest unless `directory`, given as `parameter`, holds a report."""
    if not (directory / "report.json").is_file():
        allowed = "the directory of a report, with report.json and tables/"
        raise InvalidRequest(parameter, str(directory), allowed, problem="has no report.json")
