"""`headroom audits webhooks`: secrets of webhooks, and the messages of audits with the history of their delivery."""

from service.cli import output
from service.cli.audits.audit_path import path_of
from service.cli.client import Document
from service.cli.connection import connect
from service.cli.resources import checked_id, more_entries

_HOUR = 3600


def list_webhooks(name: str, *, as_json: bool) -> None:
    """Print the webhooks of an audit."""
    path = path_of(name)
    with connect(workers=False) as service:
        listed = service.client.get(f"{path}/webhooks")
    if as_json:
        output.document(listed)
        return
    rows = [(one["id"], one["url"], _state(one)) for one in listed["webhooks"]]
    output.table(("id", "address", "state"), rows)


def secret(webhook_id: str, *, as_json: bool) -> None:
    """Print the secret of a webhook."""
    with connect(workers=False) as service:
        shown = service.client.get(f"/v1/webhooks/{checked_id(webhook_id)}/secret")
    _print_secret(shown, as_json=as_json)


def rotate(webhook_id: str, overlap_hours: int, *, as_json: bool) -> None:
    """Replace the secret of a webhook, and print the new one."""
    body = {"overlap_seconds": overlap_hours * _HOUR}
    with connect(workers=False) as service:
        shown = service.client.post(f"/v1/webhooks/{checked_id(webhook_id)}/rotate", body)
    _print_secret(shown, as_json=as_json)


def enable(webhook_id: str, *, as_json: bool) -> None:
    """Let a webhook get messages again, and print its state."""
    with connect(workers=False) as service:
        webhook = service.client.post(f"/v1/webhooks/{checked_id(webhook_id)}/enable")
    if as_json:
        output.document(webhook)
        return
    output.line(output.results(), f"{webhook['url']} {_state(webhook)}")


def list_deliveries(name: str, *, limit: int, token: str | None, as_json: bool) -> None:
    """Print the messages of an audit, newest first, with the last attempt at each."""
    path = path_of(name)
    with connect(workers=False) as service:
        page = service.client.get(f"{path}/deliveries", page_size=limit, page_token=token)
    if as_json:
        output.document(page)
        return
    rows = [
        (one["id"], one["created_at"][:19], one["address"], one["state"], len(one["attempts"]), _last(one))
        for one in page["deliveries"]
    ]
    output.table(("id", "made (UTC)", "address", "state", "attempts", "last attempt"), rows)
    more_entries(page)


def replay(delivery_id: str, *, as_json: bool) -> None:
    """Let a message be sent again, and print its state."""
    with connect(workers=False) as service:
        delivery = service.client.post(f"/v1/deliveries/{checked_id(delivery_id)}/replay")
    if as_json:
        output.document(delivery)
        return
    output.line(output.results(), f"{delivery['id']} to {delivery['address']}: {delivery['state']}")


def _print_secret(shown: Document, *, as_json: bool) -> None:
    if as_json:
        output.document(shown)
        return
    output.line(output.results(), shown["secret"])


def _state(webhook: Document) -> str:
    if webhook["disabled_at"]:
        return f"disabled since {webhook['disabled_at'][:19]}: {webhook['disabled_reason']}"
    return "gets messages"


def _last(delivery: Document) -> str:
    return delivery["attempts"][-1]["detail"] if delivery["attempts"] else ""
