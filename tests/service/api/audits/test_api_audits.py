"""Audits over HTTP: made, listed in pages, changed key by key, replaced, paused, run, removed; and every refusal."""

import hashlib
from pathlib import Path

import pytest

from service.contracts.audits.audit import AuditDefinition, AuditRun
from service.contracts.report import Report
from service.contracts.request import JobRequest
from service.store import audits
from service.store.audits import AuditStore

TEMPLATE = Path(__file__).parents[3] / "workers" / "reporting" / "stored" / "schema_1_0" / "report.json"
BODY = {"name": "shipping", "model": "org/name@main"}


@pytest.fixture
def pinned(world):
    """The id of a stored report, measured on a calibration file."""
    sha256, size = world.artifacts.put(b"Guten Tag.")
    file = {"name": "c.txt", "sha256": sha256, "size": size}
    job = world.store.submit(JobRequest(model="sample", calibration=file))
    world.finish(job, {"report.json": TEMPLATE.read_bytes()})
    return job.id


@pytest.fixture
def like_pinned():
    """The body of an audit whose reports are like the stored one."""
    analysis = Report.model_validate_json(TEMPLATE.read_bytes()).analysis.model_dump(mode="json", exclude_unset=True)
    return {**analysis, **BODY, "calibration": {"name": "c.txt", "text": "Guten Tag."}}


def test_an_audit_is_made_with_its_files_and_found_at_its_location(client, world):
    body = {
        **BODY,
        "schemes": ["nf4", "int8"],
        "sequences": 32,
        "calibration": {"name": "c.txt", "text": "größer"},
        "labelled": {"name": "l.jsonl", "text": "{}"},
        "label_threshold": 0.5,
        "schedule": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "baseline": "median:5",
        "limits": ["int8.perplexity_ratio <= 1.01"],
        "llm_int8": {"magnitude": 5},
    }
    response = client.post("/v1/audits", json=body)
    assert response.status_code == 201
    audit = response.json()
    assert response.headers["location"] == "/v1/audits/shipping"
    assert client.get("/v1/audits/shipping").json() == client.get(f"/v1/audits/{audit['id']}").json() == audit
    assert (audit["name"], audit["paused"], audit["last_run"], audit["baseline_cautions"]) == (
        "shipping",
        False,
        None,
        [],
    )
    assert audit["next_run_at"].endswith(("T01:00:00Z", "T02:00:00Z"))
    stored = audit["definition"]["calibration"]
    assert (stored["name"], stored["size"]) == ("c.txt", 8)
    assert world.artifacts.path(stored["sha256"]).read_bytes() == "größer".encode()
    assert world.artifacts.path(audit["definition"]["labelled"]["sha256"]).read_bytes() == b"{}"
    files = {name: audit["definition"][name] for name in ("calibration", "labelled")}
    assert AuditDefinition.model_validate(audit["definition"]) == AuditDefinition.model_validate({**body, **files})


def test_validate_only_answers_with_the_definition_and_stores_nothing(client, world, problem):
    body = {**BODY, "calibration": {"name": "c.txt", "text": "x"}}
    for method, path in (("POST", "/v1/audits"), ("PUT", "/v1/audits/shipping")):
        response = client.request(method, f"{path}?validate_only=true", json=body)
        assert response.status_code == 200
        assert response.json()["calibration"]["sha256"] == hashlib.sha256(b"x").hexdigest()
    assert client.get("/v1/audits").json() == {"audits": [], "next_page_token": None}
    assert not list(world.settings.artifacts.rglob("*"))
    client.post("/v1/audits", json=BODY)
    problem(client.post("/v1/audits?validate_only=true", json=BODY), 409, "conflict")
    changed = client.patch("/v1/audits/shipping?validate_only=true", json={"seed": 5}).json()
    assert changed["seed"] == 5
    assert client.get("/v1/audits/shipping").json()["definition"]["seed"] == 0


def test_audits_are_listed_in_pages_by_name(client):
    for name in ("c", "a", "b"):
        client.post("/v1/audits", json={**BODY, "name": name})
    first = client.get("/v1/audits?page_size=2").json()
    assert [audit["name"] for audit in first["audits"]] == ["a", "b"]
    rest = client.get("/v1/audits", params={"page_token": first["next_page_token"]}).json()
    assert ([audit["name"] for audit in rest["audits"]], rest["next_page_token"]) == (["c"], None)


