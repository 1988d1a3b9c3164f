"""The audit store: what is kept of an audit, what is refused, and what a change of one does to its schedule."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.exc import IntegrityError

from service.contracts.audits.audit import AuditDefinition
from service.contracts.report import Report
from service.contracts.request import JobRequest
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.artifacts import ArtifactStore
from service.store.audit_tables import AuditRerunRow, AuditRow, AuditRunRow
from service.store.audits import AuditStore
from service.store.database import migrations, writer
from service.store.jobs import Artifact, JobStore
from service.store.statuses import RunState, Status
from service.store.tables import Base

TEMPLATE = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0" / "report.json"


def definition(**changes: Any) -> AuditDefinition:
    return AuditDefinition.model_validate({"name": "shipping", "model": "/models/llama"} | changes)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    """An empty artifact store."""
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def audits(engine: Engine, artifacts: ArtifactStore, clock) -> AuditStore:
    """An audit store without audits."""
    return AuditStore(engine, artifacts, clock)


@pytest.fixture
def stored(store: JobStore, artifacts: ArtifactStore) -> Callable[..., str]:
    """Stores the template report with changes, as a succeeded job's; returns its id."""

    def put(**changes: Any) -> str:
        report = Report.model_validate_json(TEMPLATE.read_bytes()).model_copy(update=changes)
        job = store.submit(JobRequest(model="sample"))
        claim = store.claim(job.id, 1, "worker", 60)
        assert claim is not None
        sha256, size = artifacts.put(report.model_dump_json().encode())
        store.succeed(claim, [Artifact(job.id, "report.json", sha256, size, "application/json")])
        return job.id

    return put


def like(report_id: str, store: JobStore, artifacts: ArtifactStore) -> dict[str, Any]:
    """Return the settings of a stored report's analysis, for an audit that it fits."""
    content = artifacts.path(store.artifact(report_id, "report.json").sha256).read_bytes()
    return Report.model_validate_json(content).analysis.model_dump(mode="json", exclude_unset=True)


def end(engine: Engine, run_id: str, clock, **values: Any) -> None:
    """Write the end of a run as a scheduler does."""
    ended = {"state": RunState.ended, "finished_at": clock.now, "verdict": "pass"} | values
    with writer(engine).begin() as connection:
        connection.execute(update(AuditRunRow).where(AuditRunRow.id == run_id).values(**ended))


def test_an_audit_is_found_by_name_and_by_id(audits: AuditStore, clock) -> None:
    made = audits.create(definition(schedule="0 3 * * *", timezone="Europe/Berlin", limits=("int8.perplexity <= 9",)))
    assert audits.get("shipping") == audits.get(made.id) == made
    assert made.definition.limits == ("int8.perplexity <= 9",)
    assert (made.created_at, made.updated_at) == (clock.now, clock.now)
    assert made.next_run_at == datetime(2026, 1, 1, 2, 0, tzinfo=UTC)
    assert (made.paused, made.pause_reason, made.last_run, made.baseline_cautions) == (False, None, None, ())
    other = audits.create(definition(name="other"))
    assert len({made.badge_token, made.feed_token, other.badge_token, other.feed_token}) == 4


@pytest.mark.parametrize("name", ["none", "", "a\0b", "0" * 32, "../x"])
def test_what_is_no_audit_is_not_found(audits: AuditStore, name: str) -> None:
    audits.create(definition())
    for act in (audits.get, audits.delete, audits.resume, audits.request_run, audits.runs):
        with pytest.raises(NotFound, match="is not the name or id of an audit"):
            act(name)
    with pytest.raises(NotFound):
        audits.run(name)


def test_a_name_is_taken_once(audits: AuditStore) -> None:
    first = audits.create(definition())
    audits.create(definition(name="other"))
    with pytest.raises(Conflict, match="'shipping' is already the name of an audit"):
        audits.create(definition())
    with pytest.raises(Conflict, match="'other' is already"):
        audits.update(first.id, definition(name="other"))
    assert audits.update(first.id, definition(name="third")).id == first.id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "61 3 * * *"}, "schedule: '61 3 [*] [*] [*]' has no valid minute"),
        ({"schedule": "0 0 30 2 *"}, "would never fire"),
        ({"timezone": "Europe/Berln"}, 'timezone: .* such as "UTC" or "Europe/Berlin"'),
        ({"limits": ("int8.perplexty <= 9",)}, "the nearest are int8.perplexity"),
        ({"limits": ("gguf.perplexity <= 9",)}, "'gguf' is no scheme of the job"),
        ({"limits": ("int8.perplexity <= 9", "int8.perplexity.value <= 9.0")}, "says the same"),
        ({"baseline": "median:0"}, "baseline: 'median:0'"),
    ],
)
def test_what_is_not_allowed_is_refused_when_made_and_when_edited(
    audits: AuditStore, changes: dict[str, Any], said: str
) -> None:
    made = audits.create(definition(name="good"))
    with pytest.raises(InvalidRequest, match=said):
        audits.create(definition(**changes))
    with pytest.raises(InvalidRequest, match=said):
        audits.update("good", definition(**changes))
    assert audits.list().audits == [made]


