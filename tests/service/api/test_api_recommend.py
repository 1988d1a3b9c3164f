"""A recommendation for a report that there is already, over HTTP: what its job is, and what is refused."""

import json

import pytest

from service.contracts.harm.earlier import EarlierReport
from service.contracts.request import JobRequest

FINGERPRINT = "sha256:" + "7" * 64


@pytest.fixture
def stored(world):
    """Store a report on a model, and return its id."""

    def store(request: JobRequest, source: str, revision: str | None = None) -> str:
        model = {"source": source, "revision": revision, "fingerprint": FINGERPRINT}
        job = world.store.submit(request)
        world.finish(job, {"report.json": json.dumps({"model": model}).encode()})
        return job.id

    return store


def test_the_job_has_the_report_s_model_texts_and_settings(client, world, stored):
    body = {"model": "sample", "calibration": {"name": "mine.txt", "text": "a text"}, "schemes": ["nf4", "int8"]}
    asked = client.post("/v1/jobs?validate_only=true", json=body | {"sequences": 32, "keep": ["attn.v"]}).json()
    before = JobRequest.model_validate(asked)
    report = stored(before, "sample")
    response = client.post(f"/v1/reports/{report}/recommend", json={"recommend": {"max_kl": 0.1}})
    assert response.status_code == 202
    job = world.store.get(response.json()["id"])
    assert response.headers["location"] == f"/v1/jobs/{job.id}"
    assert (job.request.recommend.enabled, job.request.recommend.max_kl) == (True, 0.1)
    assert (job.request.harm.estimate, job.request.harm.exact) == (True, "modules")
    assert job.request.earlier == EarlierReport(job_id=report, fingerprint=FINGERPRINT)
    changed = {"harm": before.harm, "recommend": before.recommend, "earlier": None}
    assert job.request.model_copy(update=changed) == before


def test_a_model_of_the_hub_is_pinned_to_the_report_s_revision(client, world, stored):
    report = stored(JobRequest(model="org/name@main"), "org/name@main", revision="a" * 40)
    job = client.post(f"/v1/reports/{report}/recommend", json={}).json()
    assert world.store.get(job["id"]).request.model == f"org/name@{'a' * 40}"


def test_harm_may_be_asked_for_otherwise(client, world, stored):
    report = stored(JobRequest(model="sample", harm={"exact": "layers"}), "sample")
    body = {"harm": {"draws": 8}}
    job = client.post(f"/v1/reports/{report}/recommend", json=body).json()
    harm = world.store.get(job["id"]).request.harm
    assert (harm.draws, harm.exact, harm.top_modules) == (8, "modules", 24)


def test_the_same_key_gives_the_same_job(client, stored):
    report = stored(JobRequest(model="sample"), "sample")
    answers = [
        client.post(f"/v1/reports/{report}/recommend", json={}, headers={"Idempotency-Key": "once"}) for _ in range(2)
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_what_cannot_be_is_refused(client, world, stored, problem):
    alone = stored(JobRequest(model="sample", sequences=1), "sample")
    found = problem(client.post(f"/v1/reports/{alone}/recommend", json={}), 422, "invalid-request")
    assert "needs 2 sequences or more" in found["detail"]
    report = stored(JobRequest(model="sample"), "sample")
    both = {"recommend": {"max_kl": 0.1, "max_bytes": 5}}
    problem(client.post(f"/v1/reports/{report}/recommend", json=both), 422, "invalid-request")
    problem(client.post("/v1/reports/nothing/recommend", json={}), 404, "not-found")
    waiting = world.submit()
    problem(client.post(f"/v1/reports/{waiting.id}/recommend", json={}), 404, "not-found")
