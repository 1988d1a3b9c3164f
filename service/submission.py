"""Validates and submits jobs: checks the request, stores its files, inserts the job, and sends its message.

Only what any API server can check is checked here: the form of the model's name, and that a file is of the format that
its name states. The measurement checks whether the model exists and what the files contain.
"""

import hashlib
import logging
import re
from collections.abc import Callable

from service.contracts.audits.audit import AuditSubmission
from service.contracts.files import StoredFile, Upload, format_of
from service.contracts.request import SAMPLE, Analysis, JobRequest, JobSubmission, SizeClass
from service.errors import InvalidRequest, NotFound, ServiceUnreachable
from service.file_checks import FormatCheck
from service.store.artifacts import ArtifactStore
from service.store.jobs import Job, JobStore
from service.store.statuses import Status

log = logging.getLogger(__name__)

Send = Callable[[str, int, SizeClass], None]
"""Sends a job's id, dispatch number and size to the broker, as `service.queue.send`; raises ServiceUnreachable."""

Resolve = Callable[[str], StoredFile]
"""Returns an uploaded file by its id; raises NotFound."""


def no_uploads(file_id: str) -> StoredFile:
    """Know no uploaded file."""
    raise NotFound(f"file: {file_id!r} is not the id of a file")


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"{_NAME}/{_NAME}(@[A-Za-z0-9][A-Za-z0-9._/-]{{0,254}})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FILES = ("calibration", "labelled")
"""Fields of a request that hold a file."""
_MODELS = "'sample', the absolute path of a directory, or a hub id such as 'org/name' or 'org/name@revision'"


def validate(
    submission: JobSubmission, resolve: Resolve = no_uploads, *, idempotency_key: str | None = None
) -> JobRequest:
    """Return the request of the job that `submit` would make, without storing anything. Raises InvalidRequest."""
    check_model(submission.model)
    _check_key(idempotency_key)
    check_labelled(submission, labelled=submission.labelled is not None)
    files = described_files(submission, resolve)
    return JobRequest.model_validate({**submission.model_dump(exclude=set(FILES)), **files})


def submit(
    store: JobStore,
    artifacts: ArtifactStore,
    submission: JobSubmission,
    resolve: Resolve = no_uploads,
    *,
    idempotency_key: str | None = None,
    send: Send | None = None,
) -> Job:
    """Put a job into the queue and return it.

    `send` is called after the job is committed. Where it fails or is None, the scheduler sends the message later.
    Raises InvalidRequest, IdempotencyKeyReused, LimitReached, and StoreFailed when a file cannot be stored; then there
    is no job.
    """
    request = validate(submission, resolve, idempotency_key=idempotency_key)
    if idempotency_key is None or not store.keyed([idempotency_key]):  # else the files are those of the first request
        keep_files(store, artifacts, submission)
    return enqueue(store, request, idempotency_key=idempotency_key, send=send)


def enqueue(
    store: JobStore, request: JobRequest, *, idempotency_key: str | None = None, send: Send | None = None
) -> Job:
    """Put a job into the queue whose request is whole, and return it. Raises IdempotencyKeyReused and LimitReached."""
    _check_key(idempotency_key)
    job = store.submit(request, idempotency_key=idempotency_key, sent=send is not None)
    if send is not None:
        send_message(store, job, send)
    return job


def described_files(submission: JobSubmission | AuditSubmission, resolve: Resolve) -> dict[str, StoredFile]:
    """Return the name, SHA-256 and size of every file of a request by its field.

    Raises InvalidRequest for an empty file, one that is not of the format that its name states, and an unknown id.
    """
    return {field: _described(field, upload, resolve) for field, upload in _uploads(submission).items()}


def keep_files(store: JobStore, artifacts: ArtifactStore, submission: JobSubmission | AuditSubmission) -> None:
    """Store the files inside a request. Raises StoreFailed, and LimitReached where the caller uploads too much."""
    inside = [upload for upload in _uploads(submission).values() if upload.file is None]
    store.use_upload(sum(len(upload.content) for upload in inside))
    for upload in inside:
        artifacts.put(upload.content)


def _uploads(submission: JobSubmission | AuditSubmission) -> dict[str, Upload]:
    """Return the files of a submission by the names of their fields."""
    return {name: upload for name in FILES if (upload := getattr(submission, name))}


def _described(field: str, upload: Upload, resolve: Resolve) -> StoredFile:
    """Return the name, SHA-256 and size of one file."""
    if upload.file is None:
        name, content = str(upload.name), upload.content
        check_name(f"{field}.name", name)
        _check_labelled_name(field, name)
        _check_content(field, upload, content)
        return StoredFile(name=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    try:
        stored = resolve(upload.file)
    except NotFound as error:
        allowed = "the id of a file of yours, from POST /v1/files"
        raise InvalidRequest(f"{field}.file", upload.file, allowed, problem="is not known") from error
    name = upload.name or stored.name
    check_name(f"{field}.name", name)
    _check_labelled_name(field, name)
    if (format_of(name) == "parquet") != (format_of(stored.name) == "parquet"):
        allowed = f"a name with the extension of {stored.name!r}, as it was uploaded"
        raise InvalidRequest(f"{field}.name", name, allowed)
    return stored.model_copy(update={"name": name})


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


def _check_content(field: str, upload: Upload, content: bytes) -> None:
    is_text = upload.content_base64 is None
    key = "text" if is_text else "content_base64"
    check = FormatCheck(f"{field}.{key}", str(upload.name), in_base64=not is_text)
    check.take(content)
    check.end()


def check_name(field: str, name: str) -> None:
    """Raise InvalidRequest for a file name that cannot be stored."""
    if _CONTROL.search(name):
        raise InvalidRequest(field, name, "a file name without control characters")


def _check_labelled_name(field: str, name: str) -> None:
    if field == "labelled" and format_of(name) == "parquet":
        raise InvalidRequest("labelled.name", name, "a JSON Lines file", problem="is a Parquet file")


def send_message(store: JobStore, job: Job, send: Send) -> None:
    """Send the message of a job that is committed as sent; where the broker is down, the scheduler sends it later."""
    if job.status is not Status.queued:  # an earlier request with the same key made it, and a worker has taken it
        return
    try:
        send(job.id, job.dispatch, job.size)
    except ServiceUnreachable as error:
        log.warning("job %s is in the queue; its message is sent later: %s", job.id, error)
        store.mark_unsent(job.id, job.dispatch)
