"""Runs whose judgment breaks off: by a fault, by an artifact store that does not answer, by a row that cannot be kept."""

import pytest
from audited import Model, Service

from service.scheduler import judging

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
