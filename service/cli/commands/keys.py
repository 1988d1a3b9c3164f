"""`headroom keys`: the API's keys."""

from typing import Annotated

import typer

from service.cli.options import Json

app = typer.Typer(name="keys", help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", metavar="SCOPE", help="What it may be used for: submit, read or admin. Repeatable."),
    ],
    owner: Annotated[
        str | None,
        typer.Option(help="Owner of what is made with the key; keys with the same owner see the same. Default: NAME."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="When it expires: 90d, 12h or a time such as 2027-01-31T00:00Z."),
    ] = None,
    queued_jobs: Annotated[int | None, typer.Option(help="Jobs of its owner that may be in the queue.")] = None,
    running_jobs: Annotated[
        int | None, typer.Option(help="Jobs of its owner that run at a time; further ones wait in the queue.")
    ] = None,
    upload_bytes_per_day: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes that its owner may upload in a day, such as 2GiB.")
    ] = None,
    requests_per_second: Annotated[
        float | None, typer.Option(help="Requests with it, on average. Limits without a value are the service's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it. The service does not keep it, so it is shown this once."""
    from service.cli import api_keys

    limits = {
        "queued_jobs": queued_jobs,
        "running_jobs": running_jobs,
        "upload_bytes_per_day": upload_bytes_per_day,
        "requests_per_second": requests_per_second,
    }
    api_keys.create(name, scopes=scope, owner=owner, expires=expires, limits=limits, as_json=as_json)


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List all keys, the newest first, also those that expired or were revoked."""
    from service.cli import api_keys

    api_keys.list_keys(as_json=as_json)


@app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the key.")], as_json: Json = False
) -> None:
    """Revoke a key. What was made with it stays, and belongs to its owner."""
    from service.cli import api_keys

    api_keys.revoke(name, as_json=as_json)