def test_a_patch_changes_the_keys_that_it_names(client, world):
    calibration = {"name": "c.txt", "text": "x"}
    body = {**BODY, "seed": 3, "calibration": calibration, "limits": ["block.abs_max <= 5"], "schedule": "0 3 * * *"}
    before = client.post("/v1/audits", json=body).json()["definition"]
    patch = {"llm_int8": {"magnitude": 5}, "limits": ["block.abs_max <= 6"], "schedule": None}
    client.patch("/v1/audits/shipping", json={"llm_int8": {"layers_fraction": 0.5}})
    after = client.patch("/v1/audits/shipping", json=patch).json()["definition"]
    thresholds = {**before["llm_int8"], "magnitude": 5.0, "layers_fraction": 0.5}
    assert after == {**before, "llm_int8": thresholds, "limits": ["block.abs_max <= 6"], "schedule": None}
    assert client.patch("/v1/audits/shipping", json={"calibration": None}).json()["definition"]["calibration"] is None
    sent = {"labelled": {"name": "l.jsonl", "text": "{}"}, "model": {"newest_in": "/models"}, "name": "renamed"}
    after = client.patch("/v1/audits/shipping", json=sent).json()["definition"]
    assert world.artifacts.path(after["labelled"]["sha256"]).read_bytes() == b"{}"
    assert (after["model"], after["name"]) == ({"newest_in": "/models"}, "renamed")
    assert client.get("/v1/audits/renamed").json()["definition"] == after
    assert client.patch("/v1/audits/renamed", json={"label_threshold": 0.5}).status_code == 200


def test_a_patch_is_merged_with_what_another_changed_in_the_meantime(client, monkeypatch):
    client.post("/v1/audits", json=BODY)
    update, others = AuditStore.update, [{"seed": 7}, {"sequences": 9}]

    def update_late(store, *of, **named):
        if others:
            assert client.patch("/v1/audits/shipping", json=others.pop()).status_code == 200
        return update(store, *of, **named)

    monkeypatch.setattr(AuditStore, "update", update_late)
    after = client.patch("/v1/audits/shipping", json={"limits": ["block.abs_max <= 6"]}).json()["definition"]
    assert (after["seed"], after["sequences"], after["limits"]) == (7, 9, ["block.abs_max <= 6"])
    assert client.get("/v1/audits/shipping").json()["definition"] == after


def test_a_patch_that_others_always_overtake_is_refused(client, problem, monkeypatch):
    client.post("/v1/audits", json=BODY)
    update, seeds = AuditStore.update, iter(range(1, 100))

    def update_late(store, name, definition, **named):
        present = store.get("shipping").definition
        update(store, "shipping", present.model_copy(update={"seed": next(seeds)}))
        return update(store, name, definition, **named)

    monkeypatch.setattr(AuditStore, "update", update_late)
    document = problem(client.patch("/v1/audits/shipping", json={"sequences": 9}), 409, "conflict")
    assert "was changed in the meantime" in document["detail"]
    assert client.get("/v1/audits/shipping").json()["definition"]["sequences"] != 9


def test_a_number_of_runs_wait_at_most(client, problem, monkeypatch):
    monkeypatch.setattr(audits, "MOST_WAITING", 2)
    client.post("/v1/audits", json=BODY)
    assert [client.post("/v1/audits/shipping/runs").status_code for _ in range(2)] == [202, 202]
    document = problem(client.post("/v1/audits/shipping/runs"), 429, "limit-reached")
    assert "waiting runs: 2 of this audit wait already" in document["detail"]
    assert len(client.get("/v1/audits/shipping/runs").json()["runs"]) == 2


def test_put_makes_an_audit_or_replaces_all_of_it(client, problem):
    first = client.put("/v1/audits/shipping", json={**BODY, "seed": 3, "limits": ["block.abs_max <= 5"]})
    assert (first.status_code, first.headers["location"]) == (201, "/v1/audits/shipping")
    second = client.put("/v1/audits/shipping", json={**BODY, "sequences": 8})
    assert second.status_code == 200
    assert second.json()["id"] == first.json()["id"]
    definition = second.json()["definition"]
    assert (definition["seed"], definition["sequences"], definition["limits"]) == (0, 8, [])
    document = problem(client.put("/v1/audits/other", json=BODY), 422, "invalid-request")
    assert document["detail"] == "name: 'shipping' is not the name in the path; allowed: 'other'"


def test_an_audit_is_paused_with_a_reason_and_resumed(client, problem):
    client.post("/v1/audits", json={**BODY, "schedule": "0 3 * * *"})
    paused = client.post("/v1/audits/shipping/pause", json={"reason": "new data"}).json()
    assert (paused["paused"], paused["pause_reason"], paused["next_run_at"]) == (True, "new data", None)
    resumed = client.post("/v1/audits/shipping/resume").json()
    assert (resumed["paused"], resumed["pause_reason"]) == (False, None)
    assert resumed["next_run_at"]
    assert client.post("/v1/audits/shipping/pause").json()["pause_reason"] == "paused by request"
    problem(client.post("/v1/audits/shipping/pause", json={"reason": ""}), 422, "invalid-request")
    problem(client.post("/v1/audits/shipping/pause", json={"why": "x"}), 422, "invalid-request")


