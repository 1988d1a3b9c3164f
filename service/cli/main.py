"""The `headroom` command: its subcommands and options.

A command imports its code when it runs, so that `--help` answers at once.
"""

import sys
from typing import Annotated

import typer

from service.cli.commands import audits, jobs, reports
from service.cli.options import (
    Calibration,
    Device,
    Json,
    Labelled,
    Memory,
    Out,
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
        "Exit codes: 0 done, 1 the job failed, 2 bad usage or bad input, 3 the service cannot be reached, "
        "4 a limit was broken."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (jobs.app, reports.app, audits.app):
    app.add_typer(group)


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


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(app, sys.argv[1:]))
