"""`headroom reports render` and `compare`: figures and pages from the tables of reports.

The programs that draw are children: they are named here, and never imported. They need the drawing libraries, but
neither torch nor a model.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.cli import inputs, output
from service.cli.client import Document, fetch
from service.cli.connection import connect
from service.cli.resources import checked_id
from service.cli.running import interruptible
from service.contracts.report import Estimate
from service.errors import HeadroomError, InvalidRequest
from service.evaluation.numbers import claim
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
    """The installation lacks the libraries that draw."""

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
        # -P: no file of the working directory is imported.
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
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it printed no error message"]
        message = lines[-1].removeprefix("workers.reporting: ")
        if process.returncode == _BAD_INPUT:
            raise NotDrawable(message)
        raise DrawingFailed(f"drawing ended with {process.returncode}: {message}")


def require_drawing() -> None:
    """Raise DrawingMissing unless the drawing libraries are installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise DrawingMissing(f"figures cannot be drawn here without {', '.join(missing)}: pip install 'headroom[draw]'")


def render(directory: Path, *, density: bool, as_json: bool) -> None:
    """Redraw the report in `directory`, in place, labeled prompts as densities if asked.

    Raises InvalidRequest where there is no report.
    """
    check_report(directory, "DIR")
    run(REPORT, [str(directory.absolute()), *(["--density"] if density else [])])
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


def compare(reports: Sequence[str], out: Path, *, as_json: bool) -> None:
    """Compare reports, the first the baseline, and put the comparison into `out`.

    What names a directory is read there; anything else is an id, and downloaded from the service first.
    """
    from service.comparison.comparable_report import check_count
    from service.errors import NotComparable

    inputs.check_out(out)
    require_drawing()
    try:
        check_count(len(reports))
    except NotComparable as error:
        raise InvalidRequest("REPORT", list(reports), str(error), message=f"REPORT: {error}") from error
    with tempfile.TemporaryDirectory(prefix="headroom-compare-") as fetched:
        directories = _directories(reports, Path(fetched))
        run(COMPARISON, [str(path) for path in (out.absolute(), *directories)])
    page = out.absolute() / "comparison.html"
    comparison = json.loads((out / "comparison.json").read_bytes())
    if as_json:
        output.document({"directory": str(out.absolute()), "page": str(page), "comparison": comparison})
        return
    console = output.results()
    for difference in comparison["differences"]:
        for scheme, change in difference["schemes"].items():
            output.line(console, f"{difference['label']}, {scheme}: {_change_in_words(change['kl_divergence'])}")
    for warning in comparison["warnings"]:
        advice = f" {warning['advice']}" if warning.get("advice") else ""
        output.line(console, f"Warning: {warning['where']}: {warning['message']}{advice}")
    for difference in comparison["differences"]:
        for left_out in difference["not_compared"]:
            output.line(console, f"Not compared: {difference['label']}: {left_out['name']}: {left_out['reason']}")
    output.line(console, f"Comparison: {page}")


def _change_in_words(change: Document) -> str:
    """Say what became of the mean KL divergence, and on how many shared sequences that was seen."""
    if change["difference"] is None:
        return "a report has no mean KL"
    difference = claim(Estimate.model_validate(change["difference"]), "nats")
    if not change["paired"]:
        return f"mean KL differs by {difference}, which says neither better nor worse: no scored sequence is shared"
    word = "no clear difference" if not change["clear"] else "worse" if change["difference"]["value"] > 0 else "better"
    return f"{word}; mean KL differs by {difference} over {change['sequences']} shared sequences"


def _directories(reports: Sequence[str], fetched: Path) -> list[Path]:
    """Return where every report lies; those given by id are downloaded below `fetched`, each once."""
    ids = []
    for report in reports:
        if is_directory(report):
            check_report(Path(report), "REPORT")
        else:
            ids.append(checked_id(report, "REPORT", ", or the directory of a report"))
    if ids:
        with connect(workers=False) as service:
            for report_id in dict.fromkeys(ids):
                fetch(service.client, report_id, fetched / report_id)
    return [Path(report).absolute() if is_directory(report) else fetched / report for report in reports]


def is_directory(report: str) -> bool:
    """Return whether what was typed names a directory, not an id: it is one, or is written as a path."""
    return Path(report).is_dir() or "/" in report or report.startswith(".")
