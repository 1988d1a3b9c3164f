"""What another owner's key gets of a resource: on every route of the app, as if it were not there."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from judged import HOOK, KL, end_run
from starlette.testclient import TestClient
from test_api_keys import routes

from service.store.database import make_engine
from service.store.hosts.clock import utcnow
from service.store.owners.access import Access

STORED = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0"
FILE = {"name": "c.txt", "text": "Guten Tag."}
AUDIT = {
    "name": "shipping",
    "model": "org/name@main",
    "limits": [KL],
    "notify": [{"webhook": HOOK}],
    "calibration": FILE,
}
MAKING = {("POST", "/v1/jobs"), ("POST", "/v1/audits"), ("POST", "/v1/files"), ("POST", "/v1/keys")}
"""Routes that make something: `test_two_owners_use_the_same_names`."""
BODIES = {
    "/v1/alerts/{alert_id}/acknowledge": {"author": "ben"},
    "/v1/alerts/{alert_id}/dismiss": {"author": "ben", "reason": "x", "until": "2999-01-01T00:00:00Z"},
    "/v1/reports/{job_id}/recommend": {"recommend": {"max_kl": 0.1}},
}
PATCH = {"seed": 5}


class Present:
    """The present time, as a clock."""

    @property
    def now(self):
        return utcnow()


@dataclass(frozen=True)
class Owned:
    """What one owner has."""

    ids: dict[str, str]
    """Values of the parameters of paths."""

    def path(self, path: str) -> str:
        """Fill in a path of the app."""
        form, name = ("svg", "error_growth") if "figures" in path else ("parquet", "sites")
        return path.format(**self.ids, form=form, name=name, key="calibration")

    def query(self, path: str) -> dict[str, list[str]]:
        """Return the parameters that a path needs."""
        if path == "/v1/comparisons":
            return {"report": [self.ids["job_id"]] * 2}
        return {"run": [self.ids["run_id"]] * 2} if path.endswith("/comparison") else {}


@pytest.fixture
def callers(world):
    """Makes a client with a new key."""

    def caller(name, owner=None, scopes=("submit", "read")):
        _, plain = world.stores.keys.create(name, scopes, owner=owner)
        headers = {"Authorization": f"Bearer {plain}"}
        return TestClient(world.app, headers=headers, raise_server_exceptions=False)

    return caller


@pytest.fixture
def ann(callers):
    return callers("ann")


@pytest.fixture
def ben(callers):
    return callers("ben")


@pytest.fixture
def owned(world, ann, files):
    """A resource of Ann's for every parameter of a path."""
    job = ann.post("/v1/jobs", json={"model": "sample", "calibration": FILE}).json()["id"]
    stored = {str(path.relative_to(STORED)): path.read_bytes() for path in STORED.rglob("*") if path.is_file()}
    world.finish(world.store.get(job), files | stored)
    audit = ann.post("/v1/audits", json=AUDIT).json()["id"]
    run = ann.post(f"/v1/audits/{audit}/runs").json()["id"]
    file = ann.post("/v1/files", params={"name": "c.txt"}, content=b"Guten Tag.").json()["id"]
    engine = make_engine(world.settings.database)
    end_run(engine, Present(), "broken", audit=audit)
    engine.dispose()
    (alert,) = ann.get("/v1/alerts").json()["alerts"]
    (delivery,) = ann.get("/v1/audits/shipping/deliveries").json()["deliveries"]
    (webhook,) = ann.get("/v1/audits/shipping/webhooks").json()["webhooks"]
    return Owned(
        {"job_id": job, "audit": audit, "run_id": run, "alert_id": alert["id"], "delivery_id": delivery["id"],
         "webhook_id": webhook["id"], "file_id": file}
    )  # fmt: skip


def ask(caller, method, path, owned):
    """Call a route on what is owned, with a body that is allowed."""
    body = {"PUT": AUDIT, "PATCH": PATCH}.get(method, BODIES.get(path))
    return caller.request(method, owned.path(path), params=owned.query(path), json=body)


