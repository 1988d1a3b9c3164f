"""Submitting a job: which requests are accepted and refused, and what a refused one leaves in the stores."""

import base64
import hashlib
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from pydantic import ValidationError

from service.contracts.files import StoredFile, Upload, format_of
from service.contracts.request import JobRequest, JobSubmission
from service.errors import IdempotencyKeyReused, InvalidRequest, ServiceUnreachable, StoreFailed
from service.store.artifacts import ArtifactStore
from service.store.database import make_engine, upgrade
from service.store.jobs import JobStore
from service.store.statuses import Status
from service.submission import submit, validate

TEXT = Upload(name="calibration.txt", text="Größe und Maß\n")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """An empty job store."""
    engine = make_engine(f"sqlite:///{tmp_path / 'headroom.db'}")
    upgrade(engine)
    yield JobStore(engine)
    engine.dispose()


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    """An empty artifact store."""
    return ArtifactStore(tmp_path / "artifacts")


def nothing_is_left(store: JobStore, tmp_path: Path) -> bool:
    return sum(store.counts().values()) == 0 and not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    "model",
    [
        "sample",
        "/",
        "/models/Llama 3",
        "/models/größe",
        "org/name",
        "org/name@main",
        "a1/b.c_d-e@refs/pr/1",
        "o/n@v1.0",
    ],
)
def test_models_by_name_path_and_hub_id_are_let_in(store: JobStore, artifacts: ArtifactStore, model: str) -> None:
    job = submit(store, artifacts, JobSubmission(model=model))
    assert (job.request, job.status) == (JobRequest(model=model), Status.queued)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("models/a/b", "allowed: 'sample'"),
        ("./model", "relative path"),
        ("../model", "relative path"),
        ("~/model", "relative path"),
        ("gpt2", "allowed: 'sample'"),
        ("org/na me", "allowed: 'sample'"),
        ("org/name@", "allowed: 'sample'"),
        ("org/..", "allowed: 'sample'"),
        ("org/name@../x", "allowed: 'sample'"),
        ("org/a--b", "allowed: 'sample'"),
        ("https://host/org/name", "allowed: 'sample'"),
        ("/models/\x00", "control character"),
        ("sample\n", "control character"),
    ],
)
def test_other_models_are_refused_by_name(
    store: JobStore, artifacts: ArtifactStore, tmp_path: Path, model: str, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        submit(store, artifacts, JobSubmission(model=model, calibration=TEXT))
    assert (caught.value.parameter, caught.value.value) == ("model", model)
    assert repr(model) in str(caught.value)
    assert nothing_is_left(store, tmp_path)


def test_an_upload_is_stored_before_the_job(store: JobStore, artifacts: ArtifactStore) -> None:
    submission = JobSubmission(model="sample", seed=3, schemes=("nf4",), calibration=TEXT)
    job = submit(store, artifacts, submission)
    content = TEXT.text.encode()
    stored = StoredFile(name=TEXT.name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    assert job.request == JobRequest(model="sample", seed=3, schemes=("nf4",), calibration=stored)
    assert artifacts.path(stored.sha256).read_bytes() == content


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_upload_is_refused(store: JobStore, artifacts: ArtifactStore, tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"calibration\.text.*empty"):
        submit(store, artifacts, JobSubmission(model="sample", calibration=Upload(name="c.txt", text=text)))
    assert nothing_is_left(store, tmp_path)


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.ndjson", "c"])
def test_text_may_come_in_base64(store: JobStore, artifacts: ArtifactStore, name: str) -> None:
    content = "größer".encode()
    upload = Upload(name=name, content_base64=base64.b64encode(content).decode())
    assert upload.content == content == Upload(name=name, text="größer").content
    job = submit(store, artifacts, JobSubmission(model="sample", calibration=upload))
    assert job.request.calibration is not None
    assert artifacts.path(job.request.calibration.sha256).read_bytes() == content


def test_labelled_prompts_are_stored_beside_the_calibration(store: JobStore, artifacts: ArtifactStore) -> None:
    prompts = Upload(name="p.jsonl", text='{"prompt": "a", "score": 1}')
    submission = JobSubmission(model="sample", calibration=TEXT, labelled=prompts, label_threshold=0.5, bos="never")
    job = submit(store, artifacts, submission)
    assert (job.request.label_threshold, job.request.bos) == (0.5, "never")
    for stored, sent in ((job.request.calibration, TEXT), (job.request.labelled, prompts)):
        assert stored is not None
        assert (stored.name, stored.size) == (sent.name, len(sent.content))
        assert artifacts.path(stored.sha256).read_bytes() == sent.content


PARQUET = base64.b64encode(b"PAR1\xff\x00").decode()


@pytest.mark.parametrize(
    ("fields", "parameter", "why"),
    [
        (
            {"calibration": Upload(name="c", content_base64="")},
            "calibration.content_base64",
            "'' is empty; allowed: a file with content",
        ),
        (
            {"calibration": Upload(name="c", content_base64="/w==")},
            "calibration.content_base64",
            "is not UTF-8 text at byte 0; allowed: UTF-8 text, as the name 'c' states",
        ),
        (
            {"calibration": Upload(name="c.jsonl", content_base64=PARQUET)},
            "calibration.content_base64",
            "is not UTF-8 text at byte 4; allowed: UTF-8 text, as the name 'c.jsonl' states",
        ),
        (
            {"calibration": Upload(name="c.parquet", text="PAR2")},
            "calibration.text",
            "'PAR2' is not the content of a Parquet file; allowed: a Parquet file in content_base64",
        ),
        ({"labelled": Upload(name="p.jsonl", text=" ")}, "labelled.text", "' ' is empty; allowed: a file with content"),
        (
            {"labelled": Upload(name="p.parquet", content_base64=PARQUET)},
            "labelled.name",
            "'p.parquet' is a Parquet file; allowed: a JSON Lines file",
        ),
        ({"labelled": Upload(name="x\x00", text="a")}, "labelled.name", "control characters"),
        (
            {"label_threshold": 0.0},
            "label_threshold",
            "0.0 is given without labeled prompts; allowed: a threshold only with labeled prompts",
        ),
    ],
)
def test_an_upload_must_be_what_its_name_says(
    store: JobStore, artifacts: ArtifactStore, tmp_path: Path, fields: dict[str, Any], parameter: str, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        submit(store, artifacts, JobSubmission(model="sample", **{"calibration": TEXT} | fields))
    assert caught.value.parameter == parameter
    assert nothing_is_left(store, tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "give either text or content_base64, or the id of an uploaded file, and only"),
        (
            {"text": "a", "content_base64": "YQ=="},
            "give either text or content_base64, or the id of an uploaded file, and only",
        ),
        ({"content_base64": "YQ="}, "standard base64"),
        ({"content_base64": "Y Q=="}, "standard base64"),
        ({"content_base64": "Y-_="}, "standard base64"),
        ({"content_base64": "ü"}, "standard base64"),
    ],
)
def test_an_upload_has_one_content(content: dict[str, str], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Upload.model_validate({"name": "a", **content})


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("a.txt", "text"),
        ("a", "text"),
        ("parquet", "text"),
        ("a.jsonl.txt", "text"),
        ("a.JSONL", "jsonl"),
        ("a.b.ndjson", "jsonl"),
        ("a.parquet", "parquet"),
    ],
)
def test_a_files_name_tells_its_format(name: str, format_: str) -> None:
    assert format_of(name) == format_


