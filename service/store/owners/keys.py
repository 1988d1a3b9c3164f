"""API keys. A key has 256 random bits, so its plain SHA-256 is enough to keep; the key itself is shown once.

Keys are looked up by their hash: how long that takes tells nothing of a key that was not presented.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict, InvalidRequest, NotFound
from service.store.hosts.clock import Clock
from service.store.job_records import new_id
from service.store.owners.access import NOBODY, OWNER, SCOPES, Access, Scope
from service.store.owners.tables import KeyRow
from service.store.transactions import Transactions

PREFIX = "hr_"
"""Every key begins with it, so that one that was published by mistake can be found by a scanner."""
BOOTSTRAP = "HEADROOM_API_KEY"
LEAST_BOOTSTRAP = 32
"""Characters of the bootstrap key, which a person may have chosen."""
USED_EVERY = timedelta(minutes=1)
"""A key's last use is written this often at most."""
_KEY_BYTES = 32
_SHOWN = len(PREFIX) + 6
_ALLOWED_NAME = "1 to 64 letters, digits, '.', '_', '@' and '-', a letter or digit first"


@dataclass(frozen=True)
class Key:
    """An API key, without the key itself."""

    id: str
    name: str
    owner: str
    """Whose what it makes is."""
    prefix: str
    """Its first characters."""
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute; None before the first use."""
    revoked_at: datetime | None

    @property
    def access(self) -> Access:
        """What the key lets its holder see."""
        return Access(self.owner, everything="admin" in self.scopes)

    def is_valid(self, now: datetime) -> bool:
        """Return whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def allows(self, scope: Scope) -> bool:
        """Return whether the key may be used for requests of a scope."""
        return scope in self.scopes or "admin" in self.scopes


class KeyStore(Transactions):
    """The keys that the API accepts: those of the database, and the bootstrap key of the settings."""

    def __init__(self, engine: Engine, clock: Clock | None = None, *, bootstrap: str | None = None) -> None:
        super().__init__(engine, clock)
        self._bootstrap = bootstrap

    def create(
        self, name: str, scopes: Sequence[Scope], *, owner: str | None = None, expires_at: datetime | None = None
    ) -> tuple[Key, str]:
        """Make a key; return it and its plain text.

        `owner` is the name by default. Raises Conflict for the name of a key that is not revoked, and InvalidRequest
        for a name, owner, scopes or expiry that are not allowed.
        """
        now = self._clock()
        owner = name if owner is None else owner
        _check(name, owner, scopes, expires_at, now)
        plain = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        row = KeyRow(
            id=new_id(now),
            name=name,
            owner=owner,
            prefix=plain[:_SHOWN],
            sha256=_hash(plain),
            scopes=[scope for scope in SCOPES if scope in scopes],
            created_at=now,
            expires_at=expires_at,
        )
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                return _key(row), plain
        except IntegrityError as error:
            raise Conflict(
                f"name: {name!r} is already the name of a key; allowed: any other name, such as '{name}-2', with "
                f"owner {owner!r} if both keys are to see the same"
            ) from error

    def list(self) -> list[Key]:
        """Return all keys, the newest first."""
        with self._read() as session:
            return [_key(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.id.desc()))]

    def revoke(self, name_or_id: str) -> Key:
        """Let a key be accepted no more. Raises NotFound where no valid key has this name or id."""
        with self._write() as session:
            named = or_(KeyRow.name == name_or_id, KeyRow.id == name_or_id)
            query = select(KeyRow).where(named, KeyRow.revoked_at.is_(None)).order_by((KeyRow.id == name_or_id).desc())
            row = session.scalars(query.limit(1).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(
                    f"key: {name_or_id!r} is not the name or id of a key that is not revoked; "
                    "`headroom keys list` lists them"
                )
            row.revoked_at = self._clock()
            return _key(row)

    def verify(self, plain: str) -> Key | None:
        """Return the key that was presented, and note its use; None where it is unknown, expired or revoked."""
        sha256 = _hash(plain)
        if self._bootstrap is not None and hmac.compare_digest(sha256, _hash(self._bootstrap)):
            now = self._clock()
            return Key("bootstrap", BOOTSTRAP, NOBODY, "", ("admin",), now, None, now, None)
        with self._read() as session:
            row = session.scalars(select(KeyRow).where(KeyRow.sha256 == sha256)).one_or_none()
            key = None if row is None else _key(row)
        now = self._clock()
        if key is None or not key.is_valid(now):
            return None
        if key.last_used_at is None or now - key.last_used_at >= USED_EVERY:
            with self._write() as session:
                session.execute(update(KeyRow).where(KeyRow.id == key.id).values(last_used_at=now))
        return key

    def check(self) -> None:
        """Raise InvalidRequest for a bootstrap key that is too short, and where there is no key at all."""
        if self._bootstrap is not None:
            if len(self._bootstrap) < LEAST_BOOTSTRAP:
                allowed = f"{LEAST_BOOTSTRAP} characters or more, such as `openssl rand -hex 32` prints"
                message = f"{BOOTSTRAP}: the key has {len(self._bootstrap)} characters; allowed: {allowed}"
                raise InvalidRequest(BOOTSTRAP, "...", allowed, message=message)
            return
        now = self._clock()
        if not any(key.is_valid(now) for key in self.list()):
            allowed = f"a key of {LEAST_BOOTSTRAP} characters or more, such as `openssl rand -hex 32` prints"
            message = f"{BOOTSTRAP} is not set, and the database has no valid key; set it to {allowed}"
            raise InvalidRequest(BOOTSTRAP, None, allowed, message=message)


def _check(name: str, owner: str, scopes: Sequence[Scope], expires_at: datetime | None, now: datetime) -> None:
    for parameter, value in (("name", name), ("owner", owner)):
        if not re.fullmatch(OWNER, value):
            raise InvalidRequest(parameter, value, _ALLOWED_NAME)
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidRequest("scopes", list(scopes), f"one or more of {', '.join(SCOPES)}")
    if expires_at is not None and expires_at <= now:
        raise InvalidRequest("expires_at", expires_at.isoformat(), f"a time later than {now.isoformat()}")


def _key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        owner=row.owner,
        prefix=row.prefix,
        scopes=tuple(scope for scope in SCOPES if scope in row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


def _hash(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