def test_every_route_hides_what_another_owns(world, ann, ben, client, owned):
    reading = [path for method, path in routes(world.app) if method == "GET" and not path.startswith("/v1/keys")]
    before = {path: ask(ann, "GET", path, owned) for path in reading}
    named = [*owned.ids.values(), "shipping"]
    for method, path in routes(world.app):
        if (method, path) in MAKING or path.startswith("/v1/keys"):
            continue
        answer = ask(ben, method, path, owned)
        if "{" in path or path == "/v1/comparisons":
            # What is not there can be made by PUT, but not under a name that is not the one in the path.
            assert answer.status_code == (422 if method == "PUT" else 404), (method, path, answer.text)
        else:
            assert answer.status_code == 200, (method, path)
            assert not [one for one in named if one in answer.text and path != "/openapi.json"], path
    assert len(reading) > 20
    for path in reading:
        if not path.endswith("/comparison"):  # the run has no report
            assert before[path].status_code == 200, (path, before[path].text)
        for caller in (ann, client):
            again = ask(caller, "GET", path, owned)
            assert again.status_code == before[path].status_code, path
            assert caller is client or again.content == before[path].content, path


def test_lists_have_what_the_caller_owns_and_administrators_all(world, ann, ben, client, owned):
    bens = ben.post("/v1/jobs", json={"model": "sample"}).json()["id"]
    nobodys = world.submit().id
    seen = {
        caller: {job["id"] for job in client.get("/v1/jobs").json()["jobs"]}
        for caller, client in {"ann": ann, "ben": ben, "admin": client}.items()
    }
    mine = owned.ids["job_id"]
    assert seen == {"ann": {mine}, "ben": {bens}, "admin": {mine, bens, nobodys}}
    assert [job["owner"] for job in ann.get("/v1/jobs").json()["jobs"]] == ["ann"]
    assert client.get(f"/v1/jobs/{nobodys}").json()["owner"] == ""
    assert ben.get(f"/v1/jobs/{nobodys}").status_code == 404


def test_keys_of_one_owner_see_the_same_and_the_revoked_key_s_too(world, callers, ann, owned):
    second = callers("ann-2", owner="ann")
    world.stores.keys.revoke("ann")
    assert ann.get("/v1/jobs").status_code == 401
    assert second.get(f"/v1/jobs/{owned.ids['job_id']}").status_code == 200
    assert second.get("/v1/audits/shipping").status_code == 200


def test_two_owners_use_the_same_names(ann, ben, client, problem):
    header = {"Idempotency-Key": "k"}
    jobs = [one.post("/v1/jobs", json={"model": "sample"}, headers=header).json()["id"] for one in (ann, ben, client)]
    assert len(set(jobs)) == 3
    for one, job in zip((ann, ben, client), jobs, strict=True):
        assert one.post("/v1/jobs", json={"model": "sample"}, headers=header).json()["id"] == job
    problem(ann.post("/v1/jobs", json={"model": "sample", "seed": 1}, headers=header), 409, "idempotency-key-reused")
    body = {"name": "shipping", "model": "org/name@main"}
    audits = [one.post("/v1/audits", json=body).json()["id"] for one in (ann, ben)]
    assert [one.get("/v1/audits/shipping").json()["id"] for one in (ann, ben)] == audits
    problem(ann.post("/v1/audits", json=body), 409, "conflict")
    ambiguous = problem(client.get("/v1/audits/shipping"), 409, "conflict")["detail"]
    assert all(audit in ambiguous for audit in audits)
    assert client.get(f"/v1/audits/{audits[1]}").json()["owner"] == "ben"
    own = client.post("/v1/audits", json=body).json()
    assert client.get("/v1/audits/shipping").json() == own
    pages, token = [], None
    while token is not None or not pages:
        page = client.get("/v1/audits", params={"page_size": 1, **({"page_token": token} if token else {})}).json()
        pages += [audit["id"] for audit in page["audits"]]
        token = page["next_page_token"]
    assert sorted(pages) == sorted([*audits, own["id"]])
    assert [audit["id"] for audit in ben.get("/v1/audits").json()["audits"]] == [audits[1]]


