"""Scheduled times become runs: one for each audit and time, and a row with the reason for each that is skipped."""

from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread

import pytest
from audited import Clock, Model, Service
from sqlalchemy import Engine, func, select, update

from service.contracts.audits.audit import AuditDefinition, Trigger
from service.scheduler.audit_rounds import AuditRound
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.database import make_engine, writer
from service.store.runs.store import RunStore
from service.store.statuses import Status
from service.store.tables import JobRow

NIGHTLY = {"schedule": "0 3 * * *", "limits": ()}


def at(day: int, hour: int = 3, minute: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, minute, tzinfo=UTC)


def times(service: Service) -> list[tuple[datetime | None, str | None]]:
    """The runs of the audit, oldest first: scheduled time and verdict."""
    return [(run.scheduled_at, run.verdict) for run in reversed(service.audits.runs("shipping").runs)]


def test_a_time_that_comes_starts_one_run_with_its_job(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    clock.now = at(1, 2, 59)
    assert service.round() == AuditRound(0, 0, 0)
    clock.now = at(1, 3)
    assert service.round() == AuditRound(fired=1, started=1, judged=0)
    assert service.round() == AuditRound(0, 0, 0)
    (run,) = service.audits.runs("shipping").runs
    assert (run.trigger, run.scheduled_at, run.started_at, run.verdict) == ("schedule", at(1), at(1), None)
    assert [job.id for job in service.jobs.list().jobs] == [run.job_id]
    assert service.jobs.get(run.job_id or "").request.model == "/models/llama"
    assert service.audits.get("shipping").next_run_at == at(2)


def test_a_job_belongs_to_the_transaction_that_starts_the_run(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.audit(**NIGHTLY)
    clock.now = at(1)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no job")

    with monkeypatch.context() as patched:
        patched.setattr("service.store.runs.starting.insert_job", broken)
        assert service.round() == AuditRound(fired=1, started=0, judged=0)
    (run,) = service.audits.runs("shipping").runs
    assert (run.started_at, run.job_id) == (None, None)
    assert service.round().started == 1


def test_the_job_has_the_settings_of_the_audit(service: Service) -> None:
    file = {"name": "text.jsonl", "sha256": "0" * 64, "size": 10}
    asked = {"schemes": ["nf4", "small=nf4:block_size=64"], "sequences": 3, "seed": 7, "calibration": file}
    service.audit(**asked, model={"newest_in": "/models"}, limits=("small.perplexity <= 9",))
    service.audits.request_run("shipping")
    service.round()
    claim = service.claim(service.queued()[0])
    assert (claim.request.model, claim.request.seed, claim.request.sequences) == ("/models", 7, 3)
    assert claim.request.scheme_names == ("nf4", "small")
    assert claim.request.calibration is not None
    assert claim.terms is not None
    assert claim.terms.newest_in


def test_a_time_while_the_run_before_has_not_ended_is_skipped(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    for day in (1, 2):
        clock.now = at(day)
        service.round()
    assert times(service) == [(at(1), None), (at(2), "skipped")]
    assert service.audits.runs("shipping").runs[0].reasons == ("The run before had not ended.",)
    service.work(Model())
    service.round()
    clock.now = at(3)
    service.round()
    assert times(service) == [(at(1), "pass"), (at(2), "skipped"), (at(3), None)]


def test_with_overlap_queue_one_run_waits_and_more_are_skipped(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY, overlap="queue")
    for day in (1, 2, 3):
        clock.now = at(day)
        service.round()
    assert times(service) == [(at(1), None), (at(2), None), (at(3), "skipped")]
    assert "waiting already" in service.audits.runs("shipping").runs[0].reasons[0]
    assert len(service.queued()) == 1
    service.work(Model())
    assert service.round().judged == 1
    assert service.round().started == 1
    assert times(service)[:2] == [(at(1), "pass"), (at(2), None)]
    assert len(service.queued()) == 1


def test_runs_that_are_asked_for_wait_for_one_another(service: Service) -> None:
    service.audit(limits=(), skip_unchanged=False)
    asked = [service.audits.request_run("shipping", trigger).id for trigger in ("request", "gate")]
    assert [service.round().started for _ in range(2)] == [1, 0]
    service.work(Model())
    assert (service.round().judged, service.round().started) == (1, 1)
    service.work(Model())
    service.round()
    assert [service.audits.run(run).verdict for run in asked] == ["pass", "pass"]


def test_after_an_outage_the_latest_missed_time_runs_and_the_others_are_rows(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    clock.now = at(4, 9)
    service.round()
    assert times(service) == [(at(1), "skipped"), (at(2), "skipped"), (at(3), "skipped"), (at(4), None)]
    reason = service.audits.runs("shipping").runs[1].reasons
    assert reason == ("A later time, 2026-01-04 03:00 UTC, is due too.",)


def test_a_time_outside_the_window_is_not_made_up_for(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY, catch_up_seconds=3600)
    clock.now = at(1, 5)
    service.round()
    assert times(service) == [(at(1), "skipped")]
    assert service.audits.runs("shipping").runs[0].reasons == (
        "No scheduler was running until 2:00:00 after that time; the catch-up window is 1:00:00.",
    )
    assert service.queued() == []


def test_a_long_outage_lists_the_latest_skipped_times_and_counts_the_rest(service: Service, clock: Clock) -> None:
    service.audit(schedule="* * * * *", limits=())
    clock.now = at(1, 5)
    service.round()
    runs = service.audits.runs("shipping", page_size=1000).runs
    assert len(runs) == 101
    assert runs[-1].reasons[1] == "199 earlier times were skipped too, for the same reason."


def test_jitter_delays_the_start_inside_its_bounds(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY, jitter_seconds=3600)
    start = service.audits.get("shipping").next_run_at
    assert start is not None
    assert at(1) <= start <= at(1, 4)
    clock.now = start - timedelta(seconds=1)
    assert service.round().fired == 0
    clock.now = start
    assert service.round().fired == 1
    assert times(service) == [(at(1), None)]


def test_editing_a_schedule_fires_no_time_that_lies_in_the_past(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    clock.now = at(1)
    service.round()
    clock.now = at(1, 10)
    for schedule in ("0 9 * * *", "30 9 * * *", "0 3 * * *"):
        service.audits.update("shipping", AuditDefinition(name="shipping", model="/m", schedule=schedule))
        assert service.round().fired == 0
    clock.now = at(2)
    assert service.round().fired == 1
    assert [scheduled for scheduled, _ in times(service)] == [at(1), at(2)]


def test_resuming_does_not_backfill(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    service.audits.pause("shipping", "moving")
    clock.now = at(9, 10)
    assert service.round() == AuditRound(0, 0, 0)
    service.audits.resume("shipping")
    assert service.round() == AuditRound(0, 0, 0)
    clock.now = at(10)
    service.round()
    assert times(service) == [(at(10), None)]


def test_a_paused_audit_runs_when_asked_and_skips_what_had_been_fired(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    clock.now = at(1)
    service.runs.fire(service.audits.get("shipping").id)
    service.audits.pause("shipping", "moving")
    asked = service.audits.request_run("shipping")
    service.round()
    service.round()
    skipped = service.audits.runs("shipping").runs[1]
    assert (skipped.verdict, skipped.reasons) == ("skipped", ("The audit was paused. moving",))
    assert service.audits.run(asked.id).started_at == at(1)


def test_after_errors_in_a_row_the_audit_pauses(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY, pause_after_errors=2)
    for day, cancelled in ((1, True), (2, False), (3, True), (4, True), (5, True)):
        clock.now = at(day)
        service.round()
        for job in service.queued():
            if cancelled:
                service.jobs.cancel(job)
            else:
                service.work(Model(), job)
        service.round()
    assert times(service) == [(at(1), "error"), (at(2), "pass"), (at(3), "error"), (at(4), "error")]
    audit = service.audits.get("shipping")
    assert audit.paused
    assert audit.pause_reason == "2 runs in a row ended as error; the last: The job was cancelled."
    service.audits.resume("shipping")
    clock.now = at(6)
    service.round()
    service.jobs.cancel(service.queued()[0])
    service.round()
    assert not service.audits.get("shipping").paused


def test_gates_neither_count_as_errors_nor_end_a_series_of_them(service: Service) -> None:
    service.audit(pause_after_errors=2, skip_unchanged=False, limits=())

    def run(trigger: Trigger, *, cancelled: bool) -> str | None:
        asked = service.audits.request_run("shipping", trigger).id
        service.round()
        (job,) = service.queued()
        if cancelled:
            service.jobs.cancel(job)
        else:
            service.work(Model(), job)
        service.round()
        return service.audits.run(asked).verdict

    for _ in range(3):
        assert run("gate", cancelled=True) == "error"
    assert run("request", cancelled=True) == "error"
    assert run("gate", cancelled=False) == "pass"
    assert not service.audits.get("shipping").paused
    assert run("request", cancelled=True) == "error"
    assert service.audits.get("shipping").paused


def test_an_audit_that_cannot_be_read_is_paused_and_keeps_no_other_from_its_turn(
    service: Service, engine: Engine, clock: Clock
) -> None:
    for name in ("broken", "good"):
        service.audit(**NIGHTLY, name=name)
    with writer(engine).begin() as connection:
        spoilt = {"name": "broken", "model": "/m", "schedule": "not cron", "pause_after_errors": 3}
        connection.execute(update(AuditRow).where(AuditRow.owned_name == "broken").values(definition=spoilt))
    clock.now = at(1)
    assert service.round().fired == 1
    with engine.connect() as connection:
        paused = connection.scalars(select(AuditRow.owned_name).where(AuditRow.paused)).all()
    assert paused == ["broken"]


def test_a_clock_that_went_back_fires_nothing_twice(service: Service, clock: Clock) -> None:
    service.audit(**NIGHTLY)
    for now in (at(2), at(1), at(2), at(2, 4)):
        clock.now = now
        service.round()
    assert times(service) == [(at(1), "skipped"), (at(2), None)]


def test_two_schedulers_racing_to_start_runs_insert_one_job_each(
    service: Service, engine: Engine, url: str, clock: Clock
) -> None:
    for number in range(50):
        service.audits.request_run(service.audit(name=f"a{number}", limits=()))
    engines = [make_engine(url) for _ in range(2)]
    meeting, started = Barrier(2), []

    def start(store: RunStore) -> None:
        waiting = store.waiting_runs()
        meeting.wait()
        started.append(sum(store.start(run) for run in waiting))

    threads = [Thread(target=start, args=(RunStore(one, clock),)) for one in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in engines:
        one.dispose()
    assert sum(started) == 50
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(JobRow)) == 50
        assert connection.scalar(select(func.count(func.distinct(AuditRunRow.job_id)))) == 50
    assert {job.status for job in service.jobs.list(page_size=100).jobs} == {Status.queued}
