"""Whether the artifact store is the one that belongs to the database.

A random id is written once into the database and into the store, and every process compares them when it starts.
Without that, processes with different stores would accept jobs whose reports nobody can download, and files that
belong to another database would be collected as garbage.
"""

import secrets

from service.errors import InvalidRequest, StoreFailed
from service.store.artifacts import ID_KEY, ArtifactStore
from service.store.database import insert_missing
from service.store.tables import StoreRow
from service.store.transactions import Transactions

_ONE = 1
_NAME = "HEADROOM_ARTIFACTS_URL"


class StoreIdentity(Transactions):
    """The artifact store's id in the database."""

    def compare(self, artifacts: ArtifactStore) -> None:
        """Write the ids at the first start; afterwards return if they are the same.

        Raises InvalidRequest for a store that is not the database's, and StoreFailed.
        """
        store_id, was_written = self._of_database()
        try:
            present = artifacts.read_id()
            if present is None and not was_written:
                artifacts.write_id(store_id)
                present = artifacts.read_id()
        except OSError as error:
            raise StoreFailed(f"{artifacts.url}: {ID_KEY!r} cannot be read or written: {error}") from error
        if present != store_id:
            raise _another(artifacts.url, present, store_id)
        if not was_written:
            self._note_written()
        artifacts.id = store_id

    def _of_database(self) -> tuple[str, bool]:
        """Return the database's id of the store, made if there is none, and whether it was in the store before."""
        with self._write() as session:
            insert_missing(session, StoreRow, number=_ONE, id=secrets.token_hex(16), written=False)
            row = session.get_one(StoreRow, _ONE)
            return row.id, row.written

    def _note_written(self) -> None:
        with self._write() as session:
            session.get_one(StoreRow, _ONE).written = True


def _another(url: str, present: str | None, expected: str) -> InvalidRequest:
    actual = f"its id is {present}" if present else "it has no id"
    return InvalidRequest(
        _NAME,
        url,
        "the artifact store of this database, the same URL for the API, the scheduler and every worker (or set "
        "HEADROOM_DATABASE_URL to the database of this store; a "
        f"store that no database uses any longer is taken over after its file {ID_KEY!r} is removed)",
        problem=f"is not the artifact store of this database: {actual}, and the database knows {expected}",
    )
