"""The `headroom` command: what may be typed, and what each thing means.

Only the surface is here. The work is imported when a command runs, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli.running import run

app = typer.Typer(
    name="headroom",
    help="What quantization will do to a language model, and why.",
    epilog=(
        "Commands talk to the service at HEADROOM_URL; without it to the stack that `headroom serve` runs on "
        "HEADROOM_HOME; without one they start a stack for as long as they run. "
        "Exit codes: 0 done, 1 the job failed, 2 bad usage or bad input, 3 the service cannot be reached."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
jobs = typer.Typer(help="Look at jobs, cancel them, try them again.", no_args_is_help=True)
reports = typer.Typer(help="List reports, download, compare and redraw them.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
app.add_typer(reports, name="reports")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report goes: a new or an empty directory.")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Hidden states past SIZE, such as 4GiB, are kept in files. Default: HEADROOM_MEMORY, 2GiB.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to compute: auto, cpu, cuda, or cuda:N for one GPU of several. Default: HEADROOM_DEVICE, auto.",
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=200, help="Most entries to print.")]
PageToken = Annotated[str | None, typer.Option("--page-token", help="Goes on where an earlier list ended.")]
ModelFilter = Annotated[str | None, typer.Option("--model", help="Only those of this model.")]


@app.command()
def analyze(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint directory, a hub id org/name@revision, or `sample`.")
    ],
    out: Out,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            metavar="SCHEME",
            help="A way of quantizing, as [LABEL=]SCHEME[:KEY=VALUE,...]: int8, nf4:compute_dtype=float32, "
            "lossless=int8:threshold=4, nf4:keep=mlp.down; may be repeated. Default: int8 and nf4.",
        ),
    ] = None,
    int8_threshold: Annotated[
        float | None,
        typer.Option(
            "--int8-threshold",
            metavar="X",
            help="int8 without a threshold of its own: input columns that reach X stay unquantized; 0 keeps none. "
            "Default: 6.0.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="What to run through the model: UTF-8 text, JSON Lines (.jsonl) or Parquet (.parquet) with texts or "
            "token ids.",
        ),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option("--labelled", metavar="FILE", help="JSON Lines of labelled or scored prompts; `sample` has some."),
    ] = None,
    sequences: Annotated[int | None, typer.Option("--sequences", metavar="N", help="Calibration sequences.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", metavar="S", help="Tokens in each sequence.")
    ] = None,
    batch_sequences: Annotated[
        int | None,
        typer.Option(
            "--batch-sequences",
            metavar="B",
            help="Sequences in one forward pass; fewer take less memory. Default: as many as keep the device busy.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="K", help="Chooses the sequences out of the text.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option("--score", metavar="WHICH", help="Positions whose next token is scored: all or second_half."),
    ] = None,
    bos: Annotated[
        str | None,
        typer.Option(
            "--bos",
            metavar="WHEN",
            help="BOS token before every sequence: auto (as the tokenizer does), always, never.",
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", metavar="NAME", help="Field or column that holds the text. Default: text."),
    ] = None,
    label_threshold: Annotated[
        float | None,
        typer.Option("--label-threshold", metavar="X", help="Prompts with a score are true above this."),
    ] = None,
    label_depth: Annotated[
        int | None,
        typer.Option(
            "--label-depth", metavar="L", help="Look at prompts after layer L. Default: after the final norm."
        ),
    ] = None,
    label_dimensions: Annotated[
        int | None,
        typer.Option("--label-dimensions", metavar="K", help="Dimensions to report for the prompts. Default: 4."),
    ] = None,
    thresholds: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A threshold of a definition, such as llm_int8.magnitude=5, or a limit of the verdict, such as "
            "verdict.kl_severe=0.2; may be repeated.",
        ),
    ] = None,
    memory: Memory = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Analyze one model, wait for the report, and put it into DIR. Ctrl-C cancels the job."""
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
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. Default: HEADROOM_PORT, 8400.")
    ] = None,
    memory: Memory = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run the whole stack on this machine, until stopped: broker, API, scheduler and one worker."""
    from service.cli import serving
    from service.cli.connection import WorkerOptions

    serving.serve(host=host, port=port, options=WorkerOptions(memory, device), as_json=as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker(context: typer.Context, memory: Memory = None, device: Device = None) -> None:
    """Run one Celery worker, for the queue at HEADROOM_BROKER_URL; options of `celery worker` may follow.

    One measures on one device: on a machine with several GPUs, start one for each.
    """
    from service.cli import serving
    from service.cli.connection import WorkerOptions

    serving.worker(context.args, WorkerOptions(memory, device))


@jobs.command("list")
def list_jobs(
    status: Annotated[
        str | None, typer.Option(help="Only those that are queued, running, succeeded, failed or cancelled.")
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
    """Queue a failed or cancelled job once more. It runs when a worker does: see `headroom serve`."""
    from service.cli import resources

    resources.change_job(job_id, "retry", as_json=as_json)


@reports.command("list")
def list_reports(
    model: ModelFilter = None, limit: Limit = 50, page_token: PageToken = None, as_json: Json = False
) -> None:
    """List the reports that can be downloaded, newest first."""
    from service.cli import resources

    resources.list_reports(model=model, limit=limit, token=page_token, as_json=as_json)


@reports.command("download")
def download_report(
    report_id: Annotated[str, typer.Argument(metavar="ID", help="The report's id, which is its job's.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Download a report into DIR."""
    from service.cli import resources

    resources.download_report(report_id, out, as_json=as_json)


@reports.command("render")
def render_report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where a report lies, such as --out left it.")],
    density: Annotated[
        bool, typer.Option("--density", help="Histograms of labeled prompts as densities, not counts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw a report's figures and page anew from its tables, in place. Needs no model and no torch."""
    from service.cli import redrawing

    redrawing.render(directory, density=density, as_json=as_json)


@reports.command("compare")
def compare_reports(
    report: Annotated[
        list[str],
        typer.Argument(metavar="REPORT...", help="Ids or directories of 2 to 8 reports; the first is the baseline."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the comparison goes: new or empty.")],
    as_json: Json = False,
) -> None:
    """Hold reports against the first of them: range, outlier dimensions, errors and divergence."""
    from service.cli import comparing

    comparing.compare(report, out, as_json=as_json)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(app, sys.argv[1:]))
