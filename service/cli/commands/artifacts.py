"""`headroom artifacts`: the files that a service keeps."""

from typing import Annotated

import typer

from service.cli.options import Json

app = typer.Typer(name="artifacts", help="Copy the files of a service to another place.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `copy` a subcommand, though it is the only one."""


@app.command("copy")
def copy_artifacts(
    url: Annotated[str, typer.Argument(metavar="TO_URL", help="s3://BUCKET/PREFIX or file:///DIRECTORY.")],
    as_json: Json = False,
) -> None:
    """Copy the files at HEADROOM_ARTIFACTS_URL, or in HEADROOM_HOME, to TO_URL. Stop the service before.

    Every file is checked against its SHA-256. Run it again after an interruption: what is there is not sent again.
    """
    from service.cli import copying

    copying.copy_artifacts(url, as_json=as_json)
