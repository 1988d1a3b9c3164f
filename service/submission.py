"""Validates and submits jobs: checks the request, stores its files, inserts the job, and sends its message.

Only what any API server can check is checked here: the form of the model's name, and that a file is of the format that
its name states. The measurement checks whether the model exists and what the files contain.
"""

import hashlib
import logging
import re
from collections.abc import Callable

from service.contracts.audits.audit import AuditSubmission
from service.contracts.files import PARQUET_MAGIC, StoredFile, Upload, format_of
from service.contracts.request import SAMPLE, Analysis, JobRequest, JobSubmission
from service.contracts.sizes import SizeClass
from service.errors import InvalidRequest, ServiceUnreachable
from service.store.artifacts import ArtifactStore
from service.store.jobs import Job, JobStore
from service.store.statuses import Status

log = logging.getLogger(__name__)

Send = Callable[[str, int, SizeClass], None]
"""Sends a job's id, dispatch number and size to the broker, as `service.queue.send`; raises ServiceUnreachable."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"{_NAME}/{_NAME}(@[A-Za-z0-9][A-Za-z0-9._/-]{{0,254}})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FILES = ("calibration", "labelled")
"""Fields of a request that hold a file."""
_MODELS = "'sample', the absolute path of a directory, or a hub id such as 'org/name' or 'org/name@revision'"


def validate(submission: JobSubmission, *, idempotency_key: str | None = None) -> JobRequest:
    """Return the request of the job that `submit` would make, without storing anything. Raises InvalidRequest."""
    check_model(submission.model)
    _check_key(idempotency_key)
    check_labelled(submission, labelled=submission.labelled is not None)
    return JobRequest.model_validate({**submission.model_dump(exclude=set(FILES)), **described_files(submission)})


def submit(
    store: JobStore,
    artifacts: ArtifactStore,
    submission: JobSubmission,
    *,
    idempotency_key: str | None = None,
    send: Send | None = None,
) -> Job:
    """Put a job into the queue and return it.

    `send` is called after the job is committed. Where it fails or is None, the scheduler sends the message later.
    Raises InvalidRequest, IdempotencyKeyReused, LimitReached, and StoreFailed when a file cannot be stored; then there
    is no job.
    """
    request = validate(submission, idempotency_key=idempotency_key)
    keep_files(store, artifacts, submission)
    job = store.submit(request, idempotency_key=idempotency_key, sent=send is not None)
    if send is not None:
        send_message(store, job, send)
    return job


def described_files(submission: JobSubmission | AuditSubmission) -> dict[str, StoredFile]:
    """Return the name, SHA-256 and size of every uploaded file by its field.

    Raises InvalidRequest for an empty file, and for one that is not of the format that its name states.
    """
    uploads = _uploads(submission)
    for name, upload in uploads.items():
        _check_upload(name, upload)
    return {name: _description(upload) for name, upload in uploads.items()}


def keep_files(store: JobStore, artifacts: ArtifactStore, submission: JobSubmission | AuditSubmission) -> None:
    """Store the uploaded files. Raises StoreFailed, and LimitReached where the caller uploads too much."""
    store.use_upload(sum(len(upload.content) for upload in _uploads(submission).values()))
    for upload in _uploads(submission).values():
        artifacts.put(upload.content)


def _uploads(submission: JobSubmission | AuditSubmission) -> dict[str, Upload]:
    """Return the files of a submission by the names of their fields."""
    return {name: upload for name in FILES if (upload := getattr(submission, name))}


def _description(upload: Upload) -> StoredFile:
    """Return the name, SHA-256 and size of an uploaded file."""
    content = upload.content
    return StoredFile(name=upload.name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def check_model(model: str) -> None:
    """Raise InvalidRequest for a text that names no model."""
    if _CONTROL.search(model):
        raise InvalidRequest("model", model, _MODELS, problem="has a control character")
    if model == SAMPLE or model.startswith("/"):
        return
    if model.startswith((".", "~")):
        raise InvalidRequest("model", model, _MODELS, problem="is a relative path")
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model:
        raise InvalidRequest("model", model, _MODELS)


def _check_key(key: str | None) -> None:
    if key is not None and (not 1 <= len(key) <= 255 or _CONTROL.search(key)):
        raise InvalidRequest("Idempotency-Key", key, "1 to 255 characters without control characters")


def check_labelled(analysis: Analysis, *, labelled: bool) -> None:
    """Raise InvalidRequest for a threshold of labeled prompts without any."""
    if analysis.label_threshold is not None and not labelled:
        allowed = "a threshold only with labeled prompts that have scores"
        problem = "is given without labeled prompts"
        raise InvalidRequest("label_threshold", analysis.label_threshold, allowed, problem=problem)


def _check_upload(field: str, upload: Upload) -> None:
    """Refuse an empty file, and one that is not of the format that its name states."""
    if _CONTROL.search(upload.name):
        raise InvalidRequest(f"{field}.name", upload.name, "a file name without control characters")
    if field == "labelled" and format_of(upload.name) == "parquet":
        raise InvalidRequest("labelled.name", upload.name, "a JSON Lines file", problem="is a Parquet file")
    name, value = ("text", upload.text) if upload.content_base64 is None else ("content_base64", upload.content_base64)
    content = upload.content
    shown = (value or "")[:20]
    if not content.strip():
        raise InvalidRequest(f"{field}.{name}", shown, "a file with content", problem="is empty")
    if format_of(upload.name) == "parquet":
        if not content.startswith(PARQUET_MAGIC):
            allowed = f"a Parquet file in content_base64, as the name {upload.name!r} states"
            raise InvalidRequest(f"{field}.{name}", shown, allowed, problem="is not the content of a Parquet file")
        return
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        allowed = f"UTF-8 text, as the name {upload.name!r} states"
        problem = f"is not UTF-8 text at byte {error.start}"
        raise InvalidRequest(f"{field}.{name}", shown, allowed, problem=problem) from error


def send_message(store: JobStore, job: Job, send: Send) -> None:
    """Send the message of a job that is committed as sent; where the broker is down, the scheduler sends it later."""
    if job.status is not Status.queued:  # an earlier request with the same key made it, and a worker has taken it
        return
    try:
        send(job.id, job.dispatch, job.size)
    except ServiceUnreachable as error:
        log.warning("job %s is in the queue; its message is sent later: %s", job.id, error)
        store.mark_unsent(job.id, job.dispatch)
