"""One round for audits: inserts the runs of scheduled times, starts waiting runs, and judges measured ones.

Every step is a transaction of its own that leaves a run where the next round finds it. What goes wrong with one audit
is logged and keeps no other from its turn; only a database that does not answer breaks off the round.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy.exc import InterfaceError, OperationalError

from service.comparison.comparable_report import ComparableReport, stored_report
from service.scheduler.judging import Reports, advance
from service.settings import Settings
from service.startup import Stores
from service.store.runs.store import RunStore

log = logging.getLogger(__name__)

LEASES = 5
"""A scheduler may judge one measurement for this many times the lease of a job."""


@dataclass(frozen=True)
class AuditRound:
    """Counts of what one round did."""

    fired: int
    """Runs and skipped times inserted for scheduled times."""
    started: int
    judged: int
    """Judgments written: verdicts, and reruns that were asked for."""


def run_audit_round(store: RunStore, reports: Reports, lease_seconds: float) -> AuditRound:
    """Do one round. `lease_seconds` is how long one judgment may take before another scheduler takes it over."""
    fired = _each("audit", store.due_audits(), store.fire)
    started = _each("run", store.waiting_runs(), store.start)
    judge = partial(advance, store, reports, lease_seconds=lease_seconds)
    return AuditRound(fired, started, _each("run", store.ready_runs(), judge))


def audit_rounds(settings: Settings, stores: Stores) -> Callable[[], AuditRound]:
    """Return a function that does one round on the service's stores."""

    def path_of(report_id: str, name: str) -> Path:
        return stores.artifacts.path(stores.jobs.artifact(report_id, name).sha256)

    def reports(report_id: str) -> ComparableReport:
        return stored_report(report_id, partial(path_of, report_id))

    return partial(run_audit_round, stores.runs, reports, LEASES * settings.lease_seconds)


def _each(what: str, ids: Iterable[str], step: Callable[[str], int]) -> int:
    done = 0
    for one in ids:
        try:
            done += step(one)
        except (InterfaceError, OperationalError):
            raise
        except Exception as error:  # of this one alone
            log.error("%s %s: this step is tried again", what, one, exc_info=error)
    return done
