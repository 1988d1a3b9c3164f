"""Health checks: whether the process answers, and whether its parts do. Neither call needs a key."""

import logging
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from service.api.dependencies import Backend, FromApp
from service.contracts.request import SizeClass
from service.errors import OtherStore, StoreFailed

log = logging.getLogger(__name__)

BROKER_SECONDS = 1.0
"""How long the broker may take to answer."""

router = APIRouter()


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The state of each part. `broker` is not required: jobs are recorded without it."""

    status: Literal["ready", "not ready"]
    database: Literal["ok", "failed"]
    artifacts: Literal["ok", "failed", "other"]
    """`other`: it answers, and is not the store that the process started with."""
    broker: Literal["ok", "failed", "none"]
    unserved: list[SizeClass]
    """Classes of jobs that wait in the queue while no worker takes them. Not required: these jobs are kept."""


@router.get("/healthz")
async def healthz() -> Alive:
    """Return 200: the process answers."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(backend: FromApp, response: Response) -> Readiness:
    """Return 200 if jobs can be recorded and reports downloaded, else 503. `unserved` names queues without a worker."""
    database = _database(backend)
    artifacts = _artifacts(backend)
    ready = database == "ok" and artifacts == "ok"
    response.status_code = 200 if ready else 503
    return Readiness(
        status="ready" if ready else "not ready",
        database=database,
        artifacts=artifacts,
        broker=_broker(backend),
        unserved=_unserved(backend),
    )


def _unserved(backend: Backend) -> list[SizeClass]:
    try:
        return backend.workers.unserved()
    except SQLAlchemyError:  # which `database` says
        return []


def _database(backend: Backend) -> Literal["ok", "failed"]:
    try:
        backend.store.counts()
    except SQLAlchemyError:
        return "failed"
    return "ok"


def _artifacts(backend: Backend) -> Literal["ok", "failed", "other"]:
    try:
        backend.artifacts.check()
    except OtherStore as error:
        log.error("the service is not ready: %s", error)
        return "other"
    except StoreFailed as error:
        log.error("the service is not ready: %s", error)
        return "failed"
    return "ok"


def _broker(backend: Backend) -> Literal["ok", "failed", "none"]:
    if backend.broker is None:
        return "none"
    from kombu.exceptions import OperationalError  # with a broker it is loaded anyway

    timeouts = {"socket_connect_timeout": BROKER_SECONDS, "socket_timeout": BROKER_SECONDS}
    with backend.broker.connection_for_write(transport_options=timeouts) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_SECONDS)
        except (OperationalError, *connection.connection_errors):
            return "failed"
    return "ok"