def test_runs_are_asked_for_and_listed_newest_first(client, problem):
    client.post("/v1/audits", json=BODY)
    client.post("/v1/audits", json={**BODY, "name": "other"})
    responses = [client.post("/v1/audits/shipping/runs") for _ in range(3)]
    assert [response.status_code for response in responses] == [202] * 3
    ids = [response.json()["id"] for response in responses]
    assert responses[0].headers["location"] == f"/v1/audits/shipping/runs/{ids[0]}"
    run = AuditRun.model_validate(client.get(f"/v1/audits/shipping/runs/{ids[0]}").json())
    assert (run.trigger, run.verdict, run.job_id, run.findings) == ("request", None, None, ())
    page = client.get("/v1/audits/shipping/runs?page_size=2").json()
    assert [run["id"] for run in page["runs"]] == ids[:0:-1]
    page = client.get("/v1/audits/shipping/runs", params={"page_token": page["next_page_token"]}).json()
    assert ([run["id"] for run in page["runs"]], page["next_page_token"]) == ([ids[0]], None)
    assert client.get("/v1/audits/shipping").json()["last_run"]["id"] == ids[-1]
    document = problem(client.get(f"/v1/audits/other/runs/{ids[0]}"), 404, "not-found")
    assert document["detail"] == f"run: {ids[0]!r} is not the id of a run of the audit 'other'"


def test_a_removed_audit_is_gone_with_its_runs(client, problem):
    client.post("/v1/audits", json=BODY)
    run = client.post("/v1/audits/shipping/runs").json()["id"]
    response = client.delete("/v1/audits/shipping")
    assert (response.status_code, response.content) == (204, b"")
    for path in ("", "/runs", f"/runs/{run}"):
        problem(client.get(f"/v1/audits/shipping{path}"), 404, "not-found")
    problem(client.delete("/v1/audits/shipping"), 404, "not-found")


@pytest.mark.parametrize(
    ("keys", "field", "detail"),
    [
        ({"limts": []}, "limts", "limts: no field has this name. Did you mean 'limits'?"),
        ({"name": "A b"}, "name", "name: 'A b' is not allowed; allowed: 1 to 63 of a-z, 0-9 and -, first a letter or "),
        ({"name": "0" * 32}, "name", "name: '0000"),
        ({"model": "../x"}, "model", "model: '../x' is a relative path; allowed: 'sample', the absolute path of a "),
        (
            {"model": {"newest_in": "x"}},
            "model.newest_in",
            "model.newest_in: 'x' is not allowed; allowed: the absolute",
        ),
        ({"model": {"newest": "x"}}, "model", 'model: {"newest": "x"} is not allowed; allowed: text, such as '),
        ({"schedule": "0 25 * * *"}, "schedule", "schedule: '0 25 * * *' has no valid hour; allowed: five fields, "),
        ({"schedule": "0 0 31 2 *"}, "schedule", "schedule: '0 0 31 2 *' would never fire, since no date fits it; "),
        (
            {"timezone": "Europe/Berln"},
            "timezone",
            'timezone: \'Europe/Berln\' is not allowed; allowed: an IANA time zone, such as "UTC" or "Europe/Berlin"',
        ),
        (
            {"limits": ["int8.kl <= 2"]},
            "limits",
            "limits: 'int8.kl <= 2' is not a limit: no report has a figure 'int8.kl'; allowed: figures of a report; "
            "the nearest are int8.delta_p, int8.kl_divergence, int8.perplexity",
        ),
        (
            {"limits": ["nf4.perplexity <= 2"], "schemes": ["int8"]},
            "limits",
            "limits: 'nf4.perplexity <= 2' is not a limit: 'nf4' is no scheme of the job; allowed: int8",
        ),
        ({"baseline": "best"}, "baseline", "baseline: 'best' is not allowed; allowed: last-passing, median:K with "),
        ({"baseline": f"report:{'f' * 32}"}, "baseline", "baseline: 'report:ffff"),
        ({"label_threshold": 0.5}, "label_threshold", "label_threshold: 0.5 is given without labeled prompts; "),
        ({"calibration": {"name": "x.txt", "text": " "}}, "calibration.text", "calibration.text: ' ' is empty; "),
        ({"reruns": 17}, "reruns", "reruns: 17 is not allowed; allowed: at most 16"),
    ],
)
def test_what_is_not_allowed_is_refused_by_every_way_in(client, problem, keys, field, detail):
    client.post("/v1/audits", json={**BODY, "name": "present"})
    for method, path, body in (
        ("POST", "/v1/audits", {**BODY, **keys}),
        ("POST", "/v1/audits?validate_only=true", {**BODY, **keys}),
        ("PUT", "/v1/audits/present", {**BODY, "name": "present", **keys}),
        ("PATCH", "/v1/audits/present", keys),
    ):
        document = problem(client.request(method, path, json=body), 422, "invalid-request")
        assert document["detail"].startswith(detail)
        assert document["errors"][0]["field"] == field
    [audit] = client.get("/v1/audits").json()["audits"]
    assert audit["definition"] == AuditDefinition.model_validate({**BODY, "name": "present"}).model_dump(mode="json")