def test_an_upload_with_a_strange_name_is_refused(store: JobStore, artifacts: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"calibration\.name.*x\\x00"):
        submit(store, artifacts, JobSubmission(model="sample", calibration=Upload(name="x\x00", text="a")))
    assert nothing_is_left(store, tmp_path)


def test_a_setting_that_older_jobs_have_is_read_and_left_out() -> None:
    stored = {"model": "sample", "heads": {"relative_peak": 15.0, "predicted_peak": 2.0}}
    heads = JobRequest.model_validate(stored).heads
    assert heads.model_dump() == {"relative_peak": 15.0, "damaged_sqnr_db": 20.0}


def test_an_unknown_scheme_never_becomes_a_submission() -> None:
    with pytest.raises(ValidationError, match=r"Unknown scheme 'int3'. Available: int8, nf4"):
        JobSubmission(model="sample", schemes=("int3",))


def test_an_upload_that_cannot_be_stored_leaves_no_job(store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed):
        submit(store, ArtifactStore(tmp_path / "file"), JobSubmission(model="sample", calibration=TEXT))
    assert nothing_is_left(store, tmp_path)


def test_validating_only_leaves_nothing(store: JobStore, artifacts: ArtifactStore, tmp_path: Path) -> None:
    submission = JobSubmission(model="sample", calibration=TEXT)
    validated = validate(submission)
    assert nothing_is_left(store, tmp_path)
    job = submit(store, artifacts, submission)
    assert validated == job.request


def test_a_key_makes_one_job(store: JobStore, artifacts: ArtifactStore) -> None:
    submission = JobSubmission(model="sample", calibration=TEXT)
    first = submit(store, artifacts, submission, idempotency_key="key")
    assert submit(store, artifacts, submission, idempotency_key="key") == first
    with pytest.raises(IdempotencyKeyReused):
        submit(store, artifacts, JobSubmission(model="sample"), idempotency_key="key")
    assert store.counts()[Status.queued] == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00"])
def test_keys_have_a_form(store: JobStore, artifacts: ArtifactStore, tmp_path: Path, key: str) -> None:
    for call in (validate, partial(submit, store, artifacts)):
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            call(JobSubmission(model="sample"), idempotency_key=key)
    assert nothing_is_left(store, tmp_path)


def test_the_message_is_sent_after_the_commit(store: JobStore, artifacts: ArtifactStore) -> None:
    sent: list[tuple[str, int, Status]] = []

    def send(job_id: str, number: int, _size: str) -> None:
        sent.append((job_id, number, store.get(job_id).status))

    job = submit(store, artifacts, JobSubmission(model="sample"), send=send)
    assert sent == [(job.id, 1, Status.queued)]
    assert store.unsent_dispatches() == []


def test_without_a_broker_the_job_is_kept_for_the_scheduler(
    store: JobStore, artifacts: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ServiceUnreachable("nobody there")

    with caplog.at_level(logging.WARNING):
        job = submit(store, artifacts, JobSubmission(model="sample"), send=broken)
    assert [owed.job_id for owed in store.unsent_dispatches()] == [job.id]
    assert "nobody there" in caplog.text


def test_no_message_is_sent_again_for_a_job_that_has_moved_on(store: JobStore, artifacts: ArtifactStore) -> None:
    sent: list[str] = []
    job = submit(store, artifacts, JobSubmission(model="sample"), idempotency_key="key")
    store.claim(job.id, 1, "worker", 60)
    submit(
        store, artifacts, JobSubmission(model="sample"), idempotency_key="key", send=lambda job, *_: sent.append(job)
    )
    assert sent == []


def test_the_service_loads_no_numeric_libraries() -> None:
    modules = "service.submission, service.queue, service.scheduler, service.store.jobs, service.store.owners.keys"
    heavy = "{'torch', 'transformers', 'bitsandbytes', 'numba', 'numpy', 'matplotlib', 'workers'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
