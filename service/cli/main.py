"""The `headroom` command: its subcommands and options.

A command imports its code when it runs, so that `--help` answers at once.
"""

import sys
from typing import Annotated

import typer

from service.cli.commands import artifacts, audits, jobs, keys, reports
from service.cli.commands.analyze_options import AnalyzeOptions, RecommendOptions
from service.cli.commands.gate import gate
from service.cli.commands.option_groups import with_options
from service.cli.options import Device, Json, Memory, whole_option
from service.cli.running import UsageError, run

app = typer.Typer(
    name="headroom",
    help="Measure what quantization does to a language model, and why.",
    epilog=(
        "Commands use the service at HEADROOM_URL. If it is not set, they use the stack that `headroom serve` runs on "
        "HEADROOM_HOME. If none runs, they start a stack, and the last command that uses it stops it. "
        "Exit codes: 0 done, 1 the job failed, 2 bad usage or bad input, 3 the service cannot be reached, "
        "4 a limit was broken."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (jobs.app, reports.app, audits.app, artifacts.app, keys.app):
    app.add_typer(group)
app.command()(gate)


@app.command()
@with_options(AnalyzeOptions)
def analyze(*, options: AnalyzeOptions, as_json: Json = False) -> int:
    """Analyze a model and download the report to DIR. Ctrl-C cancels the job."""
    from service.cli import analysis

    return analysis.analyze(options, as_json=as_json)


@app.command()
@with_options(RecommendOptions)
def recommend(*, options: RecommendOptions, as_json: Json = False) -> int:
    """Analyze a model, and measure which modules to keep in 16 bits; takes every option of `analyze`.

    Estimates the harm of every module, measures that of the 24 most harmful and of 12 others, then mixes and controls
    on as many further sequences. With --report, does so for the model, the texts and the settings of a report.
    """
    from service.cli import analysis, planning

    if not options.model and options.report is None:
        raise UsageError("MODEL is required, unless --report is given")
    if options.plan:
        if options.out is not None:
            raise UsageError("--plan does not go with --out: it writes nothing")
        if options.report is not None:
            raise UsageError("--plan does not go with --report: give MODEL instead")
        return planning.plan(options, as_json=as_json)
    if options.out is None:
        raise UsageError("--out is required, unless --plan is given")
    return analysis.analyze(options, as_json=as_json)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: HEADROOM_HOST, 127.0.0.1.")] = None,
    port: Annotated[
        int | None,
        whole_option("--port", "N", "Port; 0: any free port. Default: HEADROOM_PORT, 8400.", least=0, most=65535),
    ] = None,
    workers: Annotated[
        int | None,
        whole_option(
            "--workers",
            "N",
            "Workers; with several GPUs they take turns on them. Default: one for each GPU, else one.",
            least=1,
            most=64,
        ),
    ] = None,
    memory: Memory = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run broker, API, scheduler and workers on this machine, until Ctrl-C."""
    from service.cli import serving
    from service.cli.connection import WorkerOptions

    options = WorkerOptions(memory, device)
    serving.serve(host=host, port=port, workers=workers, options=options, as_json=as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker(
    context: typer.Context,
    memory: Memory = None,
    device: Device = None,
    once: Annotated[
        bool, typer.Option("--once", help="Take one job from the database, without broker, and end.")
    ] = False,
) -> None:
    """Run one Celery worker for the queue at HEADROOM_BROKER_URL. Options of `celery worker` may follow.

    A worker uses one device. On a machine with several GPUs, start one worker for each. With --once the exit code is
    0 if the job ended, 1 if it failed, 5 if no job waited, and 6 if the job went back to the queue.
    """
    from service.cli import serving
    from service.cli.connection import WorkerOptions

    serving.worker(context.args, WorkerOptions(memory, device), once=once)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(app, sys.argv[1:]))
