"""Runs whose judgment breaks off: by a fault, by an artifact store that does not answer, by a row that cannot be kept."""

import pytest
from audited import LEASE, Clock, Model, Service

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


def _measure_again(service: Service) -> None:
    """Do the jobs of a rerun, in which the model that looked worse is as good as the baseline's."""
    for job in service.queued():
        service.work(GOOD if service.claim_terms(job) == f"sha256:{'a' * 64}" else Model("b"), job)
