"""`headroom audits alerts` and `headroom audits webhooks`: the alerts of audits, and their delivery."""

from typing import Annotated

import typer

from service.cli.options import Json, Limit, PageToken, whole_option

alerts = typer.Typer(name="alerts", help="List, show, acknowledge and dismiss alerts.", no_args_is_help=True)
webhooks = typer.Typer(
    name="webhooks", help="Show secrets and deliveries of webhooks and e-mail; replay deliveries.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the audit.")]
AlertId = Annotated[str, typer.Argument(metavar="ID", help="Id of the alert.")]
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="Id of the webhook.")]
Author = Annotated[
    str | None, typer.Option("--author", metavar="NAME", help="Your name. Default: the user of this system.")
]


@alerts.command("list")
def list_alerts(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only alerts of this audit.")] = None,
    closed: Annotated[bool, typer.Option("--all", help="List closed alerts too.")] = False,
    limit: Limit = 50,
    page_token: PageToken = None,
    as_json: Json = False,
) -> None:
    """List alerts, newest first."""
    from service.cli.audits import alerts

    alerts.list_alerts(name, closed=closed, limit=limit, token=page_token, as_json=as_json)


@alerts.command("show")
def show_alert(alert_id: AlertId, as_json: Json = False) -> None:
    """Show one alert."""
    from service.cli.audits import alerts

    alerts.show(alert_id, as_json=as_json)


@alerts.command()
def acknowledge(
    alert_id: AlertId,
    author: Author = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="A note about the alert.")] = "",
    as_json: Json = False,
) -> None:
    """Note that you have seen an alert. It stays open."""
    from service.cli.audits import alerts

    alerts.acknowledge(alert_id, author, note, as_json=as_json)


@alerts.command()
def dismiss(
    alert_id: AlertId,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why the alert is dismissed.")],
    until: Annotated[
        str,
        typer.Option(
            "--until", metavar="TIME", help="When the dismissal expires: a date, or a date and time. Default zone: UTC."
        ),
    ],
    author: Author = None,
    as_json: Json = False,
) -> None:
    """Send no messages about an alert until the dismissal expires; then again, if its figure is still broken."""
    from service.cli.audits import alerts

    alerts.dismiss(alert_id, author, reason, until, as_json=as_json)


@webhooks.command("list")
def list_webhooks(name: Name, as_json: Json = False) -> None:
    """List the webhooks of an audit."""
    from service.cli.audits import webhooks

    webhooks.list_webhooks(name, as_json=as_json)


@webhooks.command()
def secret(webhook_id: WebhookId, as_json: Json = False) -> None:
    """Show the secret with which a webhook checks its messages."""
    from service.cli.audits import webhooks

    webhooks.secret(webhook_id, as_json=as_json)


@webhooks.command()
def rotate(
    webhook_id: WebhookId,
    overlap: Annotated[
        int,
        whole_option(
            "--overlap",
            "HOURS",
            "Hours for which messages are signed with the former secret too. Default: 24.",
            least=0,
            most=720,
        ),
    ] = 24,
    as_json: Json = False,
) -> None:
    """Replace the secret of a webhook, and show the new one."""
    from service.cli.audits import webhooks

    webhooks.rotate(webhook_id, overlap, as_json=as_json)


@webhooks.command()
def enable(webhook_id: WebhookId, as_json: Json = False) -> None:
    """Send messages again to a webhook that answered 410."""
    from service.cli.audits import webhooks

    webhooks.enable(webhook_id, as_json=as_json)


@webhooks.command()
def deliveries(name: Name, limit: Limit = 50, page_token: PageToken = None, as_json: Json = False) -> None:
    """List the messages of an audit to webhooks and mailboxes, newest first, with the last attempt at each."""
    from service.cli.audits import webhooks

    webhooks.list_deliveries(name, limit=limit, token=page_token, as_json=as_json)


@webhooks.command()
def replay(
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the delivery.")], as_json: Json = False
) -> None:
    """Send a message again, under the same id."""
    from service.cli.audits import webhooks

    webhooks.replay(delivery_id, as_json=as_json)
