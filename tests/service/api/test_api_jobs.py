"""Jobs over HTTP: submitted once, listed in pages, cancelled, tried again; and every refusal."""

import base64
import json

import pytest

from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest
from service.store.statuses import Status

JSON = {"Content-Type": "application/json"}


def test_a_submitted_job_is_accepted_recorded_and_found_at_its_location(client, world):
    response = client.post("/v1/jobs", json={"model": "sample", "schemes": ["nf4"], "sequences": 2})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["queue_position"], job["attempts"], job["report"]) == ("queued", 0, 0, None)
    assert client.get(response.headers["location"]).json() == job
    assert world.store.get(job["id"]).request == JobRequest(model="sample", schemes=("nf4",), sequences=2)


def test_variants_are_kept_as_they_were_asked_for(client, world):
    lossless = {"name": "lossless", "scheme": "int8", "settings": {"threshold": 4}, "keep": ["attn.v"]}
    job = client.post("/v1/jobs", json={"model": "sample", "schemes": ["nf4:block_size=128", "nf4", lossless]}).json()
    blocks = {"name": "nf4-block-size-128", "scheme": "nf4", "settings": {"block_size": 128}, "keep": []}
    assert job["request"]["schemes"] == [blocks, "nf4", lossless]
    assert client.get(f"/v1/jobs/{job['id']}").json()["request"] == job["request"]
    assert world.store.get(job["id"]).request.scheme_names == ("nf4-block-size-128", "nf4", "lossless")
    assert client.post("/v1/jobs", json={"model": "sample", "schemes": job["request"]["schemes"]}).status_code == 202


def test_validate_only_answers_with_the_request_and_submits_nothing(client, world):
    response = client.post("/v1/jobs?validate_only=true", json={"model": "sample", "seed": 7})
    assert response.status_code == 200
    assert JobRequest.model_validate(response.json()) == JobRequest(model="sample", seed=7)
    assert sum(world.store.counts().values()) == 0


def test_validate_only_refuses_what_submitting_would_refuse(client, problem):
    response = client.post("/v1/jobs?validate_only=true", json={"model": "sample", "schemes": ["int3"]})
    problem(response, 422, "invalid-request")


def test_a_calibration_text_is_stored_by_content_and_named_in_the_request(client, world):
    body = {"model": "sample", "calibration": {"name": "mine.txt", "text": "größer"}}
    stored = client.post("/v1/jobs", json=body).json()["request"]["calibration"]
    assert stored["name"] == "mine.txt"
    assert stored["size"] == 8
    with world.artifacts.open(stored["sha256"]) as file:
        assert file.read() == "größer".encode()


def test_files_in_base64_and_labelled_prompts_are_stored_too(client, world):
    content = b"PAR1\x00\xff"
    body = {
        "model": "sample",
        "calibration": {"name": "mine.parquet", "content_base64": base64.b64encode(content).decode()},
        "labelled": {"name": "prompts.jsonl", "text": "{}"},
        "label_threshold": 0.5,
    }
    request = client.post("/v1/jobs", json=body).json()["request"]
    assert request["calibration"]["name"] == "mine.parquet"
    assert world.artifacts.path(request["calibration"]["sha256"]).read_bytes() == content
    assert world.artifacts.path(request["labelled"]["sha256"]).read_bytes() == b"{}"


def test_the_same_idempotency_key_submits_one_job(client, world, problem):
    header = {"Idempotency-Key": "k1"}
    first = client.post("/v1/jobs", json={"model": "sample"}, headers=header).json()
    again = client.post("/v1/jobs", json={"model": "sample"}, headers=header)
    assert again.status_code == 202
    assert again.json()["id"] == first["id"]
    other = client.post("/v1/jobs", json={"model": "sample", "seed": 1}, headers=header)
    problem(other, 409, "idempotency-key-reused")
    assert sum(world.store.counts().values()) == 1