def test_audits_are_listed_by_name_in_pages(audits: AuditStore) -> None:
    for name in ("c", "a", "b"):
        audits.create(definition(name=name))
    asked = audits.request_run("b")
    first = audits.list(page_size=2)
    assert [(one.definition.name, one.last_run) for one in first.audits] == [("a", None), ("b", asked)]
    second = audits.list(page_size=2, page_token=first.next_page_token)
    assert [one.definition.name for one in second.audits] == ["c"]
    assert second.next_page_token is None
    for wrong in ({"page_size": 0}, {"page_size": 1001}, {"page_token": "A\0"}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            audits.list(**wrong)


def test_runs_are_listed_newest_first_in_pages(audits: AuditStore) -> None:
    audit = audits.create(definition())
    asked = [audits.request_run("shipping", trigger) for trigger in ("request", "gate", "request")]
    assert [run.trigger for run in asked] == ["request", "gate", "request"]
    assert {run.audit_id for run in asked} == {audit.id}
    page = audits.runs("shipping", page_size=2)
    assert page.runs == [asked[2], asked[1]]
    assert audits.runs(audit.id, page_size=2, page_token=page.next_page_token).runs == [asked[0]]
    assert audits.run(asked[1].id) == asked[1]
    assert audits.get("shipping").last_run == asked[2]
    with pytest.raises(InvalidRequest, match="page_token"):
        audits.runs("shipping", page_token="x")


def test_a_scheduled_time_has_one_run(audits: AuditStore, engine: Engine, clock) -> None:
    audit = audits.create(definition())
    for _ in range(2):
        audits.request_run("shipping")  # these have no scheduled time
    first, second = (run.id for run in audits.runs(audit.id).runs)
    end(engine, first, clock, scheduled_at=clock.now)
    with pytest.raises(IntegrityError):
        end(engine, second, clock, scheduled_at=clock.now)


def test_editing_a_schedule_fires_no_time_that_lies_in_the_past(audits: AuditStore, clock) -> None:
    audits.create(definition(schedule="0 3 * * *"))
    clock.move(10 * 3600)
    edited = audits.update("shipping", definition(schedule="0 9 * * *"))
    assert edited.next_run_at == datetime(2026, 1, 2, 9, tzinfo=UTC)
    assert (edited.created_at, edited.updated_at) == (datetime(2026, 1, 1, tzinfo=UTC), clock.now)
    assert audits.update("shipping", definition()).next_run_at is None


def test_resuming_does_not_backfill(audits: AuditStore, clock) -> None:
    audits.create(definition(schedule="0 3 * * *"))
    paused = audits.pause("shipping", "new hardware comes")
    assert (paused.paused, paused.pause_reason, paused.next_run_at) == (True, "new hardware comes", None)
    assert audits.update("shipping", definition(schedule="0 4 * * *")).next_run_at is None
    clock.move(10 * 86400 + 5 * 3600)
    resumed = audits.resume("shipping")
    assert (resumed.paused, resumed.pause_reason) == (False, None)
    assert resumed.next_run_at == datetime(2026, 1, 12, 4, tzinfo=UTC)


def test_resuming_what_is_not_paused_changes_nothing(audits: AuditStore, clock) -> None:
    made = audits.create(definition(schedule="0 3 * * *"))
    clock.move(4 * 3600)
    assert audits.resume("shipping") == made


@pytest.mark.parametrize("reason", ["", "x" * 1025, "a\0b"])
def test_a_pause_needs_a_reason(audits: AuditStore, reason: str) -> None:
    audits.create(definition())
    with pytest.raises(InvalidRequest, match="reason"):
        audits.pause("shipping", reason)


def test_a_pinned_report_that_fits_is_taken(
    audits: AuditStore, stored: Callable[..., str], store: JobStore, artifacts: ArtifactStore
) -> None:
    report = stored()
    made = audits.create(definition(**like(report, store, artifacts), baseline=f"report:{report}"))
    assert made.baseline_cautions == ()


@pytest.mark.parametrize(
    ("in_report", "in_audit", "said"),
    [
        ({"definitions_version": "0.9"}, {}, "Its definitions are 0.9"),
        ({}, {"sequences": 77}, "Its sequences is .*; the audit's is 77, so that the calibration texts differ"),
        ({}, {"schemes": ["int8", "fp4"]}, "It lacks the schemes fp4"),
    ],
)
def test_a_pinned_report_that_does_not_fit_is_refused_unless_forced(
    audits: AuditStore,
    stored: Callable[..., str],
    store: JobStore,
    artifacts: ArtifactStore,
    in_report: dict[str, Any],
    in_audit: dict[str, Any],
    said: str,
) -> None:
    report = stored(**in_report)
    asked = definition(**like(report, store, artifacts) | in_audit, baseline=f"report:{report}")
    with pytest.raises(InvalidRequest, match=f"baseline: .*{said}"):
        audits.create(asked)
    (caution,) = audits.create(asked, force=True).baseline_cautions
    assert caution.startswith(said.split(" .*")[0])
    assert audits.get("shipping").baseline_cautions == (caution,)
    assert audits.update("shipping", definition()).baseline_cautions == ()


def test_a_pinned_report_that_is_unknown_is_refused_unless_forced(audits: AuditStore) -> None:
    asked = definition(baseline=f"report:{'0' * 32}")
    with pytest.raises(InvalidRequest, match="There is no such report"):
        audits.create(asked)
    assert audits.create(asked, force=True).baseline_cautions == ("There is no such report.",)


def test_the_report_of_a_failed_run_is_refused_though_forced(
    audits: AuditStore, stored: Callable[..., str], engine: Engine, clock
) -> None:
    audits.create(definition())
    report = stored()
    end(engine, audits.request_run("shipping").id, clock, report_id=report, verdict="fail")
    with pytest.raises(InvalidRequest, match="is the report of a run that ended as fail"):
        audits.create(definition(name="other", baseline=f"report:{report}"), force=True)


def test_reports_that_are_baselines_are_known(audits: AuditStore, engine: Engine, clock) -> None:
    audits.create(definition(name="pinning", baseline="report:pinned"), force=True)
    median = audits.create(definition(name="median", baseline="median:2")).definition.model_dump(mode="json")
    for report in ("old", "middle", "failed", "new"):
        verdict = "fail" if report == "failed" else "pass"
        clock.move(1)
        asked = audits.request_run("median").id
        end(engine, asked, clock, report_id=report, verdict=verdict, definition=median)
    end(engine, audits.request_run("pinning").id, clock, report_id="own")
    waiting = {"state": RunState.measuring, "verdict": None, "finished_at": None}
    end(engine, audits.request_run("median").id, clock, **waiting, job_id="measured", baseline_report_id="compared")
    kept = ("pinned", "middle", "new", "measured", "compared")
    names = (*kept, "old", "failed", "own", "unknown")
    assert {name for name in names if audits.report_is_baseline(name)} == set(kept)


def test_deleting_an_audit_leaves_nothing_and_stops_its_jobs(
    audits: AuditStore, store: JobStore, engine: Engine, clock
) -> None:
    audits.create(definition())
    audits.create(definition(name="other"))
    kept = audits.request_run("other")
    run = audits.request_run("shipping")
    jobs = [store.submit(JobRequest(model="sample")).id for _ in range(4)]
    store.claim(jobs[1], 1, "worker", 60)
    waiting = {"state": RunState.rerunning, "verdict": None, "finished_at": None}
    end(engine, run.id, clock, **waiting, job_id=jobs[0])
    with writer(engine).begin() as connection:
        rerun = {"run_id": run.id, "seed": 2**62, "job_id": jobs[1], "baseline_job_id": jobs[2]}
        connection.execute(AuditRerunRow.__table__.insert().values(**rerun))
    audits.delete("shipping")
    assert [one.definition.name for one in audits.list().audits] == ["other"]
    with engine.connect() as connection:
        assert connection.scalars(select(AuditRunRow.id)).all() == [kept.id]
        assert connection.scalar(select(func.count()).select_from(AuditRerunRow)) == 0
    assert [store.get(job).status for job in jobs] == [
        Status.cancelled,
        Status.running,
        Status.cancelled,
        Status.queued,
    ]
    assert store.get(jobs[1]).cancel_requested


def test_every_table_of_audits_is_emptied_with_the_audit() -> None:
    """A table that refers to audits or runs goes with them, in the database itself."""
    for table in Base.metadata.tables.values():
        for key in table.foreign_keys:
            if key.column.table.name in (AuditRow.__tablename__, AuditRunRow.__tablename__):
                assert key.ondelete == "CASCADE", table.name


def test_the_second_migration_keeps_jobs(empty_engine: Engine) -> None:
    with writer(empty_engine).begin() as connection:
        command.upgrade(migrations(connection), "head")
    job = JobStore(empty_engine).submit(JobRequest(model="sample"))
    with writer(empty_engine).begin() as connection:
        command.downgrade(migrations(connection), "0001")
        assert connection.scalars(text("SELECT id FROM jobs")).all() == [job.id]
        assert connection.scalars(text("SELECT job_id FROM events")).all() == [job.id]
        command.upgrade(migrations(connection), "head")
    assert JobStore(empty_engine).get(job.id) == job
