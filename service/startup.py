"""Puts the stores together from the settings, and reports why a process cannot start.

The API, the scheduler and the workers all start with it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Engine

from service.errors import InvalidRequest, ServiceUnreachable, StoreFailed
from service.settings import Settings
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.store.alerts import AlertStore
from service.store.artifacts import ArtifactStore
from service.store.audits import AuditStore
from service.store.database import make_engine, upgrade
from service.store.files.garbage import Garbage
from service.store.files.identity import StoreIdentity
from service.store.files.removals import Removals
from service.store.files.uploads import UploadStore
from service.store.hosts.event_news import EventNews
from service.store.hosts.single_host import SingleHost
from service.store.hosts.workers import WorkerStore
from service.store.jobs import JobStore
from service.store.owners.keys import KeyStore
from service.store.runs.store import RunStore


class Stores(NamedTuple):
    """What the service keeps: stores in one database, and the files by content."""

    jobs: JobStore
    artifacts: ArtifactStore
    keys: KeyStore
    audits: AuditStore
    alerts: AlertStore
    runs: RunStore
    uploads: UploadStore
    removals: Removals
    garbage: Garbage
    news: EventNews
    workers: WorkerStore


def open_stores(settings: Settings) -> Stores:
    """Return the stores, after bringing the database to the newest schema.

    Raises InvalidRequest for a URL that is not allowed, for an artifact store that belongs to another database, and for
    an SQLite file that another host uses; ServiceUnreachable and StoreFailed when one does not answer.
    """
    engine = make_engine(settings.database)
    host = SingleHost(engine) if engine.dialect.name == "sqlite" else None
    if host is not None:
        host.check()  # before a migration, which would change what the other host uses
    upgrade(engine)
    if host is not None:
        host.write()
        host.keep()
    stores = stores_on(engine, settings)
    StoreIdentity(engine).compare(stores.artifacts)
    return stores


def stores_on(engine: Engine, settings: Settings) -> Stores:
    """Return the stores on a database at the newest schema."""
    artifacts = open_artifacts(settings)
    audits = AuditStore(engine, artifacts, reach=settings.reach)
    bootstrap = settings.api_key.get_secret_value() if settings.api_key else None
    return Stores(
        jobs=JobStore(engine),
        artifacts=artifacts,
        keys=KeyStore(engine, bootstrap=bootstrap),
        audits=audits,
        alerts=AlertStore(engine),
        runs=RunStore(engine),
        uploads=UploadStore(engine, quota_bytes=int(settings.file_quota_bytes), keep_seconds=settings.file_seconds),
        removals=Removals(engine, audits.report_is_baseline),
        garbage=Garbage(engine, artifacts),
        news=EventNews(engine),
        workers=WorkerStore(engine),
    )


def open_artifacts(settings: Settings) -> ArtifactStore:
    """Return the artifact store in use. Raises InvalidRequest for a URL that is not allowed, and StoreFailed."""
    cache = FileCache(settings.home / "cache" / "artifacts", int(settings.artifact_cache_bytes))
    return ArtifactStore(open_storage(settings.artifacts_place, cache))


def keep_private() -> None:
    """Let nobody but this user read the files that this process and its children make: models and texts are secrets."""
    os.umask(0o077)


@contextmanager
def reporting_failure(program: str) -> Iterator[None]:
    """End the process with a message when the code inside cannot start `program`.

    The exit status is 2 for a setting that is not allowed, and 3 when the database or the artifact store does
    not answer.
    """
    try:
        yield
    except (InvalidRequest, ServiceUnreachable, StoreFailed) as error:
        print(f"headroom {program}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidRequest) else 3)