def test_every_job_is_listed_once_newest_first_whatever_the_page_size(client, world):
    ids = [world.submit().id for _ in range(5)]
    seen, token = [], None
    while True:
        page = client.get("/v1/jobs", params={"page_size": 2, **({"page_token": token} if token else {})}).json()
        assert len(page["jobs"]) <= 2
        seen += [job["id"] for job in page["jobs"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert seen == sorted(ids, reverse=True)


def test_jobs_are_filtered_by_status_and_model(client, world):
    kept = world.submit("/models/a")
    world.submit("/models/b")
    ended = world.submit("/models/a")
    world.store.cancel(ended.id)
    page = client.get("/v1/jobs", params={"status": "queued", "model": "/models/a"}).json()
    assert [job["id"] for job in page["jobs"]] == [kept.id]


def test_a_running_job_shows_its_progress_and_a_failed_one_its_error(client, world):
    job = world.submit()
    claim = world.claim(job)
    line = Progress(stage="sweep", done=2, total=6, elapsed_seconds=1.5)
    world.store.progress(claim, line)
    shown = client.get(f"/v1/jobs/{job.id}").json()
    assert (shown["status"], shown["attempts"], shown["queue_position"]) == ("running", 1, None)
    assert Progress.model_validate(shown["progress"]) == line
    failed = Failed(code="bad-model", message="no config.json", bad_input=True)
    world.store.fail(claim, failed)
    shown = client.get(f"/v1/jobs/{job.id}").json()
    assert Failed.model_validate(shown["error"]) == failed
    assert shown["finished_at"] is not None


def test_a_queued_job_is_cancelled_at_once_and_can_be_queued_again(client, world, problem):
    job = world.submit()
    cancelled = client.post(f"/v1/jobs/{job.id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    problem(client.post(f"/v1/jobs/{job.id}/cancel"), 409, "transition-not-allowed")
    retried = client.post(f"/v1/jobs/{job.id}/retry")
    assert (retried.status_code, retried.json()["status"]) == (202, "queued")
    assert world.store.get(job.id).status is Status.queued


def test_a_running_job_is_asked_to_stop(client, world, problem):
    job = world.submit()
    world.claim(job)
    answer = client.post(f"/v1/jobs/{job.id}/cancel")
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["cancel_requested"]) == ("running", True)
    problem(client.post(f"/v1/jobs/{job.id}/retry"), 409, "transition-not-allowed")


@pytest.mark.parametrize(
    ("body", "field", "value", "allowed"),
    [
        ({}, "model", None, "it is required"),
        ({"model": ""}, "model", "", "at least 1 character"),
        ({"model": "./here"}, "model", "./here", "absolute path"),
        ({"model": "a\x00b"}, "model", "a\x00b", "absolute path"),
        ({"model": "sample", "schemes": ["int3"]}, "schemes.0.scheme", "int3", "Available: int8, nf4"),
        ({"model": "sample", "schemes": ["int8", "int8"]}, "schemes", '["int8", "int8"]', "have the same name 'int8'"),
        ({"model": "sample", "schemes": ["nf4:"]}, "schemes.0", "nf4:", "[LABEL=]SCHEME[:KEY=VALUE,...]"),
        ({"model": "sample", "schemes": ["int8=nf4"]}, "schemes.0.name", "int8", "another scheme"),
        (
            {"model": "sample", "schemes": [{"scheme": "nf4", "settings": {"block_size": 65}}]},
            "schemes.0.settings",
            '{"block_size": 65}',
            "nf4: block_size=65 is not allowed; allowed: 32, 64, 128",
        ),
        ({"model": "sample", "sequences": 0}, "sequences", 0, "1 or more"),
        ({"model": "sample", "sequences": 10**30}, "sequences", 10**30, "at most 1,000,000"),
        ({"model": "sample", "sequences": "many"}, "sequences", "many", "a whole number"),
        ({"model": "sample", "sequences": True}, "sequences", True, "a number, not true or false"),
        ({"model": "sample", "int8_threshold": False}, "int8_threshold", False, "a number, not true or false"),
        ({"model": "sample", "massive": {"ratio": True}}, "massive.ratio", True, "a number, not true or false"),
        ({"model": "sample", "schemes": "int8"}, "schemes", "int8", "a list"),
        ({"model": "sample", "heads": 3}, "heads", 3, "an object"),
        ({"model": "sample", "color": "red"}, "color", "red", "no field has this name"),
        ({"model": "sample", "calibration": {"name": "a", "text": ""}}, "calibration.text", "", "a file with content"),
        (
            {"model": "sample", "calibration": {"name": "a", "content_base64": "a-"}},
            "calibration.content_base64",
            "a-",
            "standard base64",
        ),
        ({"model": "sample", "labelled": {"name": "a", "text": " "}}, "labelled.text", " ", "a file with content"),
        ({"model": "sample", "bos": "maybe"}, "bos", "maybe", "'auto', 'always' or 'never'"),
        ({"model": "sample", "label_threshold": 1.0}, "label_threshold", 1.0, "only with labeled prompts"),
        ({"model": "sample", "llm_int8": {"magnitude": -1}}, "llm_int8.magnitude", -1, "a number above 0"),
    ],
)
def test_a_refused_value_is_named_with_what_is_allowed(client, world, problem, body, field, value, allowed):
    document = problem(client.post("/v1/jobs", json=body), 422, "invalid-request")
    [error] = [error for error in document["errors"] if error["field"] == field]
    assert error["value"] == value
    assert allowed in error["allowed"]
    assert field in document["detail"]
    assert sum(world.store.counts().values()) == 0


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        (
            {"model": "sample", "text_field": "a\x00b"},
            "text_field: 'a\\x00b' is not allowed; allowed: 1 to 255 characters without control characters",
        ),
        ({"model": "a\x00b"}, "model: 'a\\x00b' has a control character; allowed: 'sample', the absolute path of a"),
        ({"calibration": {"name": "a", "text": ""}}, "calibration.text: '' is empty; allowed: a file with content"),
        ({"labelled": {"name": "a", "text": " "}}, "labelled.text: ' ' is empty; allowed: a file with content"),
    ],
)
def test_the_detail_says_what_is_wrong_with_a_value(client, problem, fields, detail):
    document = problem(client.post("/v1/jobs", json={"model": "sample"} | fields), 422, "invalid-request")
    assert document["detail"].startswith(detail)


