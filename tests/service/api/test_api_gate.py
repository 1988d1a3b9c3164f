"""Who gets in, what the service says of itself, and how it fails."""

import re
import shutil

import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from service import queue
from service.api.app import make_app
from service.settings import Settings

OPEN = {"/healthz", "/readyz", "/v1/badges/{token}.svg", "/v1/feeds/{token}.atom"}
"""Paths that need no key."""
UNKNOWN = [{}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}, {"Authorization": "Basic dGVzdHM6"}]


@pytest.mark.parametrize("headers", UNKNOWN)
def test_nothing_is_told_without_a_known_key(client, world, problem, headers):
    documented = client.get("/openapi.json").json()["paths"]
    assert documented.keys() >= OPEN | {"/v1/jobs", "/v1/reports/{job_id}/bundle.zip", "/v1/audits/{audit}/runs"}
    calls = [(method, path) for path in documented.keys() - OPEN for method in documented[path]]
    for number, (method, path) in enumerate([*calls, ("get", "/openapi.json"), ("get", "/no/such/path")]):
        stranger = TestClient(world.app, client=(f"192.0.2.{number}", 1))  # an address is slowed by bad keys
        response = stranger.request(method, re.sub(r"{\w+}", "x", path), headers=headers)
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers", [{"Authorization": "bearer the-key-of-the-tests"}, {"X-API-Key": "the-key-of-the-tests"}]
)
def test_the_key_is_taken_in_either_header(stranger, headers):
    assert stranger.get("/v1/schemes", headers=headers).status_code == 200


def test_a_stranger_cannot_make_the_service_read_a_large_body(stranger, problem):
    problem(stranger.post("/v1/jobs", content=b"x" * 100_000), 401, "unauthorized")


def test_unknown_paths_and_methods_are_problems_too(client, problem):
    problem(client.get("/v1/nothing"), 404, "not-found")
    problem(client.delete("/v1/jobs"), 405, "method-not-allowed")
    problem(client.get("/docs"), 404, "not-found")


def test_health_needs_no_key(stranger):
    assert stranger.get("/healthz").json() == {"status": "ok"}
    ready = stranger.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready", "database": "ok", "artifacts": "ok", "broker": "none", "unserved": []
    }  # fmt: skip


def test_a_service_whose_artifact_store_was_exchanged_is_not_ready(stranger, world):
    world.artifacts.id = "the id at the start"
    world.artifacts.write_id("another")
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert (answer.json()["status"], answer.json()["artifacts"]) == ("not ready", "other")
    world.artifacts.write_id("the id at the start")
    assert stranger.get("/readyz").status_code == 200


def test_a_service_without_its_artifacts_is_not_ready(stranger, world):
    shutil.rmtree(world.settings.artifacts)
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert (answer.json()["status"], answer.json()["artifacts"]) == ("not ready", "failed")


def test_a_service_without_its_database_is_not_ready(stranger, world, monkeypatch):
    monkeypatch.setattr(world.store, "counts", gone)
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["database"] == "failed"


def test_a_broker_that_is_away_is_told_and_does_not_stop_the_service(world, tmp_path):
    settings = Settings(home=tmp_path, broker_url=f"redis+socket://:secret@{tmp_path}/none.sock")
    app = make_app(settings, world.stores, queue.make_app(settings))
    headers = {"X-API-Key": "the-key-of-the-tests"}
    with TestClient(app) as caller:
        assert caller.get("/readyz").status_code == 200
        assert caller.get("/readyz").json()["broker"] == "failed"
        assert caller.post("/v1/jobs", json={"model": "sample"}, headers=headers).status_code == 202


def test_a_database_that_is_away_is_a_problem_that_passes(client, world, problem, monkeypatch):
    monkeypatch.setattr(world.store, "list", gone)
    response = client.get("/v1/jobs")
    problem(response, 503, "database-unavailable")
    assert response.headers["retry-after"]


def test_an_error_of_our_own_making_tells_nothing_of_the_inside(client, world, problem, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(world.store, "list", broken)
    response = client.get("/v1/jobs")
    problem(response, 500, "internal")
    assert "hunter2" not in response.text


def test_schemes_and_models_say_what_may_be_asked_for(client):
    simulated = {scheme["name"]: scheme["simulated"] for scheme in client.get("/v1/schemes").json()["schemes"]}
    assert list(simulated)[:2] == ["int8", "nf4"]
    assert simulated["w8a8-tensor"]
    assert not simulated["int8"]
    assert "sample" in [model["form"] for model in client.get("/v1/models").json()["models"]]


def test_schemes_say_which_settings_they_take(client):
    schemes = {scheme["name"]: scheme for scheme in client.get("/v1/schemes").json()["schemes"]}
    takes = {name: [setting["name"] for setting in scheme["takes"]] for name, scheme in schemes.items()}
    four_bits = ["compute_dtype", "block_size", "double_quantisation"]
    assert (takes["int8"], takes["nf4"], takes["fp4-dq"], takes["mxfp4"]) == (["threshold"], four_bits, four_bits, [])
    dtype, block, double = schemes["nf4"]["takes"]
    assert dtype["values"] == ["bfloat16", "float16", "float32"]
    assert (block["values"], double["values"]) == ([32, 64, 128, 256, 512, 1024, 2048, 4096], [True, False])
    assert (schemes["int8"]["takes"][0]["minimum"], schemes["int8"]["takes"][0]["values"]) == (0, [])
    assert schemes["nf4"]["settings"]["compute_dtype"] == "auto"
    assert all(setting["meaning"] for scheme in schemes.values() for setting in scheme["takes"])


def test_openapi_says_that_a_scheme_is_a_text_or_an_object(client):
    parts = client.get("/openapi.json").json()["components"]["schemas"]
    [text, variant] = parts["JobSubmission"]["properties"]["schemes"]["items"]["anyOf"]
    assert text == {"type": "string"}
    assert parts[variant["$ref"].rpartition("/")[2]]["required"] == ["scheme"]


def gone(*_, **__):
    """Be a database that does not answer."""
    raise OperationalError("SELECT 1", {}, OSError("gone"))
