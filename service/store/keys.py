"""API keys. A key is random and long, so its plain SHA-256 is enough to keep; the key itself is shown once."""

import hashlib
import secrets

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict
from service.store.tables import KeyRow
from service.store.transactions import Transactions

PREFIX = "hr_"
"""Every key begins with it, so that one that was published by mistake can be found by a scanner."""


class KeyStore(Transactions):
    """The keys that the API accepts."""

    def add(self, name: str) -> str:
        """Make a key and return it in plain text. Raises Conflict when the name is taken."""
        plain = PREFIX + secrets.token_urlsafe(32)
        try:
            with self._write() as session:
                session.add(KeyRow(name=name, sha256=_hash(plain), created_at=self._clock()))
        except IntegrityError as error:
            raise Conflict(f"name: {name!r} is already the name of a key; allowed: any other name") from error
        return plain

    def ensure(self, name: str, plain: str) -> None:
        """Make `plain` the key called `name`, in place of any other key of that name."""
        with self._write() as session:
            row = session.get(KeyRow, name)
            if row is not None and row.sha256 == _hash(plain):
                return
            session.execute(delete(KeyRow).where(or_(KeyRow.name == name, KeyRow.sha256 == _hash(plain))))
            session.add(KeyRow(name=name, sha256=_hash(plain), created_at=self._clock()))

    def verify(self, plain: str) -> str | None:
        """Return the name of a key, or None when it is not known."""
        with self._read() as session:
            return session.scalar(select(KeyRow.name).where(KeyRow.sha256 == _hash(plain)))


def _hash(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
