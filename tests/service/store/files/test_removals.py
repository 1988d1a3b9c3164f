"""Deleted jobs and expired reports: what goes, what stays, and what is said of what went."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from service.contracts.audits.audit import AuditDefinition
from service.contracts.progress import Failed
from service.contracts.request import JobRequest
from service.errors import Conflict, Gone, InvalidRequest, NotFound, TransitionNotAllowed
from service.store.artifacts import ArtifactStore
from service.store.audit_tables import AuditRunRow
from service.store.audits import AuditStore
from service.store.database import writer
from service.store.files import removals as removals_module
from service.store.files.removals import Removals
from service.store.jobs import Artifact, JobStore
from service.store.statuses import RunState, Status
from service.store.tables import ArtifactRow, DispatchRow, EventRow

DAY = 86_400.0


@pytest.fixture
def audits(engine: Engine, tmp_path: Path, clock) -> AuditStore:
    return AuditStore(engine, ArtifactStore(tmp_path / "artifacts"), clock)


@pytest.fixture
def removals(engine: Engine, audits: AuditStore, clock) -> Removals:
    return Removals(engine, audits.report_is_baseline, clock)


@pytest.fixture
def succeeded(store: JobStore) -> Callable[..., str]:
    """Make a job with a report; return its id."""

    def make(key: str | None = None, **changes: object) -> str:
        job = store.submit(JobRequest.model_validate({"model": "sample"} | changes), idempotency_key=key)
        claim = store.claim(job.id, 1, "worker", 60)
        assert claim is not None
        names = ("report.json", "report.html")
        store.succeed(claim, [Artifact(job.id, name, "a" * 64, 3, "text/plain") for name in names])
        return job.id

    return make


def pin(audits: AuditStore, report_id: str) -> None:
    """Pin a report whose file nobody reads."""
    definition = AuditDefinition(name="shipping", model="/models/llama", baseline=f"report:{report_id}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audits, "check", lambda *_, **__: ())
        audits.create(definition)


def rows(engine: Engine, *tables: type) -> list[int]:
    with Session(engine) as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


@pytest.mark.parametrize("status", [Status.queued, Status.succeeded, Status.failed, Status.cancelled])
def test_a_deleted_job_leaves_only_the_time_at_which_it_went(
    store: JobStore, removals: Removals, succeeded: Callable[..., str], engine: Engine, status: Status
) -> None:
    job_id = succeeded() if status is Status.succeeded else store.submit(JobRequest(model="sample")).id
    if status is Status.failed:
        claim = store.claim(job_id, 1, "worker", 60)
        assert claim is not None
        store.fail(claim, Failed(code="internal", message="x", bad_input=False))
    if status is Status.cancelled:
        store.cancel(job_id)
    removals.delete(job_id)
    assert rows(engine, ArtifactRow, EventRow, DispatchRow) == [0, 0, 0]
    said = f"job: {job_id} was deleted, with its report, at 2026-01-01 00:00:00 UTC"
    for ask in (store.get, store.events, store.artifacts, store.cancel, store.retry, removals.delete):
        with pytest.raises(Gone, match=said):
            ask(job_id)
    with pytest.raises(Gone, match=said):
        store.artifact(job_id, "report.json")
    assert store.list().jobs == []
    assert store.claim(job_id, 1, "worker", 60) is None


def test_a_running_job_is_not_deleted(store: JobStore, removals: Removals) -> None:
    job = store.submit(JobRequest(model="sample"))
    store.claim(job.id, 1, "worker", 60)
    with pytest.raises(TransitionNotAllowed, match=f"job {job.id} is running and cannot be deleted; cancel it first"):
        removals.delete(job.id)
    assert store.get(job.id).status is Status.running


def test_what_is_no_job_is_not_found(removals: Removals) -> None:
    with pytest.raises(NotFound, match="'x' is not the id of a job") as caught:
        removals.delete("x")
    assert not isinstance(caught.value, Gone)


def test_a_baseline_is_neither_deleted_nor_expires(
    store: JobStore, audits: AuditStore, removals: Removals, succeeded: Callable[..., str], clock
) -> None:
    report = succeeded(retention_days=1)
    pin(audits, report)
    clock.move(2 * DAY)
    assert removals.expire(1) == 0
    with pytest.raises(Conflict, match=f"job {report} cannot be deleted: its report is an audit's baseline"):
        removals.delete(report)
    assert len(store.artifacts(report)) == 2
    audits.delete("shipping")
    assert removals.expire(1) == 1


@pytest.mark.parametrize("removed", ["deleted", "expired"])
def test_a_report_that_goes_while_it_is_pinned_is_not_pinned(
    audits: AuditStore,
    removals: Removals,
    succeeded: Callable[..., str],
    clock,
    monkeypatch: pytest.MonkeyPatch,
    removed: str,
) -> None:
    """It goes after the check of the report, and before the audit is written."""
    report = succeeded(retention_days=1)
    clock.move(DAY)

    def check(*_: object, **__: object) -> tuple[str, ...]:
        removals.delete(report) if removed == "deleted" else removals.expire(None)
        return ()

    monkeypatch.setattr(audits, "check", check)
    definition = AuditDefinition(name="shipping", model="/models/llama", baseline=f"report:{report}")
    with pytest.raises(InvalidRequest, match=f"baseline: 'report:{report}' was removed in this moment"):
        audits.create(definition)
    assert audits.list().audits == []


def test_a_run_of_an_audit_stays_readable(
    audits: AuditStore, removals: Removals, succeeded: Callable[..., str], engine: Engine
) -> None:
    report = succeeded()
    audits.create(AuditDefinition(name="shipping", model="/models/llama"))
    run = audits.request_run("shipping")
    with Session(writer(engine)) as session, session.begin():
        row = session.get_one(AuditRunRow, run.id)
        row.state, row.verdict, row.job_id, row.report_id = RunState.ended, "fail", report, report
    removals.delete(report)
    assert [(one.report_id, one.verdict) for one in audits.runs("shipping").runs] == [(report, "fail")]


def test_the_key_of_a_deleted_job_says_so_unless_its_report_is_needed(
    store: JobStore, removals: Removals, succeeded: Callable[..., str]
) -> None:
    request, deleted = JobRequest(model="sample"), succeeded("a")
    removals.delete(deleted)
    with pytest.raises(Gone, match=f"Idempotency-Key: 'a' was used for job {deleted}, deleted at 2026-01-01 00:00:00"):
        store.submit(request, idempotency_key="a")
    again = store.submit(request, idempotency_key="a", needs_report=True)
    assert again.id != deleted
    assert store.submit(request, idempotency_key="a", needs_report=True).id == again.id


def test_the_key_of_a_job_whose_report_expired_gives_that_job_unless_it_is_needed(
    store: JobStore, removals: Removals, succeeded: Callable[..., str], clock
) -> None:
    request, expired = JobRequest(model="sample"), succeeded("a")
    clock.move(DAY)
    assert removals.expire(1) == 1
    assert store.submit(request, idempotency_key="a").id == expired
    assert store.submit(request, idempotency_key="a", needs_report=True).id != expired


@pytest.mark.parametrize(
    ("own", "default", "days"), [(2, None, 2), (2, 1, 2), (1, 5, 1), (None, 3, 3), (None, None, None)]
)
def test_a_report_expires_when_its_job_says_so_or_the_default(
    store: JobStore, removals: Removals, succeeded: Callable[..., str], clock, own, default, days
) -> None:
    report = succeeded(retention_days=own)
    clock.move((days or 1000) * DAY - 1)
    assert removals.expire(default) == 0
    clock.move(1)
    assert removals.expire(default) == (days is not None)
    job = store.get(report)
    assert job.status is Status.succeeded
    assert job.report_expired_at == (clock.now if days else None)
    assert [one.id for one in store.list(with_report=True).jobs] == ([] if days else [report])
    assert [one.id for one in store.list().jobs] == [report]
    if days:
        when = clock.now.strftime("%Y-%m-%d %H:%M:%S UTC")
        with pytest.raises(Gone, match=f"report: that of job {report} expired at {when}"):
            store.artifact(report, "report.json")
        assert store.artifacts(report) == []
        assert removals.expire(default) == 0


def test_baselines_keep_no_other_report_from_expiring(
    store: JobStore,
    engine: Engine,
    succeeded: Callable[..., str],
    clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small transactions look at one report after the other, whatever becomes of those before."""
    monkeypatch.setattr(removals_module, "BATCH", 2)
    reports = []
    for _ in range(7):
        clock.move(1)
        reports.append(succeeded())
    needed = {reports[place] for place in (0, 1, 2, 5)}
    clock.move(DAY)
    assert Removals(engine, lambda report, _: report in needed, clock).expire(1) == 3
    assert {job.id for job in store.list(with_report=True).jobs} == needed
