"""`headroom keys`: the API's keys."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from service.cli import output
from service.cli.client import Document
from service.cli.connection import connect
from service.errors import InvalidRequest

_HOURS = {"h": 1, "d": 24}
_LONGEST_DIGITS = 5
_ALLOWED = "hours or days from now, such as 12h or 90d, or a time such as 2027-01-31T00:00Z"


def create(
    name: str,
    *,
    scopes: Sequence[str],
    owner: str | None,
    expires: str | None,
    limits: Mapping[str, int | float | str | None],
    as_json: bool,
) -> None:
    """Make a key, and print it; a limit of None is the service's."""
    body: Document = {"name": name, "scopes": list(scopes)}
    own = {limit: value for limit, value in limits.items() if value is not None}
    if own:
        body["limits"] = own
    if owner is not None:
        body["owner"] = owner
    if expires is not None:
        body["expires_at"] = expiry(expires, datetime.now(UTC)).isoformat()
    with connect(workers=False) as service:
        made = service.client.post("/v1/keys", body)
    if as_json:
        output.document({field: made[field] for field in ("name", "key", "scopes")})
        return
    output.line(output.results(), made["key"])


def list_keys(*, as_json: bool) -> None:
    """Print all keys."""
    with connect(workers=False) as service:
        listed = service.client.get("/v1/keys")
    if as_json:
        output.document(listed)
        return
    rows = [
        (one["name"], one["owner"], f"{one['prefix']}...", ", ".join(one["scopes"]), _used(one), _state(one), one["id"])
        for one in listed["keys"]
    ]
    output.table(("name", "owner", "key", "scopes", "last used (UTC)", "state", "id"), rows)


def revoke(name: str, *, as_json: bool) -> None:
    """Revoke a key, and print what became of it."""
    with connect(workers=False) as service:
        key = service.client.change("DELETE", f"/v1/keys/{quote(name, safe='')}")
    if as_json:
        output.document(key)
        return
    output.line(output.results(), f"{key['name']} ({key['prefix']}...) is revoked")


def expiry(text: str, now: datetime) -> datetime:
    """Return the time that `--expires` means. Raises InvalidRequest."""
    ahead = re.fullmatch(rf"([0-9]{{1,{_LONGEST_DIGITS}}})([hd])", text, re.ASCII)
    if ahead:
        return now + timedelta(hours=int(ahead[1]) * _HOURS[ahead[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest("--expires", text, _ALLOWED) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _used(key: Document) -> str:
    return str(key["last_used_at"] or "never")[:16]


def _state(key: Document) -> str:
    if key["revoked_at"]:
        return f"revoked at {key['revoked_at'][:16]}"
    return f"expires at {key['expires_at'][:16]}" if key["expires_at"] else "valid"
