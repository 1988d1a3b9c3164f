"""API keys: make, list, revoke. Every call needs a key of the scope `admin`."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Path, Response, status
from pydantic import AwareDatetime, BaseModel, Field

from service.api.bodies import UniqueKeys
from service.api.dependencies import PRINTABLE, FromApp
from service.contracts.key_limits import KeyLimits
from service.contracts.record import Frozen
from service.store.owners.access import OWNER, Scope
from service.store.owners.key_records import Key

router = APIRouter(prefix="/v1/keys", route_class=UniqueKeys)

Name = Annotated[str, Field(pattern=f"^{OWNER}$")]


class KeyRequest(Frozen):
    """A key to make."""

    name: Name
    """Of all keys that are not revoked, one has it."""
    owner: Name | None = None
    """Whose what the key makes is; null: the name. Keys with the same owner see the same."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=3)]
    """`read`: GET requests. `submit`: requests that make or change something. `admin`: all, of all owners, and keys."""
    expires_at: AwareDatetime | None = None
    """Since then the key is not accepted; null: never."""
    limits: KeyLimits = KeyLimits()
    """Limits of this key in place of the service's; not for the scope `admin`, which has none."""


class KeyView(BaseModel):
    """A key, without the key itself."""

    id: str
    name: str
    owner: str
    prefix: str
    """The key's first characters."""
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute; null before the first use."""
    revoked_at: datetime | None
    limits: KeyLimits
    """Limits of this key in place of the service's."""

    @classmethod
    def of(cls, key: Key) -> Self:
        """Return the view of `key`."""
        return cls(**vars(key))


class NewKey(KeyView):
    """A key that was made now."""

    key: str
    """The key itself, which is shown this once."""


class KeyList(BaseModel):
    """All keys, the newest first."""

    keys: list[KeyView]


@router.post("", status_code=status.HTTP_201_CREATED)
def create(backend: FromApp, body: KeyRequest, response: Response) -> NewKey:
    """Make a key. The answer has the key itself, which the service does not keep."""
    response.headers["Cache-Control"] = "no-store"
    key, plain = backend.keys.create(
        body.name, body.scopes, owner=body.owner, expires_at=body.expires_at, limits=body.limits
    )
    return NewKey(**vars(key), key=plain)


@router.get("")
def list_keys(backend: FromApp) -> KeyList:
    """Return all keys, the newest first, also those that expired or were revoked."""
    return KeyList(keys=[KeyView.of(key) for key in backend.keys.list()])


@router.delete("/{key}")
def revoke(
    backend: FromApp,
    key: Annotated[str, Path(max_length=64, pattern=PRINTABLE, description="Name or id of the key.")],
) -> KeyView:
    """Let a key be accepted no more; by other processes of the API for 5 more seconds at most.

    What it made stays, and belongs to its owner.
    """
    return KeyView.of(backend.keys.revoke(key))
