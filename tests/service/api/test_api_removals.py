"""Deleting jobs and expired reports over HTTP: 204, 409, and 410 with the time at which it went."""

from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from service.store.files.removals import Removals
from service.store.hosts.clock import utcnow

FILES = ("", "/report.html", "/summary.md", "/bundle.zip", "/figures/error_growth.svg", "/tables/sites.csv")


def test_a_deleted_job_and_its_report_are_gone(client: TestClient, report_id: str, problem) -> None:
    assert client.delete(f"/v1/jobs/{report_id}").status_code == 204
    paths = [f"/v1/jobs/{report_id}", f"/v1/jobs/{report_id}/events", f"/v1/jobs/{report_id}/files/calibration"]
    paths += [f"/v1/reports/{report_id}{name}" for name in FILES]
    for path in paths:
        assert f"{report_id} was deleted, with its report, at 20" in str(
            problem(client.get(path), 410, "gone")["detail"]
        )
    problem(client.delete(f"/v1/jobs/{report_id}"), 410, "gone")
    assert client.get("/v1/jobs").json()["jobs"] == []
    assert client.get("/v1/reports").json()["reports"] == []


def test_an_expired_report_is_gone_and_its_job_is_not(world, client: TestClient, report_id: str, problem) -> None:
    later = Removals(world.stores.jobs._reader, lambda *_: False, lambda: utcnow() + timedelta(days=3))
    assert later.expire(2) == 1
    for name in FILES:
        answer = problem(client.get(f"/v1/reports/{report_id}{name}"), 410, "gone")
        assert f"report: that of job {report_id} expired at 20" in str(answer["detail"])
    job = client.get(f"/v1/jobs/{report_id}").json()
    assert (job["status"], job["report"], job["verdicts"]) == ("succeeded", None, None)
    assert job["report_expired_at"]
    assert [one["id"] for one in client.get("/v1/jobs").json()["jobs"]] == [report_id]
    assert client.get("/v1/reports").json()["reports"] == []
    problem(client.get("/v1/comparisons", params={"report": [report_id, report_id]}), 410, "gone")


def test_a_running_job_and_a_baseline_are_not_deleted(
    world, client: TestClient, report_id: str, problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.stores.removals, "_is_needed", lambda report, _: report == report_id)
    running = world.submit()
    world.claim(running)
    problem(client.delete(f"/v1/jobs/{running.id}"), 409, "transition-not-allowed")
    problem(client.delete(f"/v1/jobs/{report_id}"), 409, "conflict")
    assert client.get(f"/v1/reports/{report_id}").status_code == 200


def test_a_queued_job_is_deleted_at_once(world, client: TestClient) -> None:
    job = world.submit()
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert world.store.claim(job.id, 1, "worker", 60) is None


@pytest.mark.parametrize(
    ("days", "status"), [(1, 202), (36_500, 202), (0, 422), (36_501, 422), (1.5, 422), (True, 422)]
)
def test_a_job_says_how_long_its_report_is_kept(client: TestClient, days: object, status: int) -> None:
    answer = client.post("/v1/jobs", json={"model": "sample", "retention_days": days})
    assert answer.status_code == status
    if status == 202:
        assert answer.json()["request"]["retention_days"] == days
    else:
        assert "retention_days" in answer.json()["detail"]


def test_the_key_of_a_deleted_job_is_gone_too(client: TestClient, problem) -> None:
    headers = {"Idempotency-Key": "key"}
    job = client.post("/v1/jobs", json={"model": "sample"}, headers=headers).json()
    client.delete(f"/v1/jobs/{job['id']}")
    answer = problem(client.post("/v1/jobs", json={"model": "sample"}, headers=headers), 410, "gone")
    assert job["id"] in str(answer["detail"])
