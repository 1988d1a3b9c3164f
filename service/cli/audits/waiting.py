"""`headroom audits run`: asks for a run, and with `--wait` follows it to its verdict."""

import sys
import time

from rich.console import Console

from service.cli import output
from service.cli.analysis import MAX_OUTAGE_SECONDS, POLL_SECONDS, Watch
from service.cli.audits.audit_path import path_of
from service.cli.client import Document
from service.cli.connection import Service, connect
from service.cli.gating.outcome import exit_code, run_document
from service.cli.gating.table import show
from service.cli.running import DONE, interruptible
from service.contracts.audits.audit import AuditRun
from service.errors import ServiceUnreachable


def run(name: str, *, wait: bool, as_json: bool) -> int:
    """Ask for a run of an audit; return the exit status, which with `wait` is that of its verdict."""
    path = path_of(name)
    messages = Console(stderr=True)
    with interruptible(), connect(workers=wait) as service:
        run = service.client.post(f"{path}/runs")
        if wait:
            with output.display(messages) as shown:
                run = _follow(service, path, run["id"], shown)
    if as_json:
        output.document(run_document(run))
    elif wait:
        show(output.results(), name, AuditRun.model_validate(run))
    else:
        words = f"Run {run['id']} of {name} is queued; `headroom audits show {name}` shows its verdict"
        output.line(output.results(), words)
    return exit_code(run["verdict"]) if wait else DONE


def _follow(service: Service, path: str, run_id: str, shown: output.Display) -> Document:
    """Show the events of the run's job until the run has ended, and return the run.

    Raises ServiceUnreachable when the service stays away.
    """
    watched: str | None = None
    answered = time.monotonic()
    try:
        while True:
            service.check()
            try:
                run = service.client.get(f"{path}/runs/{run_id}")
                answered = time.monotonic()
            except ServiceUnreachable as error:
                if time.monotonic() - answered > MAX_OUTAGE_SECONDS:
                    raise ServiceUnreachable(f"{error}; run {run_id} may go on") from error
            else:
                if run["verdict"]:
                    return run
                if run["job_id"] and run["job_id"] != watched:
                    watched = run["job_id"]
                    Watch(service.client, shown, service.check).follow(watched)
                    continue
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"run {run_id} was not stopped; it goes on as soon as the service runs", file=sys.stderr)
        raise
