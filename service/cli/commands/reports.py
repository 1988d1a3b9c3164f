"""`headroom reports`: the API's reports, and figures drawn on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import Json, Limit, ModelFilter, Out, PageToken

app = typer.Typer(name="reports", help="List, download, compare and redraw reports.", no_args_is_help=True)


@app.command("list")
def list_reports(
    model: ModelFilter = None, limit: Limit = 50, page_token: PageToken = None, as_json: Json = False
) -> None:
    """List reports, newest first."""
    from service.cli import resources

    resources.list_reports(model=model, limit=limit, token=page_token, as_json=as_json)


@app.command("download")
def download_report(
    report_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the report (the id of its job).")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Download a report into DIR."""
    from service.cli import resources

    resources.download_report(report_id, out, as_json=as_json)


@app.command("render")
def render_report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a report.")],
    density: Annotated[
        bool, typer.Option("--density", help="Draw densities instead of counts in the histograms of labeled prompts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Redraw the figures and the page of a report from its tables. Needs neither the model nor torch."""
    from service.cli.reports import drawing

    drawing.render(directory, density=density, as_json=as_json)


@app.command("compare")
def compare_reports(
    report: Annotated[
        list[str],
        typer.Argument(metavar="REPORT...", help="Ids or directories of 2 to 8 reports; the first is the baseline."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the comparison: new or empty.")],
    as_json: Json = False,
) -> None:
    """Compare reports with the first: range, outlier dimensions, errors and divergence."""
    from service.cli.reports import drawing

    drawing.compare(report, out, as_json=as_json)
