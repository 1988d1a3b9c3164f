"""What a worker finds an audit's model to be, and that it measures nothing that was measured before."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import MEASURE, NAMES, Bench
from sqlalchemy import update
from test_hub import COMMIT, Hub, hub

from service.contracts.audits.resolution import Resolution, Terms
from service.contracts.request import JobRequest
from service.store.database import writer
from service.store.statuses import Status
from service.store.tables import JobRow
from workers.measurement.errors import BadModel
from workers.model_files.resolution import identity, resolve
from workers.samples import MODEL

__all__ = ["hub"]

FETCH = """
name, target = sys.argv[-2:]
pathlib.Path(target).write_text(json.dumps({"path": "/fetched", "source": name, "revision": name.partition("@")[2]}))
say(kind="finished")
"""
UNWANTED = "raise SystemExit('nothing is to be measured')"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the sample checkpoint in a directory of checkpoints."""
    return Path(shutil.copytree(MODEL, tmp_path / "models" / "first"))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a bench with a job of an audit."""
    monkeypatch.setattr("workers.lease.RENEWALS", 240)
    benches = []

    def make(model: str, **terms: Any) -> Bench:
        bench = Bench(tmp_path / str(len(benches)), JobRequest(model=model))
        benches.append(bench)
        with writer(bench.engine).begin() as connection:
            connection.execute(update(JobRow).values(terms=Terms(**terms).model_dump(mode="json")))
        return bench

    yield make
    for bench in benches:
        bench.engine.dispose()


def resolution(bench: Bench) -> Resolution:
    """Return what the job's model was resolved to, as its event says."""
    (event,) = [event for event in bench.store.events(bench.job_id) if event.kind == "resolved"]
    return Resolution.model_validate(event.data)


def measured(bench: Bench) -> Any:
    """Return the request that was measured, which the measurement of the bench writes as its report."""
    return json.loads(bench.artifacts.path(bench.store.artifact(bench.job_id, "report.json").sha256).read_bytes())


def test_a_directory_is_known_by_its_content(made: Any, checkpoint: Path) -> None:
    bench = made(str(checkpoint))
    assert bench.run().status is Status.succeeded
    assert [item.name for item in bench.store.artifacts(bench.job_id)] == NAMES
    first = resolution(bench)
    assert (first.model, first.revision) == (str(checkpoint), None)
    again = made(str(checkpoint), unless_identity=first.identity)
    assert again.run(UNWANTED).status is Status.cancelled
    assert [event.data for event in again.store.events(again.job_id)][-1] == {"reason": "unchanged"}
    assert again.kinds() == ["queued", "started", "resolved", "cancelled"]
    assert again.nothing_is_left()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_file_that_is_read_makes_another_content(checkpoint: Path, file: str) -> None:
    before = resolve(str(checkpoint), "cpu", newest_in=False)
    path = checkpoint / file
    changed = bytearray(path.read_bytes())
    if file == "model.safetensors":
        changed[-1] ^= 1
    else:
        changed += b" "
    path.write_bytes(changed)
    after = resolve(str(checkpoint), "cpu", newest_in=False)
    assert before.content != after.content
    assert (before.fingerprint != after.fingerprint) == (file == "model.safetensors")
    assert resolve(str(checkpoint), "cpu", newest_in=False) == after


@pytest.mark.parametrize("change", [{"seed": 1}, {"schemes": ["int8"]}, {"sequences": 5}, {"calibration": "0" * 64}])
def test_other_settings_or_texts_make_another_identity(change: dict[str, Any]) -> None:
    if "calibration" in change:
        change = {"calibration": {"name": "a.txt", "sha256": change["calibration"], "size": 3}}
    request = {"model": "/m"}
    before = identity("content", "x86_64 AVX2", JobRequest.model_validate(request))
    assert identity("content", "x86_64 AVX2", JobRequest.model_validate(request | change)) != before
    assert identity("content", "x86_64 AVX2", JobRequest.model_validate(request | {"model": "/elsewhere"})) == before
    assert identity("other", "x86_64 AVX2", JobRequest.model_validate(request)) != before


