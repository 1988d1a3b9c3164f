"""API keys. A key has 256 random bits, so its plain SHA-256 is enough to keep; the key itself is shown once.

Keys are looked up by their hash: how long that takes tells nothing of a key that was not presented.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.exc import IntegrityError

from service.contracts.key_limits import KeyLimits
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.hosts.clock import Clock
from service.store.job_records import new_id
from service.store.owners.access import EVERYTHING, NOBODY, OWNER, SCOPES, Scope
from service.store.owners.key_records import Key, VerifiedKeys, key_of
from service.store.owners.tables import KeyRow
from service.store.owners.visibility import seeing
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


class KeyStore(Transactions):
    """The keys that the API accepts: those of the database, and the bootstrap key of the settings."""

    def __init__(self, engine: Engine, clock: Clock | None = None, *, bootstrap: str | None = None) -> None:
        super().__init__(engine, clock)
        self._bootstrap = bootstrap
        self._verified = VerifiedKeys()

    def create(
        self,
        name: str,
        scopes: Sequence[Scope],
        *,
        owner: str | None = None,
        expires_at: datetime | None = None,
        limits: KeyLimits | None = None,
    ) -> tuple[Key, str]:
        """Make a key; return it and its plain text.

        `owner` is the name by default. Raises Conflict for the name of a key that is not revoked, and InvalidRequest
        for a name, owner, scopes, expiry or limits that are not allowed.
        """
        now = self._clock()
        owner = name if owner is None else owner
        own_limits = {} if limits is None else limits.model_dump(exclude_none=True)
        _check(name, owner, scopes, expires_at, now)
        _check_limits(own_limits, scopes)
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
            **own_limits,
        )
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                return key_of(row), plain
        except IntegrityError as error:
            raise _name_taken(name, owner) from error

    def list(self) -> list[Key]:
        """Return all keys, the newest first."""
        with self._read() as session:
            return [key_of(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.id.desc()))]

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
            key = key_of(row)
        self._verified.forget()
        return key

    def verified(self, plain: str) -> Key | None:
        """Return the key that was presented if it was verified a moment ago; the database is not asked."""
        return self._verified.get(_hash(plain))

    def verify(self, plain: str) -> Key | None:
        """Return the key that was presented, and note its use; None where it is unknown, expired or revoked.

        Whoever asks, through whatever view of the store.
        """
        sha256, revocations = _hash(plain), self._verified.revocations
        key = self._look_up(sha256)
        if key is not None:
            left = math.inf if key.expires_at is None else (key.expires_at - self._clock()).total_seconds()
            self._verified.add(sha256, key, left, revocations)
        return key

    def _look_up(self, sha256: str) -> Key | None:
        if self._bootstrap is not None and hmac.compare_digest(sha256, _hash(self._bootstrap)):
            now = self._clock()
            return Key("bootstrap", BOOTSTRAP, NOBODY, "", ("admin",), now, None, now, None)
        with self._read_once() as session, seeing(session, EVERYTHING):
            row = session.scalars(select(KeyRow).where(KeyRow.sha256 == sha256)).one_or_none()
            key = None if row is None else key_of(row)
        now = self._clock()
        if key is None or not key.is_valid(now):
            return None
        if key.last_used_at is None or now - key.last_used_at >= USED_EVERY:
            with self._write() as session, seeing(session, EVERYTHING):
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


def _name_taken(name: str, owner: str) -> Conflict:
    return Conflict(
        f"name: {name!r} is already the name of a key; allowed: any other name, such as '{name}-2', with "
        f"owner {owner!r} if both keys are to see the same"
    )


def _check_limits(limits: Mapping[str, object], scopes: Sequence[Scope]) -> None:
    if limits and "admin" in scopes:
        name, value = next(iter(limits.items()))
        allowed = "limits only without the scope admin, for keys of which there are none"
        raise InvalidRequest(f"limits.{name}", value, allowed)


def _hash(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