def test_a_refused_list_is_shown_as_json(client, problem):
    document = problem(
        client.post("/v1/jobs", json={"model": "sample", "schemes": ["nf4"] * 2}), 422, "invalid-request"
    )
    assert document["errors"][0]["value"] == '["nf4", "nf4"]'
    assert document["detail"] == (
        "schemes: nf4 and nf4 have the same name 'nf4'. Give one of them another label: LABEL=nf4"
    )


@pytest.mark.parametrize("half", ["\\ud800", "NaN", "1e999"])
def test_values_that_json_cannot_carry_back_are_refused_all_the_same(client, problem, half):
    value = half if half[0] != "\\" else f'"{half}"'
    response = client.post(
        "/v1/jobs", content=f'{{"model": {value}}}'.encode(), headers={"Content-Type": "application/json"}
    )
    problem(response, 422, "invalid-request")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ('"calibration": {"name": "a", "text": "so far good \\ud800"}', "calibration.text"),
        ('"labelled": {"name": "a", "text": "\\udc00\\ud800"}', "labelled.text"),
        ('"labelled": {"name": "a\\ud800", "text": "{}"}', "labelled.name"),
        ('"text_field": "\\ud800"', "text_field"),
    ],
)
def test_half_a_surrogate_pair_is_refused_by_the_name_of_its_field(client, world, problem, fields, named):
    body = f'{{"model": "sample", {fields}}}'.encode()
    document = problem(client.post("/v1/jobs", content=body, headers=JSON), 422, "invalid-request")
    assert [error["field"] for error in document["errors"]] == [named]
    assert sum(world.store.counts().values()) == 0


@pytest.mark.parametrize(
    ("body", "doubled"),
    [
        ('{"model": "sample", "seed": 1, "seed": 1}', "'seed'"),
        ('{"model": "sample", "heads": {"relative_peak": 1, "relative_peak": 2}}', "'relative_peak'"),
        ('{"model": "sample", "\\ud800": 1, "\\ud800": 2}', "'\\ud800'"),
    ],
)
def test_a_doubled_key_is_refused(client, world, problem, body, doubled):
    document = problem(client.post("/v1/jobs", content=body.encode(), headers=JSON), 400, "malformed-request")
    assert f"the key {doubled} occurs twice in one object" in document["detail"]
    assert sum(world.store.counts().values()) == 0


@pytest.mark.parametrize("body", [{"model": "x" * 2000}, {"model": "sample", "sequences": 10**2000}])
def test_a_long_value_is_cut_before_it_is_sent_back(client, problem, body):
    document = problem(client.post("/v1/jobs", json=body), 422, "invalid-request")
    assert len(document["errors"][0]["value"]) < 300


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 3000])
def test_a_body_that_is_no_json_is_refused(client, problem, body):
    problem(
        client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), 400, "malformed-request"
    )


