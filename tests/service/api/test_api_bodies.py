"""Bodies that would cost the service much: refused at their size, their keys or the first wrong items."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.api.bodies import MOST_PARTS
from service.api.middleware import JSON_BYTES
from service.api.problems import NAMED_ERRORS

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def roomy(world):
    """Let the service take bodies of the usual size."""
    for middleware in world.app.user_middleware:
        if "upload_limit" in middleware.kwargs:
            middleware.kwargs["upload_limit"] = 2 * JSON_BYTES


@pytest.fixture
def post(roomy, client):  # noqa: ARG001
    return lambda body: client.post("/v1/jobs", content=json.dumps(body, separators=(",", ":")), headers=JSON)


@pytest.mark.parametrize(("more", "status"), [(0, 202), (1, 413)])
def test_a_json_body_has_a_mebibyte_at_most(post, more, status):
    body = {"model": "sample", "calibration": {"name": "a", "text": ""}}
    body["calibration"]["text"] = "x" * (JSON_BYTES - len(json.dumps(body, separators=(",", ":"))) + more)
    assert post(body).status_code == status


@pytest.mark.parametrize("call", [("PUT", "/v1/audits/a"), ("PATCH", "/v1/audits/a"), ("POST", "/v1/jobs/a/cancel")])
@pytest.mark.usefixtures("roomy")
def test_other_calls_take_no_larger_body(client, problem, call):
    response = client.request(*call, content=b" " * (JSON_BYTES + 1), headers=JSON)
    assert "POST /v1/files" in problem(response, 413, "body-too-large")["detail"]


def test_at_most_twenty_errors_are_named(post, problem):
    document = problem(post({"model": "sample"} | {f"key{n}": n for n in range(50)}), 422, "invalid-request")
    assert [error["field"] for error in document["errors"]] == [f"key{n}" for n in range(NAMED_ERRORS)]
    assert document["detail"].endswith("; and 30 more errors")


def test_a_list_is_refused_at_its_limit(post, problem):
    for schemes in ([1] * 20_000, ["int8"] * 65):
        document = problem(post({"model": "sample", "schemes": schemes}), 422, "invalid-request")
        [error] = document["errors"]
        assert (error["field"], error["allowed"]) == ("schemes", "at most 64 items")


def test_a_body_has_so_many_keys_at_most(post, problem):
    document = problem(
        post({"model": "sample", "heads": {f"key{n}": n for n in range(2000)}}), 400, "malformed-request"
    )
    assert "more than 2000 keys" in document["detail"]


@pytest.mark.parametrize("part", [1, [], {}, "x", [[]]])
def test_a_body_has_so_many_parts_at_most(post, problem, part):
    document = problem(post({"model": "sample", "schemes": [part] * MOST_PARTS}), 400, "malformed-request")
    assert f"more than {MOST_PARTS} texts, commas and opening brackets" in document["detail"]


@pytest.mark.parametrize("text", [",[{" * 60_000, '\\"' * 60_000, '\\\\"' * 60_000])
def test_what_is_inside_of_a_text_is_no_part(post, text):
    assert post({"model": "sample", "calibration": {"name": "a", "text": text}}).status_code == 202


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("body", [b'"' + b'\\"' * 500_000, b'"a' * 100_000, b'{"a":"' + b"\\" * 900_001])
def test_a_text_without_an_end_is_searched_once(client, problem, body):
    """A search that began anew at each mark would take hours."""
    problem(client.post("/v1/jobs", content=body, headers=JSON), 400, "malformed-request")


def test_only_parsing_and_validation_wait_for_another_body(world, post, monkeypatch):
    """While a handler of one large body is at work, another large body is answered."""
    begun, other_answered = threading.Event(), threading.Event()
    submit = world.store.__class__.submit

    def slow(store, request, **options):
        if request.seed == 1:
            begun.set()
            assert other_answered.wait(30)
        return submit(store, request, **options)

    monkeypatch.setattr(world.store.__class__, "submit", slow)
    large = {"model": "sample", "calibration": {"name": "a", "text": "x" * 100_000}}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, large | {"seed": 1})
        assert begun.wait(30)
        assert post(large | {"seed": 2}).status_code == 202
        other_answered.set()
        assert first.result().status_code == 202


def test_a_large_body_is_refused_as_a_small_one_is(post, problem):
    wrong = {"model": "sample", "seed": -1}
    small, large = (
        problem(post(wrong | {"calibration": {"name": "a", "text": "x" * size}}), 422, "invalid-request")
        for size in (1, 100_000)
    )
    assert small == large


@pytest.mark.parametrize(
    "fields",
    [
        {"schemes": ["x" * 900_000]},
        {"schemes": [{"scheme": "x" * 900_000}]},
        {"schemes": [{"scheme": "nf4", "name": "x" * 900_000}]},
        {"schemes": [{"scheme": "nf4", "settings": {"x" * 900_000: 1}}]},
        {"x" * 900_000: 1},
        {"heads": [["x" * 1000] * 900]},
    ],
)
def test_a_long_value_is_cut_in_the_answer(post, problem, fields):
    response = post({"model": "sample"} | fields)
    problem(response, 422, "invalid-request")
    assert len(response.content) < 3000