def test_a_pinned_baseline_that_does_not_fit_is_refused_unless_forced_and_then_marked(
    client, problem, pinned, like_pinned
):
    body = {**like_pinned, "baseline": f"report:{pinned}"}
    fitting = client.post("/v1/audits", json=body)
    assert (fitting.status_code, fitting.json()["baseline_cautions"]) == (201, [])
    other = {**body, "sequences": 5, "calibration": {"name": "c.txt", "text": "Gute Nacht."}, "name": "other"}
    del other["schemes"]
    cautions = [
        f"Its sequences is {like_pinned['sequences']}; the audit's is 5, so that the calibration texts differ.",
        "Its calibration text is the file c.txt; the audit's file has other content, so that the calibration texts "
        "differ.",
    ]
    document = problem(client.post("/v1/audits", json=other), 422, "invalid-request")
    assert document["detail"] == (
        f"baseline: 'report:{pinned}' does not fit: {' '.join(cautions).rstrip('.')}; allowed: a report of these "
        "settings, or this one where you insist (force)"
    )
    for method, path in (("POST", "/v1/audits"), ("PUT", "/v1/audits/other")):
        assert client.request(method, f"{path}?force=true", json=other).json()["baseline_cautions"] == cautions
    assert client.get("/v1/audits/other").json()["baseline_cautions"] == cautions
    problem(client.patch("/v1/audits/other", json={"seed": 5}), 422, "invalid-request")
    for method, sent in (("PUT", {**other, "limits": ["int8.perplexity <= 9"]}), ("PATCH", {"limits": []})):
        assert client.request(method, "/v1/audits/other?validate_only=true", json=sent).status_code == 200
        assert client.request(method, "/v1/audits/other", json=sent).json()["baseline_cautions"] == cautions
    assert client.patch("/v1/audits/other?force=true", json={"seed": 5}).json()["baseline_cautions"][-1] == cautions[-1]


@pytest.mark.parametrize("name", ["none", "A", "-a", "a" * 64, "%00"])
def test_what_is_no_audit_is_not_found(client, problem, name):
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/runs"), ("GET", "/runs")
    ):  # fmt: skip
        document = problem(client.request(method, f"/v1/audits/{name}{path}"), 404, "not-found")
        assert "is not the name or id of an audit" in document["detail"]
    problem(client.patch(f"/v1/audits/{name}", json={}), 404, "not-found")


def test_bodies_are_read_strictly(client, problem):
    client.post("/v1/audits", json=BODY)
    twice = '{"name": "b", "model": "sample", "model": "sample"}'
    for method, path in (("POST", "/v1/audits"), ("PATCH", "/v1/audits/shipping")):
        response = client.request(method, path, content=twice, headers={"Content-Type": "application/json"})
        assert "'model' occurs twice" in problem(response, 400, "malformed-request")["detail"]
    document = problem(client.patch("/v1/audits/shipping", json=[]), 422, "invalid-request")
    assert document["errors"][0]["allowed"] == "an object"
    problem(client.get("/v1/audits?page=1"), 422, "invalid-request")
    problem(client.get("/v1/audits?page_token=%2E%2E"), 422, "invalid-request")
    problem(client.get("/v1/audits/shipping/runs/x"), 404, "not-found")


def test_calls_are_described_and_need_a_key(client, stranger):
    paths = client.get("/openapi.json").json()["paths"]
    described = {path: sorted(paths[path]) for path in paths if path.startswith("/v1/audits")}
    assert (
        described.items()
        >= {
            "/v1/audits": ["get", "post"],
            "/v1/audits/{audit}": ["delete", "get", "patch", "put"],
            "/v1/audits/{audit}/pause": ["post"],
            "/v1/audits/{audit}/resume": ["post"],
            "/v1/audits/{audit}/runs": ["get", "post"],
            "/v1/audits/{audit}/runs/{run_id}": ["get"],
        }.items()
    )
    assert all(call["description"] for path in described for call in paths[path].values())
    assert stranger.get("/v1/audits").status_code == stranger.post("/v1/audits", json=BODY).status_code == 401
