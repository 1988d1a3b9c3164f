"""Reports of reruns: needed until their run has ended, in the view of whichever transaction asks."""

from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.contracts.audits.audit import AuditDefinition
from service.store.artifacts import ArtifactStore
from service.store.audit_tables import AuditRerunRow, AuditRunRow
from service.store.audits import AuditStore
from service.store.database import writer
from service.store.statuses import RunState

REPORTS = ("candidate", "baseline", "other")


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    """An audit store with one audit."""
    store = AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock)
    store.create(AuditDefinition(name="shipping", model="/models/llama"))
    return store


def put_rerun(session: Session, run_id: str, state: RunState) -> None:
    """Give a run the jobs of a rerun, and a state."""
    session.get_one(AuditRunRow, run_id).state = state
    session.merge(AuditRerunRow(run_id=run_id, seed=7, job_id="candidate", baseline_job_id="baseline"))


@pytest.mark.parametrize(
    ("state", "needed"),
    [
        (RunState.rerunning, {"candidate", "baseline"}),
        (RunState.judging, {"candidate", "baseline"}),
        (RunState.ended, set()),
    ],
)
def test_reports_of_reruns_are_needed_until_the_run_has_ended(
    audits: AuditStore, engine: Engine, state: RunState, needed: set[str]
) -> None:
    run = audits.request_run("shipping")
    with Session(writer(engine)) as session, session.begin():
        put_rerun(session, run.id, state)
    assert {name for name in REPORTS if audits.report_is_baseline(name)} == needed


def test_the_deleting_transaction_can_ask(audits: AuditStore, engine: Engine) -> None:
    """It sees what it has written itself, which others do not see before it is committed."""
    run = audits.request_run("shipping")
    with Session(writer(engine)) as session:
        put_rerun(session, run.id, RunState.rerunning)
        session.flush()
        assert {name for name in REPORTS if audits.report_is_baseline(name, session)} == {"candidate", "baseline"}
        assert not any(map(audits.report_is_baseline, REPORTS))
