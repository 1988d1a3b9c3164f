"""The `headroom` command: its subcommands and options.

A command imports its code when it runs, so that `--help` answers at once.
"""

import sys
from typing import Annotated

import typer

from service.cli.commands import artifacts, audits, jobs, keys, reports
from service.cli.commands.gate import gate
from service.cli.options import (
    BatchSequences,
    Bos,
    Calibration,
    Device,
    FailOn,
    Harm,
    Int8Threshold,
    Json,
    Keep,
    LabelDepth,
    LabelDimensions,
    Labelled,
    LabelThreshold,
    MaxBytes,
    MaxKl,
    Memory,
    Model,
    Out,
    RetentionDays,
    Schemes,
    Score,
    Seed,
    SequenceLength,
    Sequences,
    SplitGroups,
    TextField,
    Thresholds,
    whole_number,
)
from service.cli.running import run

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
def analyze(
    model: Model,
    out: Out,
    scheme: Schemes = None,
    keep: Keep = None,
    int8_threshold: Int8Threshold = None,
    calibration: Calibration = None,
    labelled: Labelled = None,
    sequences: Sequences = None,
    sequence_length: SequenceLength = None,
    batch_sequences: BatchSequences = None,
    seed: Seed = None,
    score: Score = None,
    bos: Bos = None,
    text_field: TextField = None,
    label_threshold: LabelThreshold = None,
    label_depth: LabelDepth = None,
    label_dimensions: LabelDimensions = None,
    thresholds: Thresholds = None,
    harm: Harm = None,
    retention_days: RetentionDays = None,
    memory: Memory = None,
    device: Device = None,
    fail_on: FailOn = None,
    as_json: Json = False,
) -> int:
    """Analyze a model and download the report to DIR. Ctrl-C cancels the job."""
    options = locals()  # every option by its name
    from service.cli import analysis
    from service.cli.inputs import AnalyzeOptions

    return analysis.analyze(AnalyzeOptions.of(options), as_json=as_json, fail_on=fail_on)


@app.command()
def recommend(
    model: Model,
    out: Out,
    scheme: Schemes = None,
    keep: Keep = None,
    max_bytes: MaxBytes = None,
    max_kl: MaxKl = None,
    split_groups: SplitGroups = False,
    int8_threshold: Int8Threshold = None,
    calibration: Calibration = None,
    labelled: Labelled = None,
    sequences: Sequences = None,
    sequence_length: SequenceLength = None,
    batch_sequences: BatchSequences = None,
    seed: Seed = None,
    score: Score = None,
    bos: Bos = None,
    text_field: TextField = None,
    label_threshold: LabelThreshold = None,
    label_depth: LabelDepth = None,
    label_dimensions: LabelDimensions = None,
    thresholds: Thresholds = None,
    harm: Harm = None,
    retention_days: RetentionDays = None,
    memory: Memory = None,
    device: Device = None,
    fail_on: FailOn = None,
    as_json: Json = False,
) -> int:
    """Analyze a model, and measure which modules to keep in 16 bits; takes every option of `analyze`.

    Estimates the harm of every module, measures that of the 24 most harmful and of 12 others, then mixes and controls
    on as many further sequences.
    """
    options = locals() | {"recommend": True}
    from service.cli import analysis
    from service.cli.inputs import AnalyzeOptions

    return analysis.analyze(AnalyzeOptions.of(options), as_json=as_json, fail_on=fail_on)


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
    workers: Annotated[
        int | None,
        typer.Option(
            parser=whole_number("--workers", 1, 64),
            metavar="N",
            help="Workers; with several GPUs they take turns on them. Default: one for each GPU, else one.",
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
