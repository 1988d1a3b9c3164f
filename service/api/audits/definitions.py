"""Audits: make, list, show, change, remove, pause, resume."""

from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Body, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from service import submission
from service.api.audits.names import AuditName
from service.api.audits.views import AuditPage, AuditView
from service.api.bodies import UniqueKeys
from service.api.dependencies import Backend, FileKey, FromApp, PageSize, PageToken, UploadedFiles
from service.api.reports import downloads
from service.audit_submission import changed, defined
from service.contracts.audits.audit import AuditDefinition, AuditSubmission
from service.contracts.record import Frozen
from service.errors import Conflict, InvalidRequest
from service.store.audits import Audit, AuditChanged

router = APIRouter(prefix="/v1/audits", route_class=UniqueKeys)

ValidateOnly = Annotated[
    bool, Query(description="Check the request without storing anything; answers 200 with the definition.")
]
Force = Annotated[
    bool,
    Query(
        description="Take a pinned baseline although its definitions, text or schemes are others. The audit then says "
        "why in `baseline_cautions`."
    ),
]


class Pause(Frozen):
    """Why an audit is paused."""

    reason: Annotated[str, Field(max_length=1024)] = "paused by request"
    """1 to 1024 characters."""


_BY_REQUEST = Pause()
_MERGES = 4
"""Times that a patch is merged anew because others changed the audit."""


@router.post("", status_code=status.HTTP_201_CREATED, response_model=AuditView | AuditDefinition)
def create(
    backend: FromApp,
    uploaded: UploadedFiles,
    body: AuditSubmission,
    response: Response,
    validate_only: ValidateOnly = False,
    force: Force = False,
) -> AuditView | AuditDefinition:
    """Make an audit. The header Location of the answer has its path."""
    definition = defined(body, uploaded)
    if validate_only:
        response.status_code = status.HTTP_200_OK
        if backend.audits.is_own(definition.name):
            raise Conflict(f"name: {definition.name!r} is already the name of an audit; allowed: any other name")
        backend.audits.check(definition, force=force)
        return definition
    submission.keep_files(backend.store, backend.artifacts, body)
    audit = backend.audits.create(definition, force=force)
    response.headers["Location"] = f"/v1/audits/{definition.name}"
    return AuditView.of(audit)


@router.get("")
def list_audits(
    backend: FromApp,
    page_size: PageSize = 50,
    page_token: PageToken = None,
    own: Annotated[bool, Query(description="Leave out audits of other owners, which an administrator sees.")] = False,
) -> AuditPage:
    """Return audits by name."""
    page = backend.audits.list(page_size=page_size, page_token=page_token, own=own)
    return AuditPage(audits=[AuditView.of(audit) for audit in page.audits], next_page_token=page.next_page_token)


@router.get("/{audit}")
def show(backend: FromApp, audit: AuditName) -> AuditView:
    """Return one audit."""
    return AuditView.of(backend.audits.get(audit))


@router.put(
    "/{audit}",
    response_model=AuditView | AuditDefinition,
    responses={201: {"model": AuditView, "description": "The audit is new."}},
)
def put(
    backend: FromApp,
    uploaded: UploadedFiles,
    audit: AuditName,
    body: AuditSubmission,
    response: Response,
    validate_only: ValidateOnly = False,
    force: Force = False,
) -> AuditView | AuditDefinition:
    """Make the audit, or replace its whole definition (200). Scheduled times that have passed start no run."""
    definition = defined(body, uploaded)
    is_new = not backend.audits.is_own(audit)
    if is_new and definition.name != audit:
        raise InvalidRequest("name", definition.name, repr(audit), problem="is not the name in the path")
    if validate_only:
        backend.audits.check(definition, force=force, replaced=None if is_new else audit)
        return definition
    submission.keep_files(backend.store, backend.artifacts, body)
    if not is_new:
        return AuditView.of(backend.audits.update(audit, definition, force=force))
    response.status_code = status.HTTP_201_CREATED
    response.headers["Location"] = f"/v1/audits/{audit}"
    return AuditView.of(backend.audits.create(definition, force=force))


@router.patch("/{audit}", response_model=AuditView | AuditDefinition)
def change(
    backend: FromApp,
    uploaded: UploadedFiles,
    audit: AuditName,
    body: Annotated[
        dict[str, Any],
        Body(
            description="Keys of an audit with their new values, as a JSON merge patch (RFC 7396): other keys stay, "
            "null sets a key to its default, lists are replaced.",
            examples=[{"schedule": "0 3 * * *", "limits": ["int8.perplexity_ratio <= 1.01"]}],
        ),
    ],
    validate_only: ValidateOnly = False,
    force: Force = False,
) -> AuditView | AuditDefinition:
    """Change parts of an audit's definition. Scheduled times that have passed start no run."""
    merged = _merged(backend, uploaded, audit, body)
    if validate_only:
        backend.audits.check(merged.definition, force=force, replaced=audit)
        return merged.definition
    submission.keep_files(backend.store, backend.artifacts, merged.asked)
    for _ in range(_MERGES):
        try:
            return _update(backend, merged, force=force)
        except AuditChanged:
            merged = _merged(backend, uploaded, audit, body)
    return _update(backend, merged, force=force)


class _Merged(NamedTuple):
    """A patch of an audit with the definition that it changes."""

    audit: Audit
    """As it was read."""
    asked: AuditSubmission
    definition: AuditDefinition


def _merged(backend: Backend, uploaded: UploadedFiles, audit: str, patch: dict[str, Any]) -> _Merged:
    present = backend.audits.get(audit)
    try:
        asked, kept = changed(present.definition, patch)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from error
    return _Merged(present, asked, defined(asked, uploaded, kept))


def _update(backend: Backend, merged: _Merged, *, force: bool) -> AuditView:
    """Write a patched definition. Raises AuditChanged where another changed the audit since it was read."""
    audit = merged.audit
    return AuditView.of(backend.audits.update(audit.id, merged.definition, force=force, as_of=audit.updated_at))


@router.delete("/{audit}", status_code=status.HTTP_204_NO_CONTENT)
def delete(backend: FromApp, audit: AuditName) -> None:
    """Remove an audit with its runs, and cancel the jobs that they wait for. Reports stay."""
    backend.audits.delete(audit)


@router.get("/{audit}/files/{key}", response_class=Response)
def file(backend: FromApp, request: Request, audit: AuditName, key: FileKey) -> Response:
    """Return a file that the audit measures with: `calibration` or `labelled`."""
    return downloads.uploaded(backend, request, getattr(backend.audits.get(audit).definition, key), key)


@router.post("/{audit}/pause")
def pause(backend: FromApp, audit: AuditName, body: Pause = _BY_REQUEST) -> AuditView:
    """Stop scheduled runs from starting. Runs on request still start."""
    return AuditView.of(backend.audits.pause(audit, body.reason))


@router.post("/{audit}/resume")
def resume(backend: FromApp, audit: AuditName) -> AuditView:
    """Let scheduled runs start again from now on. Missed runs are not made up for."""
    return AuditView.of(backend.audits.resume(audit))