@pytest.mark.parametrize(
    "where",
    [
        "workers.model_files.resolution.version",
        "workers.model_files.resolution.platform.python_version",
        "workers.model_files.resolution.DEFINITIONS_VERSION",
    ],
)
def test_other_software_or_definitions_make_another_identity(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity("content", "x86_64 AVX2", JobRequest(model="/m"))
    monkeypatch.setattr(where, (lambda *_name: "9.9") if where.endswith("version") else "9.9")
    assert identity("content", "x86_64 AVX2", JobRequest(model="/m")) != before


def test_other_hardware_makes_another_identity(made: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is made to compute with the instructions that every processor of the kind has."""
    bench = made(str(checkpoint))
    assert bench.run().status is Status.succeeded
    known = resolution(bench).identity
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    again = made(str(checkpoint), unless_identity=known)
    assert again.run().status is Status.succeeded
    assert resolution(again).identity != known


def test_a_device_that_is_not_there_fails_the_job(made: Any, checkpoint: Path) -> None:
    bench = made(str(checkpoint))
    bench.settings = bench.settings.model_copy(update={"device": "cuda:99"})
    job = bench.run(UNWANTED)
    assert job.error is not None
    assert (job.error.code, job.error.bad_input) == ("bad-request", True)


def test_the_newest_child_is_measured(made: Any, checkpoint: Path) -> None:
    newer = Path(shutil.copytree(MODEL, checkpoint.parent / "a-newer"))
    hidden = Path(shutil.copytree(MODEL, checkpoint.parent / ".half-written"))
    (checkpoint.parent / "zzz.txt").write_text("a file")
    for age, path in enumerate((hidden, newer, checkpoint)):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    bench = made(str(checkpoint.parent), newest_in=True)
    assert bench.run().status is Status.succeeded
    assert resolution(bench).model == str(newer)
    assert measured(bench)["model"] == {"path": str(newer), "source": str(newer), "revision": None, "fingerprint": None}


def test_a_hub_branch_is_resolved_without_a_download_and_measured_at_that_commit(
    made: Any, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    bench = made("org/name@main")
    assert bench.run(MEASURE, hub=FETCH).status is Status.succeeded
    assert any(path.startswith("/api/models/org/name") for path in Hub.asked)
    assert not any("/resolve/" in path for path in Hub.asked)
    found = resolution(bench)
    assert (found.model, found.revision, found.fingerprint) == ("org/name@main", COMMIT, None)
    model = {"path": "/fetched", "source": "org/name@main", "revision": COMMIT, "fingerprint": None}
    assert measured(bench)["model"] == model
    again = made("org/name@main", unless_identity=found.identity)
    assert again.run(UNWANTED, hub=UNWANTED).status is Status.cancelled


@pytest.mark.parametrize(
    ("model", "terms", "said"),
    [
        ("/nowhere", {}, "'/nowhere' is not a directory"),
        ("/nowhere", {"newest_in": True}, "newest_in: '/nowhere' is not a directory"),
        ("EMPTY", {"newest_in": True}, "holds no directory"),
        ("org/none", {}, "'org/none' could not be fetched from the hub"),
        ("org/name@gone", {}, "'org/name@gone' could not be fetched from the hub"),
    ],
)
def test_a_reference_that_resolves_to_nothing_fails_the_job(
    made: Any, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, terms: Any, said: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    empty = tmp_path / "empty"
    empty.mkdir()
    bench = made(str(empty) if model == "EMPTY" else model, **terms)
    error = bench.run(UNWANTED, hub=UNWANTED).error
    assert error is not None
    assert (error.code, error.bad_input) == ("bad-model", True)
    assert said in error.message


def test_a_hub_that_does_not_answer_is_not_the_models_fault(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = made("org/name").run(UNWANTED).error
    assert error is not None
    assert (error.code, error.bad_input) == ("hub-unreachable", False)


def test_pinned_weights_that_are_gone_fail_the_job(made: Any, checkpoint: Path) -> None:
    fingerprint = resolve(str(checkpoint), "cpu", newest_in=False).fingerprint
    assert made(str(checkpoint), fingerprint=fingerprint).run().status is Status.succeeded
    error = made(str(checkpoint), fingerprint=f"sha256:{'0' * 64}").run(UNWANTED).error
    assert error is not None
    assert (error.code, error.bad_input) == ("model-changed", True)


def test_the_resolution_is_written_under_the_fence(made: Any, checkpoint: Path) -> None:
    """A worker that lost its lease after it resolved the model leaves the job to the next, which ends it once."""
    known = made(str(checkpoint))
    known.run()
    bench = made(str(checkpoint), unless_identity=resolution(known).identity)
    claim = bench.store.claim(bench.job_id, 1, "lost", 0.0)
    assert claim is not None
    bench.store.resolved(claim, resolution(known))
    bench.store.requeue_expired(3)
    assert bench.run(UNWANTED).status is Status.cancelled
    assert bench.kinds() == ["queued", "started", "resolved", "requeued", "started", "resolved", "cancelled"]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"config\.json"):
        resolve(str(tmp_path), "cpu", newest_in=False)
