"""Frozen records of API keys, and those that were verified a moment ago."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from service.contracts.key_limits import KeyLimits
from service.store.owners.access import SCOPES, Access, Scope
from service.store.owners.tables import KeyRow

KEPT_SECONDS = 5.0
"""How long a process accepts a key without asking the database: a key that another process revoked is accepted so long
at most, and one that this process revoked is refused at once."""
MOST_KEPT = 10_000
"""Keys; the one that was verified the longest ago is forgotten first."""

NO_LIMITS = KeyLimits()
"""Of a key that has none of its own."""


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
    limits: KeyLimits = NO_LIMITS

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


def key_of(row: KeyRow) -> Key:
    """Return the record of a row."""
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
        limits=KeyLimits.model_construct(**{name: getattr(row, name) for name in KeyLimits.model_fields}),
    )


class VerifiedKeys:
    """Keys that were verified a moment ago, by their hashes; safe to use from several threads."""

    def __init__(self, seconds: float = KEPT_SECONDS, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._kept: OrderedDict[str, tuple[Key, float]] = OrderedDict()
        """Keys, and until when they are kept."""
        self._lock = Lock()
        self.revocations = 0
        """How often a key was forgotten; a key that was looked up before one of them may be that one."""

    def get(self, sha256: str) -> Key | None:
        """Return a key that was verified a moment ago."""
        key, until = self._kept.get(sha256, (None, 0.0))
        return key if self._now() < until else None

    def add(self, sha256: str, key: Key, left: float, revocations: int) -> None:
        """Keep a key that expires in `left` seconds, unless a key was revoked since `revocations` was read."""
        with self._lock:
            if revocations != self.revocations:
                return
            self._kept[sha256] = key, self._now() + min(self._seconds, left)
            self._kept.move_to_end(sha256)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)

    def forget(self) -> None:
        """Forget all keys, because one was revoked."""
        with self._lock:
            self.revocations += 1
            self._kept.clear()
