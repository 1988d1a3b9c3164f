"""Assembles the HTTP API.

Every call except the health checks, badges and open feeds needs an API key. The API only reads and writes the store; it
runs no model. A job answered with 202 is recorded, whether or not a worker or the queue can be reached.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.middleware import Middleware

from service.api import catalog, events, files, health, jobs, problems
from service.api.audits import (
    alerts,
    badge,
    baseline,
    calibration,
    definitions,
    deliveries,
    feed,
    history,
    runs,
    webhooks,
)
from service.api.dependencies import Backend, known_parameters_only
from service.api.keys import routes as keys
from service.api.keys.checking import OPEN_FOLDERS, OPEN_PATHS, KeyRequired, requires, requires_by_method
from service.api.middleware import BodyLimit
from service.api.reports import comparisons
from service.api.reports import routes as reports
from service.settings import Settings
from service.startup import Stores

if TYPE_CHECKING:
    from celery import Celery

openapi = APIRouter()
_SCHEMES = {
    "HTTPBearer": {"type": "http", "scheme": "bearer"},
    "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_MOST_CALLERS = 1024
"""Callers whose views of the stores are kept between their requests."""


@openapi.get("/openapi.json", include_in_schema=False)
def schema(request: Request) -> dict[str, object]:
    """Return the description of this API."""
    described: dict[str, object] = request.app.openapi()
    return described


class KeyedApi(FastAPI):
    """An API whose description says which calls need a key; dependencies that said so would run with every call."""

    def openapi(self) -> dict[str, Any]:
        """Return the description."""
        if self.openapi_schema is None:
            described = super().openapi()
            described["components"]["securitySchemes"] = _SCHEMES
            for path, operations in described["paths"].items():
                if path not in OPEN_PATHS and not path.startswith(OPEN_FOLDERS):
                    for operation in operations.values():
                        operation["security"] = [{name: []} for name in _SCHEMES]
        return self.openapi_schema or {}


async def permitted(request: Request) -> None:
    """Raise ScopeMissing for a key without the scope of the method, and InvalidRequest for an unknown parameter.

    One dependency of every call: each one costs as much as a small query.
    """
    requires_by_method(request)
    known_parameters_only(request)


def make_app(settings: Settings, stores: Stores, broker: "Celery | None" = None) -> FastAPI:
    """Return the API; without a `broker`, the scheduler sends the messages of submitted jobs."""
    app = KeyedApi(
        title="Headroom",
        description="Measures what quantization does to a language model, and why.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(KeyRequired, keys=stores.keys, settings=settings),
            Middleware(BodyLimit, upload_limit=settings.max_upload_bytes),
        ],
        responses={"4XX": {"description": "Problem document, RFC 9457", "content": {problems.MEDIA_TYPE: {}}}},
    )
    backend = Backend(
        settings,
        stores.jobs,
        stores.artifacts,
        stores.audits,
        stores.alerts,
        stores.uploads,
        stores.keys,
        stores.removals,
        stores.news,
        stores.workers,
        broker,
    )
    app.state.backend, app.state.backend_seen_by = backend, lru_cache(maxsize=_MOST_CALLERS)(backend.seen_by)
    problems.install(app)
    for router in (health.router, badge.router, feed.open_router):
        app.include_router(router)
    of_alerts = (alerts.router, deliveries.router, webhooks.router, feed.router)
    of_audits = (definitions.router, runs.router, baseline.router, history.router, calibration.router, *of_alerts)
    of_jobs = (jobs.router, files.router, events.router, reports.router, comparisons.router)
    for router in (*of_jobs, *of_audits, catalog.router, openapi):
        app.include_router(router, dependencies=[Depends(permitted)])
    app.include_router(keys.router, dependencies=[Depends(requires("admin")), Depends(permitted)])
    return app
