"""Who asks, and what that caller may see.

Jobs and audits have an owner, and with them everything that belongs to them: reports, events, runs, alerts, webhooks.
A caller sees what is theirs; an administrator sees everything. What was there before there were owners, and what the
bootstrap key makes, has the owner `NOBODY` and is thus the administrators'.
"""

from dataclasses import dataclass
from typing import Literal

Scope = Literal["submit", "read", "admin"]
"""`read`: GET requests. `submit`: requests that make or change something. `admin`: both, for all owners, and keys."""
SCOPES: tuple[Scope, ...] = ("submit", "read", "admin")
OWNER = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
"""Names of keys and of owners."""
NOBODY = ""


@dataclass(frozen=True)
class Limits:
    """How much of the service one owner may use."""

    queued_jobs: int
    """Jobs in the queue at a time."""
    upload_bytes: int
    """Bytes of files uploaded in a day."""


@dataclass(frozen=True)
class Access:
    """Whose what a caller makes is, and whether the caller sees what others own."""

    owner: str
    everything: bool = False
    limits: Limits | None = None
    """None: there are none."""


EVERYTHING = Access(NOBODY, everything=True)
"""Of the scheduler, of the workers and of the bootstrap key."""


def access_of_owner(owner: str) -> Access:
    """Return what is done on behalf of an owner, such as the runs of their audits; `NOBODY` sees everything."""
    return Access(owner, everything=owner == NOBODY)
