"""Defines the parameters of several routes, and access to the parts of the service."""

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import Depends, Header, Path, Query, Request

from service.api.keys.checking import access_of
from service.contracts.refusals import nearest
from service.contracts.request import JOB_ID
from service.errors import InvalidRequest, NotFound
from service.settings import Settings
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.files.removals import Removals
from service.store.files.uploads import UploadStore
from service.store.hosts.event_news import EventNews
from service.store.hosts.workers import WorkerStore
from service.store.jobs import JobStore
from service.store.owners.access import Access
from service.store.owners.keys import KeyStore
from service.store.transactions import Transactions
from service.submission import Resolve

if TYPE_CHECKING:
    from celery import Celery

PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
"""No control characters: PostgreSQL cannot store NUL, and no parameter needs the others."""
MAX_PAGE_SIZE = 200
SHOWN_CHARACTERS = 200
"""A longer name of a parameter is cut to this length in the message."""

# Dependencies that ask nothing of others are coroutines: a function would cost a turn of a thread for each request.
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Largest number of entries in the answer.")]
PageToken = Annotated[
    str | None, Query(max_length=512, pattern=PRINTABLE, description="`next_page_token` of the previous page.")
]
ModelFilter = Annotated[
    str | None, Query(max_length=1024, pattern=PRINTABLE, description="Return only entries with exactly this `model`.")
]


async def _job_id(job_id: Annotated[str, Path(description="Id of the job, and of its report.")]) -> str:
    """Return the id. Raises NotFound for a malformed one."""
    if not re.fullmatch(JOB_ID, job_id):
        raise NotFound(f"job: {job_id[:64]!r} is not an id; allowed: 1 to 64 letters, digits, - and _")
    return job_id


IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=PRINTABLE,
        description="A second request with the same key and body returns the first job.",
    ),
]
FileKey = Annotated[Literal["calibration", "labelled"], Path(description="Key of the file in the request.")]
JobId = Annotated[str, Depends(_job_id)]


def known_parameters_only(request: Request) -> None:
    """Raise InvalidRequest for an unknown query parameter, such as a misspelled filter."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name, value in request.query_params.multi_items():
        if name not in known:
            allowed = f"{', '.join(known) or 'no parameters'}{nearest(name, known)}"
            message = f"{name[:SHOWN_CHARACTERS]}: the call has no such parameter; allowed: {allowed}"
            raise InvalidRequest(name, value, allowed, message=message)


@dataclass(frozen=True)
class Backend:
    """The parts of the service behind the API."""

    settings: Settings
    store: JobStore
    artifacts: ArtifactStore
    audits: AuditStore
    alerts: AlertStore
    uploads: UploadStore
    keys: KeyStore
    removals: Removals
    news: EventNews
    workers: WorkerStore
    broker: "Celery | None"
    """Sends messages to the queue; None: only the scheduler sends them."""

    def seen_by(self, access: Access) -> Self:
        """Return the same parts with every store as a caller sees it."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        stores: dict[str, Any] = {
            name: part.seen_by(access) for name, part in parts.items() if isinstance(part, Transactions)
        }
        return replace(self, **stores)


async def _backend(request: Request) -> Backend:
    backend = request.app.state.backend_seen_by(access_of(request))
    assert isinstance(backend, Backend)
    return backend


FromApp = Annotated[Backend, Depends(_backend)]


async def _owner(backend: FromApp) -> str:
    """Return whose uploaded files a request means."""
    return backend.uploads.owner


Owner = Annotated[str, Depends(_owner)]


async def _resolve(backend: FromApp) -> Resolve:
    """Return what finds the uploaded files that a request names."""
    return lambda file_id: backend.uploads.use(file_id).stored


UploadedFiles = Annotated[Resolve, Depends(_resolve)]
