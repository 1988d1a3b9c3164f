"""Limits of a key, and of an address that sends bad ones: 429 with the time to wait."""

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from starlette.testclient import TestClient

from service.api.app import make_app
from service.api.keys import checking
from service.api.keys.checking import BAD_KEYS
from service.api.keys.throttle import Buckets
from service.store.owners.access import Access, Limits


def limited(world, name="ann", **limits):
    """Make a client whose key has these limits."""
    settings = world.settings.model_copy(update=limits)
    _, plain = world.stores.keys.create(name, ["submit", "read"])
    headers = {"Authorization": f"Bearer {plain}"}
    return TestClient(make_app(settings, world.stores), headers=headers, raise_server_exceptions=False)


def refused(problem, answer):
    """Check the refusal, and return its message."""
    document = problem(answer, 429, "limit-reached")
    assert int(answer.headers["retry-after"]) >= 1
    return document["detail"]


def test_so_many_jobs_of_an_owner_wait(world, client, problem):
    ann = limited(world, queued_jobs=2)
    key = {"Idempotency-Key": "k"}
    first = ann.post("/v1/jobs", json={"model": "sample"}, headers=key).json()["id"]
    second = ann.post("/v1/jobs", json={"model": "sample"}).json()["id"]
    assert "HEADROOM_QUEUED_JOBS" in refused(problem, ann.post("/v1/jobs", json={"model": "sample"}))
    assert ann.post("/v1/jobs", json={"model": "sample"}, headers=key).json()["id"] == first
    assert client.post("/v1/jobs", json={"model": "sample"}).status_code == 202
    ann.post(f"/v1/jobs/{second}/cancel")
    third = ann.post("/v1/jobs", json={"model": "sample"})
    assert third.status_code == 202
    refused(problem, ann.post(f"/v1/jobs/{second}/retry"))
    assert ann.get(f"/v1/jobs/{second}").json()["status"] == "cancelled"


def test_so_many_bytes_are_uploaded_in_a_day(world, problem):
    ann = limited(world, upload_bytes_per_day=100)
    body = {"model": "sample", "calibration": {"name": "c.txt", "text": "x" * 60}}
    assert ann.post("/v1/jobs", json=body).status_code == 202
    answer = ann.post("/v1/audits", json=body | {"name": "a", "model": "org/name"})
    assert "120 bytes" in refused(problem, answer)
    assert int(answer.headers["retry-after"]) <= 86_400
    assert ann.get("/v1/audits").json()["audits"] == []
    body["calibration"]["text"] = "x" * 40
    assert ann.post("/v1/audits", json=body | {"name": "a", "model": "org/name"}).status_code == 201
    refused(problem, ann.post("/v1/jobs", json=body))


def test_a_repeated_request_uploads_nothing(world):
    ann = limited(world, upload_bytes_per_day=100)
    body = {"model": "sample", "calibration": {"name": "c.txt", "text": "x" * 60}}
    answers = [ann.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_uploads_of_yesterday_do_not_count(world):
    day = datetime(2026, 3, 1, 12, tzinfo=UTC)
    store = world.store.seen_by(Access("ann", limits=Limits(1, 100)))
    for days, size in ((0, 100), (1, 100)):
        store._clock = lambda now=day + timedelta(days): now
        store.use_upload(size)


def test_so_many_requests_come_with_one_key(world, client, problem):
    ann = limited(world, requests_per_second=0.001)
    assert ann.get("/v1/jobs").status_code == 200
    answer = ann.get("/v1/jobs")
    assert "HEADROOM_REQUESTS_PER_SECOND" in refused(problem, answer)
    assert 900 < int(answer.headers["retry-after"]) <= 1000
    ben = TestClient(ann.app, headers={"X-API-Key": world.stores.keys.create("ben", ["read"])[1]})
    assert ben.get("/v1/jobs").status_code == 200
    admin = TestClient(ann.app, headers=dict(client.headers))
    assert {admin.get("/v1/jobs").status_code for _ in range(3)} == {200}


def test_an_address_is_slowed_by_the_bad_keys_that_it_sends(world, client, problem, monkeypatch):
    monkeypatch.setattr(checking, "Buckets", partial(Buckets, now=lambda: 0.0))
    client = TestClient(make_app(world.settings, world.stores), headers=dict(client.headers))
    assert client.get("/v1/jobs").status_code == 200
    for number in range(BAD_KEYS):
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer bad-{number}"}).status_code == 401
    asked = []
    verify = world.stores.keys.verify
    monkeypatch.setattr(world.stores.keys, "verify", lambda plain: asked.append(plain) or verify(plain))
    assert "bad API keys" in refused(problem, client.get("/v1/jobs", headers={"Authorization": "Bearer bad"}))
    assert asked == []
    assert client.get("/v1/jobs").status_code == 200  # this key was good before
    elsewhere = TestClient(client.app, client=("192.0.2.1", 1))
    problem(elsewhere.get("/v1/jobs", headers={"X-API-Key": "bad"}), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/healthz", "/v1/jobs"])
def test_a_missing_key_is_not_a_bad_one(stranger, path):
    codes = {stranger.get(path).status_code for _ in range(BAD_KEYS + 2)}
    assert codes == {200 if path == "/healthz" else 401}


def made(client, **limits):
    """Make a key with limits over HTTP, and return a caller with it."""
    key = client.post("/v1/keys", json={"name": "ann", "scopes": ["submit", "read"], "limits": limits}).json()
    assert key["limits"] == {
        "queued_jobs": None, "running_jobs": None, "upload_bytes_per_day": None, "requests_per_second": None
    } | limits  # fmt: skip
    return TestClient(client.app, headers={"X-API-Key": key["key"]}, raise_server_exceptions=False)


def test_a_key_may_have_limits_of_its_own(client, problem):
    ann = made(client, queued_jobs=1, upload_bytes_per_day=100, requests_per_second=1.5)
    body = {"model": "sample", "calibration": {"name": "c.txt", "text": "x" * 101}}
    assert "allowed: 100 " in refused(problem, ann.post("/v1/jobs", json=body))
    assert ann.post("/v1/jobs", json={"model": "sample"}).status_code == 202
    assert "allowed: as many" in refused(problem, ann.post("/v1/jobs", json={"model": "sample"}))
    assert "requests a second" in refused(problem, ann.get("/v1/jobs"))


def test_limits_that_cannot_be_are_refused(client, problem):
    body = {"name": "ann", "scopes": ["read"]}
    for limits in ({"queued_jobs": 0}, {"running_jobs": True}, {"requests_per_second": 0}, {"jobs": 1}):
        document = problem(client.post("/v1/keys", json=body | {"limits": limits}), 422, "invalid-request")
        assert [error["field"] for error in document["errors"]] == [f"limits.{name}" for name in limits]
    admin = {"name": "ops", "scopes": ["admin"], "limits": {"queued_jobs": 1}}
    problem(client.post("/v1/keys", json=admin), 422, "invalid-request")
