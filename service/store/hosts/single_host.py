"""Keeps an SQLite database to one host.

The processes of one host share memory through which SQLite's write-ahead log works. A process on another host does not
see that memory, and what both write damages the file. So every process writes the name of its host into the database,
at its start and now and then, and none starts while the name there is another's and fresh.
"""

import logging
import platform
import time
from datetime import timedelta
from pathlib import Path
from threading import Thread

from sqlalchemy import Engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from service.errors import InvalidRequest
from service.store.database import public_url, reach
from service.store.tables import HostRow
from service.store.transactions import Transactions

log = logging.getLogger(__name__)

WRITE_SECONDS = 20.0
"""Pause between two writes of the name."""
FREE_SECONDS = 90.0
"""A database whose name was last written longer ago than this may be taken over by another host."""
_ONE = 1


class SingleHost(Transactions):
    """The host of an SQLite database; `name` and `boot` replace this one's in tests."""

    def __init__(self, engine: Engine, name: str = "", boot: str = "") -> None:
        super().__init__(engine)
        self._name = name or platform.node()
        self._boot = boot or _boot_id()

    def check(self) -> None:
        """Raise InvalidRequest when another host uses the database, and ServiceUnreachable when that does not answer.

        Nothing is written, and the schema may be of any version.
        """
        reach(self._reader)
        if inspect(self._reader).has_table(HostRow.__tablename__):
            with self._read() as session:
                self._refuse_other(session.get(HostRow, _ONE))

    def write(self) -> None:
        """Write this host's name. Raises InvalidRequest when another host uses the database."""
        with self._write() as session:
            now = self.now()
            row = session.get(HostRow, _ONE)
            self._refuse_other(row)
            if row is None:
                row = HostRow(number=_ONE)
                session.add(row)
            row.name, row.boot, row.seen_at = self._name, self._boot, now

    def keep(self) -> None:
        """Write the name from a thread for as long as the process lives."""
        Thread(target=self._repeat, name="host of the database", daemon=True).start()

    def _repeat(self) -> None:
        while True:
            time.sleep(WRITE_SECONDS)
            try:
                self.write()
            except InvalidRequest as error:  # this host was suspended meanwhile, or its clock was set
                log.critical("two hosts use one SQLite database, which damages it; stop one of them: %s", error)
            except SQLAlchemyError as error:
                log.warning("the host's name is not written to the database: %s", error)

    def _refuse_other(self, row: HostRow | None) -> None:
        age = timedelta.max if row is None else abs(self.now() - row.seen_at)
        if row is not None and not self._is_this(row) and age < timedelta(seconds=FREE_SECONDS):
            raise self._refusal(row.name)

    def _is_this(self, row: HostRow) -> bool:
        # Containers on one kernel share memory whatever they are called; a host keeps its name when it boots again.
        return row.name == self._name or row.boot == self._boot

    def _refusal(self, other: str) -> InvalidRequest:
        return InvalidRequest(
            "HEADROOM_DATABASE_URL",
            public_url(self._reader.url),
            "an SQLite file that this host alone uses; for several hosts postgresql://user:password@host:port/database "
            f"(where no process of the other host is left, wait {FREE_SECONDS:.0f} s)",
            problem=f"is used by the host {other!r}, and SQLite serves one host only",
        )


def _boot_id() -> str:
    """Return what tells one running kernel from all others; the host's name where the system has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()
