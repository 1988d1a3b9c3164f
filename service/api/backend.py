"""The parts of the service that the routes use; FastAPI passes them to each route."""

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request

from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.jobs import JobStore
from service.store.keys import KeyStore


@dataclass(frozen=True)
class Backend:
    """The parts of the service behind the API."""

    settings: Settings
    store: JobStore
    artifacts: ArtifactStore
    keys: KeyStore
    broker: Celery | None
    """Sends messages to the queue; None: only the scheduler sends them."""


def _backend(request: Request) -> Backend:
    backend = request.app.state.backend
    assert isinstance(backend, Backend)
    return backend


FromApp = Annotated[Backend, Depends(_backend)]
