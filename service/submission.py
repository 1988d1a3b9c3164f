"""The one door through which a job comes in: validate, store what came with it, insert, ring the bell.

Only what any API server can know is checked here: the form of the model's name, and that a file which came with the
job holds something of the kind that its name says. Whether the model exists and is sound, and what the file says
line by line, is the measurement's to judge.
"""

import hashlib
import logging
import re
from collections.abc import Callable

from service.contracts.files import PARQUET_MAGIC, StoredFile, Upload, format_of
from service.contracts.request import SAMPLE, JobRequest, JobSubmission
from service.errors import InvalidRequest, ServiceUnreachable
from service.store.artifacts import ArtifactStore
from service.store.jobs import Job, JobStore
from service.store.statuses import Status

log = logging.getLogger(__name__)

Bell = Callable[[str, int], None]
"""Sends a job's id and dispatch number to the broker, as `service.queue.send` does; raises ServiceUnreachable."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"{_NAME}/{_NAME}(@[A-Za-z0-9][A-Za-z0-9._/-]{{0,254}})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MODELS = "allowed: 'sample', the absolute path of a directory, or a hub id such as 'org/name' or 'org/name@revision'"


def submit(
    store: JobStore,
    artifacts: ArtifactStore,
    submission: JobSubmission,
    *,
    idempotency_key: str | None = None,
    validate_only: bool = False,
    bell: Bell | None = None,
) -> Job | JobRequest:
    """Put a job into the queue and return it; with `validate_only` return the request that it would have had.

    The bell is rung after the job is committed, and as well as can be: what could not be sent, or was not for want
    of a bell, the scheduler sends. Raises InvalidRequest, IdempotencyKeyReused, and StoreFailed when a
    file that came with it cannot be stored; there is no job then.
    """
    _check_model(submission.model)
    _check_key(idempotency_key)
    _check_labelled(submission)
    uploads = {name: upload for name in ("calibration", "labelled") if (upload := getattr(submission, name))}
    for name, upload in uploads.items():
        _check_upload(name, upload)
    stored = {name: _stored(upload, None if validate_only else artifacts) for name, upload in uploads.items()}
    fields = submission.model_dump(exclude={"calibration", "labelled"})
    request = JobRequest.model_validate({**fields, **stored})
    if validate_only:
        return request
    job = store.submit(request, idempotency_key=idempotency_key)
    if bell is not None:
        _ring(store, job, bell)
    return job


def _check_model(model: str) -> None:
    if _CONTROL.search(model):
        raise InvalidRequest("model", model, f"it holds a control character; {_MODELS}")
    if model == SAMPLE or model.startswith("/"):
        return
    if model.startswith((".", "~")):
        raise InvalidRequest("model", model, f"a relative path says nothing to a worker elsewhere; {_MODELS}")
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model:
        raise InvalidRequest("model", model, _MODELS)


def _check_key(key: str | None) -> None:
    if key is not None and (not 1 <= len(key) <= 255 or _CONTROL.search(key)):
        raise InvalidRequest("Idempotency-Key", key, "allowed: 1 to 255 characters, none of them a control character")


def _check_labelled(submission: JobSubmission) -> None:
    threshold, labelled = submission.label_threshold, submission.labelled
    if threshold is not None and labelled is None:
        raise InvalidRequest("label_threshold", threshold, "it is for labeled prompts with scores, and none are given")
    if labelled is not None and format_of(labelled.name) == "parquet":
        raise InvalidRequest("labelled.name", labelled.name, "labeled prompts are JSON Lines; Parquet is not read")


def _check_upload(field: str, upload: Upload) -> None:
    """Refuse a file that is empty, or that is not what its name says."""
    if _CONTROL.search(upload.name):
        raise InvalidRequest(f"{field}.name", upload.name, "allowed: a file name without control characters")
    name, given = ("text", upload.text) if upload.content_base64 is None else ("content_base64", upload.content_base64)
    content = upload.content
    shown = (given or "")[:20]
    if not content.strip():
        raise InvalidRequest(f"{field}.{name}", shown, "it is empty; allowed: a file that holds something")
    if format_of(upload.name) == "parquet":
        if not content.startswith(PARQUET_MAGIC):
            allowed = (
                f"the name {upload.name!r} stands for Parquet, and this is none; Parquet travels as content_base64"
            )
            raise InvalidRequest(f"{field}.{name}", shown, allowed)
        return
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        allowed = f"the name {upload.name!r} stands for text in UTF-8; byte {error.start} is not"
        raise InvalidRequest(f"{field}.{name}", shown, allowed) from error


def _stored(upload: Upload, artifacts: ArtifactStore | None) -> StoredFile:
    """Return the description of an uploaded file, kept in `artifacts` where one is given."""
    content = upload.content
    sha256, size = artifacts.put(content) if artifacts else (hashlib.sha256(content).hexdigest(), len(content))
    return StoredFile(name=upload.name, sha256=sha256, size=size)


def _ring(store: JobStore, job: Job, bell: Bell) -> None:
    if job.status is not Status.queued:  # an earlier request with the same key brought it here, and it has moved on
        return
    try:
        bell(job.id, job.dispatch)
    except ServiceUnreachable as error:
        log.warning("job %s is in the queue, but its message must wait: %s", job.id, error)
        return
    store.mark_sent(job.id, job.dispatch)
