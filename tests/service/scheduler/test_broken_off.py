"""Runs whose judgment breaks off: by a fault, by an artifact store that does not answer, by a row not written."""

from typing import Any

import pytest
from audited import LEASE, Clock, Model, Service
from sqlalchemy.exc import DataError, OperationalError

from service.errors import StoreUnreachable
from service.scheduler import judging
from service.scheduler.audit_rounds import AuditRound
from service.store.runs.judging import MOST_JUDGMENTS

GOOD, WORSE = Model("a"), Model("b", shift=1.0)


def test_what_ended_as_an_error_is_measured_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.audit()
    service.run(GOOD)

    def faulty(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    combine = judging.judgment.combine
    with monkeypatch.context() as patched:
        patched.setattr(judging.judgment, "combine", faulty)
        run = service.run(WORSE, GOOD)
    assert judging.judgment.combine is combine
    assert (run.verdict, run.report_id) == ("error", run.job_id)  # the report is kept, though nothing came of it
    assert service.run(WORSE, GOOD).verdict == "fail"


@pytest.mark.parametrize("stage", ["first", "rerun"])
def test_an_artifact_store_that_does_not_answer_delays_the_judgment(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The rerun contradicts the first measurement: a rerun that counted as failed would let the alarm stand."""
    service.audit()
    service.run(GOOD)
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(WORSE)
    if stage == "rerun":
        service.round()
        _measure_again(service)

    def unreachable(_sha256: str) -> None:
        raise StoreUnreachable("the artifact store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(service.artifacts, "path", unreachable)
        for _ in range(MOST_JUDGMENTS + 2):
            assert service.round() == AuditRound(0, 0, 0)
            assert service.runs.ready_runs() == []
            clock.move(seconds=LEASE + 1)
    assert service.audits.run(asked.id).verdict is None
    service.round()
    if stage == "first":
        _measure_again(service)
        service.round()
    run = service.audits.run(asked.id)
    assert (run.verdict, [rerun.status for rerun in run.reruns]) == ("unconfirmed", ["completed"])


def _each_of_two_runs(service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """Ask for runs of two audits and do a round, in which the first cannot be started; return the runs' ids."""
    for name in ("first", "second"):
        service.audit(name=name)
        service.audits.request_run(name)
    asked = service.runs.waiting_runs()
    insert: Any = service.runs.start

    def start(run_id: str) -> Any:
        if run_id == asked[0]:
            raise error
        return insert(run_id)

    monkeypatch.setattr(service.runs, "start", start)
    service.round()
    return asked


def test_a_row_that_cannot_be_written_keeps_no_other_from_its_turn(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _each_of_two_runs(service, monkeypatch, DataError("UPDATE", {}, ValueError("a value too long")))
    assert [service.audits.run(run).job_id is not None for run in asked] == [False, True]


def test_a_database_that_does_not_answer_breaks_off_the_round(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OperationalError):
        _each_of_two_runs(service, monkeypatch, OperationalError("UPDATE", {}, ValueError("connection lost")))
    assert service.queued() == []


def test_reasons_with_characters_that_no_database_keeps_end_the_run(service: Service) -> None:
    """The reason goes into the run, and from there into the reason of the pause."""
    service.audit(pause_after_errors=1)
    asked = service.audits.request_run("shipping")
    service.round()
    service.work(GOOD)
    case = service.runs.take(asked.id, LEASE)
    assert case is not None
    assert service.runs.end(case, judging.Ending("error", ["The file a\0b cannot be read."]))
    assert service.audits.run(asked.id).reasons == ("The file ab cannot be read.",)
    assert "The file ab cannot be read." in (service.audits.get("shipping").pause_reason or "")


def _measure_again(service: Service) -> None:
    """Do the jobs of a rerun, in which the model that looked worse is as good as the baseline's."""
    for job in service.queued():
        service.work(GOOD if service.claim_terms(job) == f"sha256:{'a' * 64}" else Model("b"), job)
