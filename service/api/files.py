"""Uploaded files that jobs and audits name: calibration texts and labeled prompts too large for a request's body."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Self

from fastapi import APIRouter, Depends, Query, Request, Response, status
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.api.dependencies import PRINTABLE, Backend, FromApp, Owner, PageSize, PageToken
from service.contracts.files import FILE_ID, StoredFile
from service.errors import NotFound, StoreFailed
from service.file_checks import FormatCheck
from service.store.files.uploads import UploadedFile

router = APIRouter(prefix="/v1/files")

WRITTEN_BYTES = 1 << 20
"""Bytes of a file that are in memory at a time, about."""

FileName = Annotated[
    str,
    Query(
        min_length=1,
        max_length=255,
        pattern=PRINTABLE,
        description="File name; its extension states the format: `.jsonl`, `.ndjson`, `.parquet`, else text.",
    ),
]


class FileView(BaseModel):
    """An uploaded file."""

    id: str
    """A job names the file by it: `"calibration": {"file": ID}`."""
    owner: str
    """Owner of the key that uploaded it; empty for the bootstrap key."""
    name: str
    bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime
    """The file is forgotten then, unless it is uploaded again or a request names it; jobs keep its content."""

    @classmethod
    def of(cls, file: UploadedFile) -> Self:
        """Return the view of `file`."""
        return cls.model_validate({**vars(file), "bytes": file.size})


class FilePageView(BaseModel):
    """A page of files, newest first, and the token of the next page."""

    files: list[FileView]
    next_page_token: str | None


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def upload(backend: FromApp, owner: Owner, request: Request, name: FileName, response: Response) -> FileView:
    """Keep the file that is the request's body.

    Text must be UTF-8. The same content under the same name has the same id.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        await run_in_threadpool(backend.uploads.check_room, owner, int(announced))
    check = FormatCheck("body", name)
    with _incoming(backend) as (file, path):
        await _receive(request, file, check)
        kept = await run_in_threadpool(_keep, backend, owner, name, path)
    response.headers["Location"] = f"/v1/files/{kept.id}"
    return FileView.of(kept)


@router.get("")
def list_files(backend: FromApp, page_size: PageSize = 50, page_token: PageToken = None) -> FilePageView:
    """Return your uploaded files, and to an administrator those of all owners, newest first."""
    page = backend.uploads.list(page_size=page_size, page_token=page_token)
    return FilePageView(files=[FileView.of(file) for file in page.files], next_page_token=page.next_page_token)


async def _file_id(file_id: Annotated[str, PathParameter(description="Id of the file.")]) -> str:
    """Return the id. Raises NotFound for a malformed one."""
    if not re.fullmatch(FILE_ID, file_id):
        raise NotFound(f"file: {file_id[:64]!r} is not the id of a file; GET /v1/files lists them")
    return file_id


FileId = Annotated[str, Depends(_file_id)]


@router.get("/{file_id}")
def show(backend: FromApp, file_id: FileId) -> FileView:
    """Return what is known of one file."""
    return FileView.of(backend.uploads.get(file_id))


@router.delete("/{file_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete(backend: FromApp, file_id: FileId) -> None:
    """Forget a file. Jobs that were made with it keep its content."""
    backend.uploads.delete(file_id)


async def _receive(request: Request, file: IO[bytes], check: FormatCheck) -> None:
    """Write the body to `file` piece by piece, in threads, and check it on its way."""
    pieces: list[bytes] = []
    waiting = 0
    try:
        async for piece in request.stream():
            pieces.append(piece)
            waiting += len(piece)
            if waiting >= WRITTEN_BYTES:
                await run_in_threadpool(_write, file, b"".join(pieces), check)
                pieces, waiting = [], 0
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection was closed before the whole file had come") from error
    await run_in_threadpool(_write, file, b"".join(pieces), check)
    check.end()


def _write(file: IO[bytes], piece: bytes, check: FormatCheck) -> None:
    check.take(piece)
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        raise StoreFailed(f"the file could not be stored: {error.strerror or error}") from error


@contextmanager
def _incoming(backend: Backend) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a file for an upload, beside the service's other files and not in memory; it is removed in the end."""
    directory = backend.settings.home / "uploads"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=directory)
    except OSError as error:
        raise StoreFailed(f"the file could not be stored: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, Path(name)
    finally:
        os.unlink(name)


def _keep(backend: Backend, owner: str, name: str, path: Path) -> UploadedFile:
    size = path.stat().st_size
    backend.uploads.check_room(owner, size)
    backend.store.use_upload(size)
    sha256, size = backend.artifacts.put(path)
    return backend.uploads.add(owner, StoredFile(name=name, sha256=sha256, size=size))
