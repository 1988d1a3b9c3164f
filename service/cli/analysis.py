"""`headroom analyze`: submit, watch, download, summarize.

The events of a job are numbered, so nothing is lost or shown twice when the connection breaks in between.
"""

import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from service.cli import inputs, output
from service.cli.client import Client, Document, DownloadBroken, fetch
from service.cli.commands.analyze_options import AnalyzeOptions, RecommendOptions
from service.cli.connection import Service, WorkerOptions, connect, with_options
from service.cli.options import check_body
from service.cli.reports import summary_text
from service.cli.reports.summary import summarize
from service.cli.running import DONE, LIMIT_BROKEN, JobCancelled, JobFailed, interruptible
from service.contracts.refusals import nearest
from service.contracts.report import Report
from service.errors import InvalidRequest, ReportUnreadable, ServiceUnreachable
from service.evaluation.stored_report import read_report
from service.evaluation.verdict import Level, verdict_of
from service.settings import settings

POLL_SECONDS = 0.4
"""Pause between two questions to the service."""
MAX_OUTAGE_SECONDS = 30.0
"""How long the service may be away before the command gives up watching."""
LEVELS = (Level.noticeable.name, Level.severe.name)
"""Values of `--fail-on`."""


def analyze(options: AnalyzeOptions, *, as_json: bool) -> int:
    """Run one job to its end and print a summary of its report; return the exit status.

    It is LIMIT_BROKEN where the effect of a scheme is at the level `options.fail_on` or worse. Raises JobFailed and
    JobCancelled.
    """
    inputs.check(options)
    level = None if options.fail_on is None else checked_level(options.fail_on)
    worker = WorkerOptions(options.memory, options.device)
    messages = Console(stderr=True)
    here = not settings().url
    earlier = options.report if isinstance(options, RecommendOptions) else None
    path, body = _asked(options, on_this_machine=here)
    with_options(settings(), worker)  # checks them before a stack is started
    if here and earlier is None:
        check_body(body)
    with interruptible(), connect(workers=True, options=worker) as service:
        with output.display(messages) as shown:
            job = run_job(service, body, shown, path)
        check_succeeded(job)
        fetch(service.client, job["id"], options.out)
    out = options.out.absolute()
    report = _downloaded(out)
    if as_json:
        output.document(_document(job, out, report))
    else:
        results = output.results()
        summary_text.show(results, report)
        output.line(results, f"Report: {out / 'report.html'}")
    return DONE if level is None else _gate(report, level)


def checked_level(text: str) -> str:
    """Return the level that `--fail-on` names. Raises InvalidRequest."""
    if text not in LEVELS:
        raise InvalidRequest("--fail-on", text, " or ".join(LEVELS) + nearest(text, LEVELS))
    return text


def reaching(report: Report, level: str) -> tuple[list[str], list[str]]:
    """Return the schemes whose effect is at `level` or worse, and those whose effect cannot be judged."""
    levels = {name: Level[(facts.verdict or verdict_of(report, facts)).level] for name, facts in report.schemes.items()}
    unjudged = [name for name, one in levels.items() if one is Level.unjudged]
    return [name for name, one in levels.items() if Level[level] <= one < Level.unjudged], unjudged


def _gate(report: Report, level: str) -> int:
    """Return the exit status by `--fail-on`, after saying on standard error which schemes decide."""
    failing, unjudged = reaching(report, level)
    if unjudged:
        print(f"--fail-on {level}: the effect of {', '.join(unjudged)} could not be judged", file=sys.stderr)
    if not failing:
        return DONE
    print(f"--fail-on {level}: reached by {', '.join(failing)}", file=sys.stderr)
    return LIMIT_BROKEN


def _asked(options: AnalyzeOptions, *, on_this_machine: bool) -> tuple[str, Document]:
    """Return where the job is submitted, and the body."""
    if isinstance(options, RecommendOptions) and options.report is not None:
        return f"/v1/reports/{quote(options.report, safe='')}/recommend", inputs.for_report(options)
    largest = settings().max_upload_bytes
    return "/v1/jobs", inputs.submission(options, on_this_machine=on_this_machine, largest_file=largest)


def run_job(service: Service, body: Document, shown: output.Display, path: str = "/v1/jobs") -> Document:
    """Submit the job, and return it once it has ended; Ctrl-C cancels it, whether or not its id had come by then."""
    submit = partial(service.client.post, path, body, idempotency_key=uuid.uuid4().hex)
    watch = Watch(service.client, shown, service.check)
    job: Document | None = None
    try:
        job = submit()
        return watch.follow(job["id"])
    except KeyboardInterrupt:
        job_id = (job or submit())["id"]
        print(f"canceling job {job_id}", file=sys.stderr)
        return watch.stop(job_id)


def check_succeeded(job: Document) -> None:
    """Raise JobCancelled or JobFailed for an ended job without a report."""
    if job["status"] == "cancelled":
        raise JobCancelled(job["id"])
    if job["status"] != "succeeded":
        error = job["error"]
        raise JobFailed(job["id"], error["code"], error["message"], bad_input=error["bad_input"])


def _downloaded(directory: Path) -> Report:
    """Return the report that has just arrived in `directory`. Raises DownloadBroken where it cannot be read."""
    try:
        return read_report(directory / "report.json", directory / "tables" / "tokens.parquet")
    except ReportUnreadable as error:
        message = f"{directory / 'report.json'} was downloaded, but it cannot be read as a report: {error}"
        raise DownloadBroken(message) from error


def _document(job: Document, out: Path, report: Report) -> Document:
    paths = {"directory": str(out), "report": str(out / "report.json"), "page": str(out / "report.html")}
    return {"job_id": job["id"], "status": job["status"], **paths, **summarize(report)}


class Watch:
    """Shows the events of one job, each once, also after Ctrl-C.

    `check` is called between two looks and may raise.
    """

    def __init__(self, client: Client, display: output.Display, check: Callable[[], None]) -> None:
        self._client = client
        self._display = display
        self._check = check
        self._last_shown = 0
        """Sequence number of the last event that was shown."""

    def follow(self, job_id: str) -> Document:
        """Show the job's events until it has ended, and return the job.

        Raises ServiceUnreachable when the service stays away.
        """
        answered = time.monotonic()
        while True:
            self._check()
            try:
                ended = self._show_new_events(job_id)
                job = self._client.get(f"/v1/jobs/{job_id}")
                answered = time.monotonic()
            except ServiceUnreachable as error:
                if time.monotonic() - answered > MAX_OUTAGE_SECONDS:
                    raise ServiceUnreachable(f"{error}; job {job_id} may go on: headroom jobs show {job_id}") from error
            else:
                if ended:
                    return job
                if job["queue_position"] is not None:
                    self._display.waiting(job["queue_position"])
            time.sleep(POLL_SECONDS)

    def stop(self, job_id: str) -> Document:
        """Cancel the job, follow it until it has ended, and return it."""
        job = self._client.post(f"/v1/jobs/{job_id}/cancel")
        return job if job["finished_at"] else self.follow(job_id)

    def _show_new_events(self, job_id: str) -> bool:
        """Show the events that were not shown yet; return whether the job has ended."""
        page = self._client.get(f"/v1/jobs/{job_id}/events", after=self._last_shown)
        for event in page["events"]:
            self._display.show(event["kind"], event["data"])
            self._last_shown = event["sequence"]
        return bool(page["ended"])
