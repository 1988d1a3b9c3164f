"""Sends files that never change: strong ETag, If-None-Match, Range; and tables as CSV, written for each request.

An artifact is stored by its SHA-256, which is also its entity tag; a client that has the file gets 304 and no content.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service.api.dependencies import Backend
from service.contracts.files import StoredFile
from service.errors import NotFound

Handler = TypeVar("Handler", bound=Callable[..., Response])
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content-Security-Policy of every file: the browser blocks scripts and requests to other hosts."""

SIGNED_SECONDS = 300
"""How long the URL of a bucket can be used to which a download is redirected."""
SMALL = 1 << 22
"""Bytes that are read at once; a file of as many is sent whole."""
_ONE_RANGE = re.compile(r"\s*(\d*)-(\d*)\s*")
_LONGEST_NUMBER = 18
"""Digits of a byte offset; longer offsets are invalid for every file."""


def route(router: APIRouter, path: str) -> Callable[[Handler], Handler]:
    """Return a decorator by which a function answers GET, and HEAD with the same headers."""

    def register(handler: Handler) -> Handler:
        router.head(path, response_class=Response, include_in_schema=False)(handler)
        return router.get(path, response_class=Response)(handler)

    return register


class LargeChunkResponse(FileResponse):
    """Sends a file in chunks of 4 MiB, and a smaller file at once: each chunk costs a switch to a thread and back."""

    chunk_size = SMALL
    content: bytes | None = None
    """The whole of a small file, read already."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, or the part of it that Range asks for."""
        if self.content is None:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.content})
        if self.background is not None:
            await self.background()


def artifact(backend: Backend, request: Request, job_id: str, name: str) -> Response:
    """Return the response that sends the artifact `name` of a job. Raises NotFound."""
    row = backend.store.artifact(job_id, name)
    return _file(backend, request, row.sha256, row.media_type, f"{job_id}-{Path(name).name}")


def uploaded(backend: Backend, request: Request, file: StoredFile | None, key: str) -> Response:
    """Return the response that sends a file that a request brought. Raises NotFound where it brought none."""
    if file is None:
        raise NotFound(f"{key}: the request has no such file")
    return _file(backend, request, file.sha256, "application/octet-stream", file.name)


def _file(backend: Backend, request: Request, sha256: str, media_type: str, filename: str) -> Response:
    etag = f'"{sha256}"'
    if has_current(request, etag):
        return not_modified(etag)
    if backend.settings.presigned_downloads and request.method == "GET" and "if-none-match" not in request.headers:
        url = backend.artifacts.signed(sha256, SIGNED_SECONDS)
        if url is not None:
            headers = {"Location": url, "ETag": etag, "Cache-Control": "no-store"}
            return Response(status_code=307, headers=headers)
    return send(request, backend.artifacts.path(sha256), etag, media_type, filename)


def has_current(request: Request, etag: str) -> bool:
    """Whether If-None-Match states that the client has the file with this entity tag."""
    tags = request.headers.get("if-none-match", "")
    return tags.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in tags.split(",")}


def not_modified(etag: str) -> Response:
    """Return the answer to a client that already has the file."""
    return Response(status_code=304, headers=headers(etag))


def send(
    request: Request, path: Path, etag: str, media_type: str, filename: str, *, then: BackgroundTask | None = None
) -> Response:
    """Return the response that sends the file at `path`, or the requested ranges of it.

    Raises HTTPException 416 when a range is malformed or outside the file.
    """
    facts = path.stat()
    _check_range(request, etag, facts.st_size)
    response = LargeChunkResponse(
        path,
        headers=headers(etag),
        media_type=media_type,
        filename=filename,
        stat_result=facts,
        content_disposition_type="inline",
        background=then,
    )
    if request.method == "GET" and "range" not in request.headers and facts.st_size <= SMALL:
        response.content = path.read_bytes()
    return response


def headers(etag: str) -> dict[str, str]:
    """Return the headers of every file."""
    return {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": PAGE_POLICY,
        "X-Content-Type-Options": "nosniff",
    }


def _check_range(request: Request, etag: str, size: int) -> None:
    """Refuse ranges that Starlette would answer without a problem document."""
    requested = request.headers.get("range")
    if requested is None or request.headers.get("if-range", etag) != etag:
        return
    unit, _, ranges = requested.partition("=")
    valid = unit.strip().lower() == "bytes" and all(_lies_within(part, size) for part in ranges.split(","))
    if not valid:
        detail = (
            f"Range: {requested[:200]!r} is not allowed; allowed: bytes=FIRST-LAST within the {size} bytes of the file"
        )
        raise HTTPException(416, detail, headers={"Content-Range": f"bytes */{size}"})


def _lies_within(part: str, size: int) -> bool:
    match = _ONE_RANGE.fullmatch(part)
    if match is None or max(map(len, match.groups())) > _LONGEST_NUMBER:
        return False
    first, last = match.groups()
    if not first:
        return last != "" and int(last) > 0 and size > 0
    return int(first) < size and (last == "" or int(first) <= int(last))


def csv_tag(parquet_sha256: str) -> str:
    """Return the strong tag of a table's CSV: the same Parquet and the same writer give the same bytes."""
    import pyarrow  # which takes long to load

    source = f"csv of {parquet_sha256} by pyarrow {pyarrow.__version__}"
    return f'"{hashlib.sha256(source.encode()).hexdigest()}"'


def write_csv(table: Path) -> Path:
    """Write the Parquet file `table` as CSV into a temporary file, and return its path; the caller deletes it.

    Row groups go through one by one, so memory does not grow with the table. A null is an empty field.
    """
    from pyarrow import csv, parquet

    handle, name = tempfile.mkstemp(prefix="headroom-", suffix=".csv")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            parquet.ParquetFile(table) as source,
            csv.CSVWriter(file, source.schema_arrow) as writer,
        ):
            for batch in source.iter_batches():
                writer.write_batch(batch)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
