"""A stored job that this version cannot read: lists leave it out, and the job itself says what is wrong."""

import pytest
from sqlalchemy import update

from service.scheduler.rounds import run_round
from service.store.statuses import Status
from service.store.tables import JobRow
from service.store.transactions import Transactions


@pytest.fixture
def damaged(world):
    """Put a job with another one before and after it into the queue; return the ids of the three."""
    ids = [world.submit().id for _ in range(3)]
    change(world, ids[1], request={"model": "sample", "of_a_later_version": 1})
    return ids


def change(world, job_id, **values):
    with Transactions(world.store._reader)._write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))


@pytest.mark.parametrize(
    "document",
    [{"request": {"model": "sample", "of_a_later_version": 1}}, {"request": []}, {"error": {"code": "x"}},
     {"progress": {"stage": "tea"}}],
)  # fmt: skip
def test_lists_have_the_others_and_the_job_says_what_is_wrong(world, client, problem, document):
    ids = sorted(world.submit().id for _ in range(3))
    change(world, ids[1], **document)
    assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [ids[2], ids[0]]
    said = problem(client.get(f"/v1/jobs/{ids[1]}"), 409, "job-unreadable")["detail"]
    assert ids[1] in said
    assert "DELETE /v1/jobs/" in said
    assert client.delete(f"/v1/jobs/{ids[1]}").status_code == 204


def test_pages_go_on_past_it(client, damaged):
    seen, token = [], None
    for _ in damaged:
        page = client.get(
            "/v1/jobs", params={"page_size": 1, "page_token": token} if token else {"page_size": 1}
        ).json()
        seen += [job["id"] for job in page["jobs"]]
        token = page["next_page_token"]
    assert token is None
    assert sorted(seen) == sorted({damaged[0], damaged[2]})


def test_its_log_line_comes_once(client, damaged, caplog):
    for _ in range(3):
        client.get("/v1/jobs")
    assert sum(damaged[1] in record.getMessage() for record in caplog.records) == 1


def test_its_key_is_said_to_be_of_a_job_that_cannot_be_read(world, client, problem):
    key = {"Idempotency-Key": "k"}
    job_id = client.post("/v1/jobs", json={"model": "sample"}, headers=key).json()["id"]
    change(world, job_id, request={})
    problem(client.post("/v1/jobs", json={"model": "sample"}, headers=key), 409, "job-unreadable")


def test_scheduler_and_garbage_collection_go_on(world, damaged):
    sent = []
    run_round(world.store, lambda job_id, *_: sent.append(job_id), dict, max_attempts=3)
    assert sorted(sent) == sorted(damaged)
    kept, _ = world.artifacts.put(b"kept")
    change(world, damaged[0], request={"model": "sample", "calibration": {"name": "a", "sha256": kept, "size": 4}})
    change(world, damaged[1], request=["calibration"])
    world.stores.garbage.collect()
    assert world.stores.removals.expire(1) == 0


def test_workers_take_the_others(world, damaged):
    claimed = [world.store.next_claim("worker", 60, ("small",)) for _ in range(3)]
    assert {claim.job_id for claim in claimed if claim} == {damaged[0], damaged[2]}
    assert world.store.status(damaged[1]) is Status.failed
