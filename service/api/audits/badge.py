"""The badge of an audit, an image of its last verdict, at an unguessable address that needs no key."""

from fastapi import APIRouter, Response

from service.api.dependencies import FromApp
from service.api.reports.downloads import PAGE_POLICY
from service.notifications.badge import badge

router = APIRouter(prefix="/v1/badges")

_HEADERS = {
    "Cache-Control": "no-cache, no-store, max-age=0, must-revalidate",
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
}
"""No browser and no image proxy may cache the badge."""


@router.get("/{token}.svg", response_class=Response, responses={200: {"content": {"image/svg+xml": {}}}})
def show(backend: FromApp, token: str) -> Response:
    """Return the badge as an SVG image: the verdict of the last run that was neither skipped nor unchanged."""
    audit = backend.audits.by_badge_token(token)
    verdict = backend.audits.last_verdict(audit.id)
    return Response(badge(audit.definition.name, verdict or "no run"), media_type="image/svg+xml", headers=_HEADERS)
