"""The Atom feed of an audit: with a key by the audit's name, and without one at an unguessable address."""

import hashlib
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.audits.names import AuditName
from service.api.dependencies import Backend, FromApp
from service.api.reports import downloads
from service.notifications.feed import MEDIA_TYPE, feed
from service.store.audits import Audit

router = APIRouter(prefix="/v1")
open_router = APIRouter(prefix="/v1/feeds")

ENTRIES = 50
"""Announcements of a feed, the newest."""
_ATOM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/atom+xml": {}}}}


@router.get("/audits/{audit}/feed.atom", response_class=Response, responses=_ATOM)
def show(backend: FromApp, request: Request, audit: AuditName) -> Response:
    """Return the feed: an entry for every run that opened or closed alerts, or ended in an error."""
    return _feed(backend, request, backend.audits.get(audit))


@open_router.get("/{token}.atom", response_class=Response, responses=_ATOM)
def show_openly(backend: FromApp, request: Request, token: str) -> Response:
    """Return the feed to a feed reader, which sends no key."""
    return _feed(backend, request, backend.audits.by_feed_token(token))


def _feed(backend: Backend, request: Request, audit: Audit) -> Response:
    content = feed(
        audit.id,
        audit.definition.name,
        audit.created_at,
        backend.alerts.announcements(audit.id, ENTRIES),
        address=str(request.url),
        base=str(request.base_url).rstrip("/"),
    )
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    if downloads.has_current(request, etag):
        return downloads.not_modified(etag)
    return Response(content, media_type=MEDIA_TYPE, headers=downloads.headers(etag))
