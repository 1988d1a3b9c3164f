"""What the routes work with, handed to each of them by FastAPI."""

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request

from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.jobs import JobStore
from service.store.keys import KeyStore


@dataclass(frozen=True)
class Rooms:
    """The parts of the service behind the API."""

    settings: Settings
    store: JobStore
    artifacts: ArtifactStore
    keys: KeyStore
    broker: Celery | None
    """Sends to the queue; None where the scheduler alone does."""


def _rooms(request: Request) -> Rooms:
    rooms = request.app.state.rooms
    assert isinstance(rooms, Rooms)
    return rooms


Within = Annotated[Rooms, Depends(_rooms)]
