"""`headroom reports compare`: several reports side by side, by their ids at the service or their directories here."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.cli import bundle, inputs, output, reporting
from service.cli.client import Document
from service.cli.connection import connect
from service.cli.redrawing import check_report
from service.cli.resources import checked_id
from service.contracts.numbers import claim
from service.contracts.report import Estimate
from service.errors import InvalidRequest


def compare(reports: Sequence[str], out: Path, *, as_json: bool) -> None:
    """Compare reports, the first the baseline, and put the comparison into `out`.

    What names a directory is read there; anything else is an id, and downloaded from the service first.
    """
    from service.comparison.comparable_report import NotComparable, check_count

    inputs.check_out(out)
    reporting.require_drawing()
    try:
        check_count(len(reports))
    except NotComparable as error:
        raise InvalidRequest("REPORT", list(reports), str(error), message=str(error)) from error
    with tempfile.TemporaryDirectory(prefix="headroom-compare-") as fetched:
        directories = _directories(reports, Path(fetched))
        reporting.run(reporting.COMPARISON, [str(path) for path in (out.absolute(), *directories)])
    page = out.absolute() / "comparison.html"
    comparison = json.loads((out / "comparison.json").read_bytes())
    if as_json:
        output.document({"directory": str(out.absolute()), "page": str(page), "comparison": comparison})
        return
    console = output.results()
    for difference in comparison["differences"]:
        for scheme, found in difference["schemes"].items():
            output.line(console, f"{difference['label']}, {scheme}: {_told(found['kl_divergence'])}")
    for warning in comparison["warnings"]:
        advice = f" {warning['advice']}" if warning.get("advice") else ""
        output.line(console, f"Warning: {warning['where']}: {warning['message']}{advice}")
    for difference in comparison["differences"]:
        for left_out in difference["not_compared"]:
            output.line(console, f"Not compared: {difference['label']}: {left_out['name']}: {left_out['reason']}")
    output.line(console, f"Comparison: {page}")


def _told(change: Document) -> str:
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
                bundle.fetch(service.client, report_id, fetched / report_id)
    return [Path(report).absolute() if is_directory(report) else fetched / report for report in reports]


def is_directory(report: str) -> bool:
    """Return whether what was typed names a directory, not an id: it is one, or is written as a path."""
    return Path(report).is_dir() or "/" in report or report.startswith(".")
