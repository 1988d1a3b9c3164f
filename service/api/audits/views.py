"""The JSON documents that the API sends for an audit and its runs."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel

from service.contracts.audits.audit import AuditDefinition, AuditRun
from service.store.audits import Audit


class AuditView(BaseModel):
    """An audit."""

    id: str
    owner: str
    """Owner of the key that made it; empty for the bootstrap key."""
    name: str
    definition: AuditDefinition
    """What it is asked to do, with its defaults; of uploaded files the name, SHA-256 and size."""
    baseline_cautions: tuple[str, ...]
    """Why limits against the pinned baseline mean little, where somebody insisted on it; sentences."""
    created_at: datetime
    updated_at: datetime
    paused: bool
    """Whether scheduled runs are held back."""
    pause_reason: str | None
    next_run_at: datetime | None
    """When the next scheduled run starts; null without a schedule, and while paused."""
    last_run: AuditRun | None
    """The newest run, which may not have ended; null before the first."""
    badge: str
    """Path of the image of the last verdict; it needs no key."""
    feed: str
    """Path of the Atom feed; it needs no key."""

    @classmethod
    def of(cls, audit: Audit) -> Self:
        """Return the view of `audit`."""
        return cls(
            id=audit.id,
            owner=audit.owner,
            name=audit.definition.name,
            definition=audit.definition,
            baseline_cautions=audit.baseline_cautions,
            created_at=audit.created_at,
            updated_at=audit.updated_at,
            paused=audit.paused,
            pause_reason=audit.pause_reason,
            next_run_at=audit.next_run_at,
            last_run=audit.last_run,
            badge=f"/v1/badges/{audit.badge_token}.svg",
            feed=f"/v1/feeds/{audit.feed_token}.atom",
        )


class AuditPage(BaseModel):
    """A page of audits by name, and the token of the next page."""

    audits: list[AuditView]
    next_page_token: str | None


class RunPage(BaseModel):
    """A page of an audit's runs, newest first, and the token of the next page."""

    runs: list[AuditRun]
    next_page_token: str | None