def test_an_administrator_s_audit_leaves_one_of_the_same_name_alone(callers, ann, owned):
    admin = callers("root", scopes=("admin",))
    before = ann.get("/v1/audits/shipping").json()
    own = {"name": "shipping", "model": "org/other"}
    assert admin.put("/v1/audits/shipping", json=own, params={"validate_only": True}).status_code == 200
    assert admin.post("/v1/audits", json=own, params={"validate_only": True}).status_code == 200
    made = admin.put("/v1/audits/shipping", json=own)
    assert (made.status_code, made.json()["owner"]) == (201, "root")
    assert ann.get("/v1/audits/shipping").json() == before
    assert admin.put("/v1/audits/shipping", json=own | {"seed": 4}).json()["id"] == made.json()["id"]
    listed = {own: admin.get("/v1/audits", params={"own": own}).json()["audits"] for own in (True, False)}
    assert [audit["owner"] for audit in listed[True]] == ["root"]
    assert sorted(audit["owner"] for audit in listed[False]) == ["ann", "root"]
    changed = admin.put(f"/v1/audits/{owned.ids['audit']}", json=own | {"seed": 5})  # an id is one audit alone
    assert (changed.status_code, changed.json()["owner"]) == (200, "ann")


def test_an_audit_s_jobs_belong_to_its_owner(world, ann, ben, client, owned):
    world.stores.runs.start(owned.ids["run_id"])
    run = ann.get(f"/v1/audits/shipping/runs/{owned.ids['run_id']}").json()
    assert ann.get(f"/v1/jobs/{run['job_id']}").json()["owner"] == "ann"
    assert ben.get(f"/v1/jobs/{run['job_id']}").status_code == 404
    begun = client.post(f"/v1/audits/{owned.ids['audit']}/calibration", json={"seeds": 2}).json()
    assert {ann.get(f"/v1/jobs/{job['job']}").json()["owner"] for job in begun["jobs"]} == {"ann"}
    assert ann.get("/v1/audits/shipping/calibration").json() == begun


def test_a_report_of_another_owner_is_no_baseline(world, ben, client, owned, problem):
    """Neither where it is pinned nor, insisted on, where a run is judged."""
    body = {"name": "theirs", "model": "org/name", "baseline": f"report:{owned.ids['job_id']}"}
    refused = problem(ben.post("/v1/audits", json=body), 422, "invalid-request")
    assert "There is no such report" in refused["detail"]
    assert "There is no such report" not in client.post("/v1/audits", json=body).text
    forced = ben.post("/v1/audits?force=true", json=body)
    assert forced.json()["baseline_cautions"] == ["There is no such report."]
    assert not world.stores.audits.report_is_baseline(body["baseline"].removeprefix("report:"))
    run = ben.post("/v1/audits/theirs/runs").json()["id"]
    world.stores.runs.start(run)
    job = world.store.get(ben.get(f"/v1/audits/theirs/runs/{run}").json()["job_id"])
    world.finish(job, {"report.json": b"{}"})
    case = world.stores.runs.take(run, 60)
    assert case is not None
    assert case.baseline_hidden


def test_a_report_that_another_s_audit_pins_is_still_a_baseline(world, client, owned):
    """So that its owner cannot delete what an administrator's audit compares with."""
    body = {"name": "pinning", "model": "org/name", "baseline": f"report:{owned.ids['job_id']}"}
    assert client.post("/v1/audits?force=true", json=body).is_success
    assert world.stores.audits.seen_by(Access("ann")).report_is_baseline(owned.ids["job_id"])
