"""`headroom jobs`: the API's jobs."""

from typing import Annotated

import typer

from service.cli.options import JobId, Json, Limit, ModelFilter, PageToken

app = typer.Typer(name="jobs", help="List, show, cancel, retry and delete jobs.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    status: Annotated[
        str | None,
        typer.Option(help="List only jobs with this status: queued, running, succeeded, failed or cancelled."),
    ] = None,
    model: ModelFilter = None,
    limit: Limit = 50,
    page_token: PageToken = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from service.cli import resources

    resources.list_jobs(status=status, model=model, limit=limit, token=page_token, as_json=as_json)


@app.command("show")
def show_job(job_id: JobId, as_json: Json = False) -> None:
    """Show one job."""
    from service.cli import resources

    resources.show_job(job_id, as_json=as_json)


@app.command("cancel")
def cancel_job(job_id: JobId, as_json: Json = False) -> None:
    """Cancel a job that has not ended."""
    from service.cli import resources

    resources.change_job(job_id, "cancel", as_json=as_json)


@app.command("retry")
def retry_job(job_id: JobId, as_json: Json = False) -> None:
    """Queue a failed or cancelled job again. A worker must run: see `headroom serve`."""
    from service.cli import resources

    resources.change_job(job_id, "retry", as_json=as_json)


@app.command("delete")
def delete_jobs(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs that are not running.")],
    as_json: Json = False,
) -> None:
    """Delete jobs with their reports. Stops at the first that cannot be deleted."""
    from service.cli import resources

    resources.delete_jobs(job_ids, as_json=as_json)
