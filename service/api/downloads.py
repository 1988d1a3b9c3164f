"""Sending a file that never changes: strong ETag, If-None-Match, Range.

An artifact is stored by its SHA-256, so its entity tag is that sum, and a client that holds the file already
learns so without a byte being sent.
"""

import re
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from service.api.rooms import Rooms

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content-Security-Policy of everything sent: a report that runs a script or asks another host for anything is
stopped by the browser."""

_ONE_RANGE = re.compile(r"\s*(\d*)-(\d*)\s*")
_LONGEST_NUMBER = 18
"""Digits of a byte offset; a longer one is no offset into any file."""


def artifact(rooms: Rooms, request: Request, job_id: str, name: str) -> Response:
    """Return the response that sends the artifact `name` of a job. Raises NotFound."""
    row = rooms.store.artifact(job_id, name)
    etag = f'"{row.sha256}"'
    if holds(request, etag):
        return not_modified(etag)
    return send(request, rooms.artifacts.path(row.sha256), etag, row.media_type, f"{job_id}-{Path(name).name}")


def holds(request: Request, etag: str) -> bool:
    """Return whether the client says in If-None-Match that it has the file with this tag."""
    tags = request.headers.get("if-none-match", "")
    return tags.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in tags.split(",")}


def not_modified(etag: str) -> Response:
    """Return the answer to a client that has the file already."""
    return Response(status_code=304, headers=headers(etag))


def send(
    request: Request, path: Path, etag: str, media_type: str, filename: str, *, then: BackgroundTask | None = None
) -> Response:
    """Return the response that sends the file at `path`, or the parts of it that were asked for.

    Raises HTTPException 416 when the range lies outside the file or cannot be understood.
    """
    _check_range(request, etag, path.stat().st_size)
    return FileResponse(
        path,
        headers=headers(etag),
        media_type=media_type,
        filename=filename,
        content_disposition_type="inline",
        background=then,
    )


def headers(etag: str) -> dict[str, str]:
    """Return the headers of everything sent."""
    return {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": PAGE_POLICY,
        "X-Content-Type-Options": "nosniff",
    }


def _check_range(request: Request, etag: str, size: int) -> None:
    """Refuse the ranges that Starlette would answer without a problem document."""
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", etag) != etag:
        return
    unit, _, ranges = wanted.partition("=")
    understood = unit.strip().lower() == "bytes" and all(_lies_within(part, size) for part in ranges.split(","))
    if not understood:
        detail = (
            f"Range: {wanted[:200]!r} is not allowed; the file has {size} bytes, ask for bytes=FIRST-LAST within it"
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
