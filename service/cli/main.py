"""The `headroom` command: its subcommands and options.

A command imports its code when it runs, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import (
    Calibration,
    Device,
    JobId,
    Json,
    Labelled,
    Limit,
    Memory,
    ModelFilter,
    Out,
    PageToken,
    Schemes,
    Score,
    Thresholds,
    number,
    whole_number,
)
from service.cli.running import run

app = typer.Typer(
    name="headroom",
    help="Measure what quantization does to a language model, and why.",
    epilog=(
        "Commands use the service at HEADROOM_URL. If it is not set, they use the stack that `headroom serve` runs on "
        "HEADROOM_HOME. If none runs, they start a stack and stop it at the end. "
        "Exit codes: 0 done, 1 the job failed, 2 bad usage or bad input, 3 the service cannot be reached."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
jobs = typer.Typer(help="List, show, cancel and retry jobs.", no_args_is_help=True)
reports = typer.Typer(help="List, download, compare and redraw reports.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
app.add_typer(reports, name="reports")


@app.command()
def analyze(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint directory, a hub id org/name@revision, or `sample`.")
    ],
    out: Out,
    scheme: Schemes = None,
    int8_threshold: Annotated[
        float | None,
        typer.Option(
            "--int8-threshold",
            parser=number("--int8-threshold"),
            metavar="X",
            help="Default threshold of int8: input columns that reach X stay in 16 bits; 0: none. Default: 6.0.",
        ),
    ] = None,
    calibration: Calibration = None,
    labelled: Labelled = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            "--sequences", parser=whole_number("--sequences"), metavar="N", help="Calibration sequences. Default: 16."
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            "--sequence-length",
            parser=whole_number("--sequence-length"),
            metavar="S",
            help="Tokens in each sequence. Default: 256.",
        ),
    ] = None,
    batch_sequences: Annotated[
        int | None,
        typer.Option(
            "--batch-sequences",
            parser=whole_number("--batch-sequences"),
            metavar="B",
            help="Sequences in one forward pass; fewer need less memory. Default: by the model's width.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", parser=whole_number("--seed"), metavar="K", help="Seed of the choice of sequences. Default: 0."
        ),
    ] = None,
    score: Score = None,
    bos: Annotated[
        str | None,
        typer.Option(
            "--bos",
            metavar="WHEN",
            help="BOS token before every sequence: auto (as the tokenizer does), always or never. Default: auto.",
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", metavar="NAME", help="Field or column with the text. Default: text."),
    ] = None,
    label_threshold: Annotated[
        float | None,
        typer.Option(
            "--label-threshold",
            parser=number("--label-threshold"),
            metavar="X",
            help="A prompt with a score above X is true.",
        ),
    ] = None,
    label_depth: Annotated[
        int | None,
        typer.Option(
            "--label-depth",
            parser=whole_number("--label-depth"),
            metavar="L",
            help="Take the prompts' vectors after layer L. Default: after the final norm.",
        ),
    ] = None,
    label_dimensions: Annotated[
        int | None,
        typer.Option(
            "--label-dimensions",
            parser=whole_number("--label-dimensions"),
            metavar="K",
            help="Dimensions reported for the prompts. Default: 4.",
        ),
    ] = None,
    thresholds: Thresholds = None,
    memory: Memory = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Analyze a model and download the report to DIR. Ctrl-C cancels the job."""
    from service.cli import analysis, inputs
    from service.cli.connection import WorkerOptions

    wanted = inputs.Wanted(
        model,
        out,
        tuple(scheme or ()),
        calibration,
        sequences,
        sequence_length,
        seed,
        batch_sequences=batch_sequences,
        score=score,
        bos=bos,
        text_field=text_field,
        labelled=labelled,
        label_threshold=label_threshold,
        label_depth=label_depth,
        label_dimensions=label_dimensions,
        int8_threshold=int8_threshold,
        thresholds=tuple(thresholds or ()),
        worker=WorkerOptions(memory, device),
    )
    analysis.analyze(wanted, as_json=as_json)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: HEADROOM_HOST, 127.0.0.1.")] = None,
    port: Annotated[
        int | None,
        typer.Option(
            parser=whole_number("--port", 0, 65535),
            metavar="N",
            help="Port; 0: any free port. Default: HEADROOM_PORT, 8400.",
        ),
    ] = None,
    memory: Memory = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run broker, API, scheduler and one worker on this machine, until Ctrl-C."""
    from service.cli import serving
    from service.cli.connection import WorkerOptions

    serving.serve(host=host, port=port, options=WorkerOptions(memory, device), as_json=as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker(context: typer.Context, memory: Memory = None, device: Device = None) -> None:
    """Run one Celery worker for the queue at HEADROOM_BROKER_URL. Options of `celery worker` may follow.

    A worker uses one device. On a machine with several GPUs, start one worker for each.
    """
    from service.cli import serving
    from service.cli.connection import WorkerOptions

    serving.worker(context.args, WorkerOptions(memory, device))


@jobs.command("list")
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


@jobs.command("show")
def show_job(job_id: JobId, as_json: Json = False) -> None:
    """Show one job."""
    from service.cli import resources

    resources.show_job(job_id, as_json=as_json)


@jobs.command("cancel")
def cancel_job(job_id: JobId, as_json: Json = False) -> None:
    """Cancel a job that has not ended."""
    from service.cli import resources

    resources.change_job(job_id, "cancel", as_json=as_json)


@jobs.command("retry")
def retry_job(job_id: JobId, as_json: Json = False) -> None:
    """Queue a failed or cancelled job again. A worker must run: see `headroom serve`."""
    from service.cli import resources

    resources.change_job(job_id, "retry", as_json=as_json)


@reports.command("list")
def list_reports(
    model: ModelFilter = None, limit: Limit = 50, page_token: PageToken = None, as_json: Json = False
) -> None:
    """List reports, newest first."""
    from service.cli import resources

    resources.list_reports(model=model, limit=limit, token=page_token, as_json=as_json)


@reports.command("download")
def download_report(
    report_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the report (the id of its job).")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Download a report into DIR."""
    from service.cli import resources

    resources.download_report(report_id, out, as_json=as_json)


@reports.command("render")
def render_report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a report.")],
    density: Annotated[
        bool, typer.Option("--density", help="Draw densities instead of counts in the histograms of labeled prompts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Redraw the figures and the page of a report from its tables. Needs neither the model nor torch."""
    from service.cli import drawing

    drawing.render(directory, density=density, as_json=as_json)


@reports.command("compare")
def compare_reports(
    report: Annotated[
        list[str],
        typer.Argument(metavar="REPORT...", help="Ids or directories of 2 to 8 reports; the first is the baseline."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the comparison: new or empty.")],
    as_json: Json = False,
) -> None:
    """Compare reports with the first: range, outlier dimensions, errors and divergence."""
    from service.cli import drawing

    drawing.compare(report, out, as_json=as_json)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(app, sys.argv[1:]))