@pytest.mark.parametrize("sent", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "x" * 5000}])
def test_a_body_that_is_not_called_json_is_refused(client, world, problem, sent):
    response = client.post("/v1/jobs", content=b'{"model": "sample"}', headers=sent)
    document = problem(response, 415, "unsupported-media-type")
    assert sent.get("Content-Type", "''")[:20] in document["detail"]
    assert "application/json" in document["detail"]
    assert len(document["detail"]) < 300
    assert world.store.list().jobs == []


def test_an_announced_body_over_the_limit_is_refused(client, problem):
    problem(client.post("/v1/jobs", json={"model": "x" * 5000}), 413, "body-too-large")


def test_a_streamed_body_over_the_limit_is_refused(client, problem):
    def pieces():
        yield b'{"model": "'
        for _ in range(100):
            yield b"x" * 100

    response = client.post("/v1/jobs", content=pieces(), headers={"Content-Type": "application/json"})
    assert "content-length" not in response.request.headers
    problem(response, 413, "body-too-large")


def test_a_body_of_exactly_the_limit_is_read(client, world):
    body = {"model": "sample", "calibration": {"name": "a", "text": ""}}
    body["calibration"]["text"] = "x" * (world.settings.max_upload_bytes - len(json.dumps(body)))
    content = json.dumps(body).encode()
    assert len(content) == world.settings.max_upload_bytes
    assert client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"}).status_code == 202


@pytest.mark.parametrize(
    "parameters",
    [
        {"page_size": 0},
        {"page_size": 10**9},
        {"page_size": 10**40},
        {"page_size": "all"},
        {"page_token": "not-a-token"},
        {"page_token": "a\x00b"},
        {"page_token": "x" * 10_000},
        {"status": "resting"},
        {"model": "a\x00b"},
        {"staus": "failed"},
    ],
)
def test_a_list_with_a_bad_parameter_is_refused_by_name(client, problem, parameters):
    document = problem(client.get("/v1/jobs", params=parameters), 422, "invalid-request")
    assert [error["field"] for error in document["errors"]] == list(parameters)


@pytest.mark.parametrize("call", ["/v1/jobs/a", "/v1/reports/a/report.html", "/v1/schemes"])
def test_a_parameter_that_a_call_does_not_take_is_refused(client, problem, call):
    document = problem(client.get(call, params={"verbose": "1"}), 422, "invalid-request")
    assert document["detail"] == "verbose: the call has no such parameter; allowed: no parameters"


def test_a_long_parameter_is_cut_before_it_is_sent_back(client, problem):
    document = problem(client.get("/v1/jobs", params={"n" * 3000: "v" * 3000}), 422, "invalid-request")
    assert len(document["detail"]) < 700


def test_every_parameter_that_the_description_names_is_taken(world, client):
    paths = world.app.openapi()["paths"]
    named = [
        (path.replace("{job_id}", "a").replace("{name}", "sites").replace("{form}", "csv"), parameter["name"])
        for path, calls in paths.items()
        for parameter in calls.get("get", {}).get("parameters", [])
        if parameter["in"] == "query"
    ]
    assert len(named) > 5
    for path, name in named:
        assert "there is no such parameter" not in client.get(path, params={name: "1"}).text, (path, name)


@pytest.mark.parametrize("key", ["", "x" * 300, "tab\tkey"])
def test_a_bad_idempotency_key_is_refused(client, world, problem, key):
    response = client.post("/v1/jobs", json={"model": "sample"}, headers={"Idempotency-Key": key})
    document = problem(response, 422, "invalid-request")
    assert document["errors"][0]["field"].lower() == "idempotency-key"
    assert sum(world.store.counts().values()) == 0


@pytest.mark.parametrize("job_id", ["0" * 32, "%00", "..%2f..", "a" * 500, "%F0%9F%92%A5", "a'%20OR%201=1"])
def test_an_unknown_job_is_not_found(client, problem, job_id):
    problem(client.get(f"/v1/jobs/{job_id}"), 404, "not-found")
    problem(client.post(f"/v1/jobs/{job_id}/cancel"), 404, "not-found")
