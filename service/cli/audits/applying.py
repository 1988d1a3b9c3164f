"""`headroom audits apply`: makes the audits of the service what a file says.

Everything is checked and shown before anything is changed. What a change that is refused halfway leaves behind, the
next call completes: it changes only what differs.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.cli import output
from service.cli.audits.audit_file import Entry, read_audits
from service.cli.audits.difference import Difference, differences, written
from service.cli.client import Client, Document
from service.cli.connection import connect
from service.cli.running import Refused
from service.settings import settings

_PAGE = 200
_DONE = {"create": "created", "change": "changed", "remove": "removed"}


def apply(file: Path, *, prune: bool, dry_run: bool, force: bool, as_json: bool) -> None:
    """Create and change the audits of a file, and with `prune` remove the caller's others; first show the difference.

    Raises InvalidRequest, with the line of the file, before anything is changed.
    """
    entries = read_audits(file, settings().max_upload_bytes)
    with connect(workers=False) as service:
        wanted = {entry.name: _definition(service.client, entry, force=force) for entry in entries}
        listed = differences(_present(service.client), wanted, prune=prune)
        for line in written(listed):
            if as_json:
                print(line, file=sys.stderr)
            else:
                output.line(output.results(), line)
        if not dry_run:
            _act(service.client, entries, listed, force=force)
    if as_json:
        output.document({"dry_run": dry_run, "audits": [_document(one) for one in listed]})
        return
    output.line(output.results(), _summary(listed, dry_run=dry_run))


def _definition(client: Client, entry: Entry, *, force: bool) -> Document:
    """Return the definition that an entry makes, as the service writes it, without storing anything."""
    try:
        return client.change("PUT", f"/v1/audits/{entry.name}", entry.body, validate_only=True, force=force)
    except Refused as error:
        if not error.errors:
            raise
        first = error.errors[0]
        raise entry.refusal(str(first["field"]), first["value"], str(first["allowed"]), str(error)) from error


def _present(client: Client) -> dict[str, Any]:
    """Return the definitions of the caller's audits by name; an administrator sees those of other owners too."""
    return {audit["name"]: audit["definition"] for audit in _audits(client)}


def _audits(client: Client) -> Iterator[Document]:
    token = None
    while True:
        page = client.get("/v1/audits", page_size=_PAGE, page_token=token, own=True)
        yield from page["audits"]
        token = page["next_page_token"]
        if token is None:
            return


def _act(client: Client, entries: Sequence[Entry], listed: Sequence[Difference], *, force: bool) -> None:
    bodies = {entry.name: entry.body for entry in entries}
    for one in listed:
        if one.action in ("create", "change"):
            client.change("PUT", f"/v1/audits/{one.name}", bodies[one.name], force=force)
        elif one.action == "remove":
            client.change("DELETE", f"/v1/audits/{one.name}")


def _document(one: Difference) -> Document:
    return {"name": one.name, "action": one.action, "changes": [change._asdict() for change in one.changes]}


def _summary(listed: Sequence[Difference], *, dry_run: bool) -> str:
    counts = [f"{sum(one.action == action for one in listed)} {word}" for action, word in _DONE.items()]
    return f"{'Nothing was changed (--dry-run). Would be done: ' if dry_run else ''}{', '.join(counts)}."
