"""`headroom audits`: models watched over time and held to limits."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.commands.alerts import Name, alerts, webhooks
from service.cli.commands.audit_options import AuditOptions
from service.cli.commands.option_groups import with_options
from service.cli.options import Json, Limit, PageToken, whole_option

app = typer.Typer(
    name="audits", help="Watch models over time: make, change, show, run and remove audits.", no_args_is_help=True
)
app.add_typer(alerts)
app.add_typer(webhooks)

Force = Annotated[
    bool,
    typer.Option("--force", help="Accept a pinned baseline that does not fit; the audit then states why."),
]


@app.command()
@with_options(AuditOptions)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new audit: a-z, 0-9 and -.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A checkpoint directory, a hub id org/name@branch, or `sample`."),
    ] = None,
    *,
    options: AuditOptions,
    force: Force = False,
    calibrate: Annotated[
        int | None,
        whole_option(
            "--calibrate",
            "K",
            "Measure the baseline's model on K further seeds, and show which limits lie inside the noise.",
            least=2,
            most=64,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an audit."""
    from service.cli.audits import resources

    resources.create(name, model, options, force=force, seeds=calibrate, as_json=as_json)


@app.command()
@with_options(AuditOptions)
def edit(
    name: Name,
    rename: Annotated[str | None, typer.Option("--name", metavar="NEW", help="New name.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The model.")] = None,
    *,
    options: AuditOptions,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Change some keys of an audit; a repeatable option replaces the whole list. `--set KEY=null` sets the default."""
    from service.cli.audits import resources

    resources.edit(name, rename, model, options, force=force, as_json=as_json)


@app.command("list")
def list_audits(limit: Limit = 50, page_token: PageToken = None, as_json: Json = False) -> None:
    """List audits by name."""
    from service.cli.audits import resources

    resources.list_audits(limit=limit, token=page_token, as_json=as_json)


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show one audit."""
    from service.cli.audits import resources

    resources.show(name, as_json=as_json)


@app.command()
def run(
    name: Name,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the verdict: exit status 4 for fail, 1 for error, else 0.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run an audit now, also a paused one. Ctrl-C stops the waiting, not the run."""
    from service.cli.audits import waiting

    return waiting.run(name, wait=wait, as_json=as_json)


@app.command()
def pause(
    name: Name,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; shown with the audit.")] = None,
    as_json: Json = False,
) -> None:
    """Hold back an audit's scheduled runs."""
    from service.cli.audits import resources

    resources.pause(name, reason, as_json=as_json)


@app.command()
def resume(name: Name, as_json: Json = False) -> None:
    """Let an audit's scheduled runs start again; missed runs are not made up for."""
    from service.cli.audits import resources

    resources.resume(name, as_json=as_json)


@app.command()
def delete(name: Name, as_json: Json = False) -> None:
    """Remove an audit with its runs. Its reports stay."""
    from service.cli.audits import resources

    resources.delete(name, as_json=as_json)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with a list `audits`.")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove the audits that are not in FILE.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make the audits as FILE says, after showing what that changes."""
    from service.cli.audits import applying

    applying.apply(file, prune=prune, dry_run=dry_run, force=force, as_json=as_json)


@app.command()
def history(
    name: Name,
    figure: Annotated[
        str | None,
        typer.Option("--figure", metavar="F", help="Only this figure, such as int8.kl_divergence. Default: all."),
    ] = None,
    runs: Annotated[
        int,
        whole_option("--runs", "N", "The newest N runs.", least=1, most=10_000),
    ] = 365,
    table: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the history as a table.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Draw it, as SVG and PNG: a new or empty directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the limited figures of an audit over its runs, with steps and what changed at them."""
    from service.cli.audits import history
    from service.cli.audits.audit_path import path_of

    history.show_history(path_of(name), figure=figure, runs=runs, table=table, out=out, as_json=as_json)


@app.command()
def calibrate(
    name: Name,
    seeds: Annotated[
        int,
        whole_option("--seeds", "K", "Further calibration seeds.", least=2, most=64),
    ] = 4,
    as_json: Json = False,
) -> None:
    """Measure the noise of an audit's limits on further calibration seeds; what is measured already is not repeated."""
    from service.cli.audits import calibrating

    calibrating.calibrate(name, seeds, as_json=as_json)
