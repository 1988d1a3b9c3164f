"""`headroom recommend --plan`: says what a job would take, on this machine, without submitting it."""

import json
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError
from rich.filesize import decimal

from service.cli import inputs, output
from service.cli.commands.analyze_options import RecommendOptions
from service.cli.connection import WorkerOptions, require_worker, with_options
from service.cli.options import check_body
from service.cli.running import DONE
from service.contracts.harm.cost import Cost
from service.errors import HeadroomError, InvalidRequest
from service.settings import settings


class PlanFailed(HeadroomError):
    """The measurement could not be planned."""

    code = "plan-failed"


class PlanRefused(PlanFailed):
    """The measurement that was planned would be refused."""

    status = 422


def plan(options: RecommendOptions, *, as_json: bool) -> int:
    """Print what the job would take. Raises InvalidRequest, PlanFailed, and PlanRefused where it would be refused."""
    inputs.check_values(options)
    body = inputs.submission(options, on_this_machine=True, largest_file=settings().max_upload_bytes)
    if "/" in body["model"] and not body["model"].startswith("/"):
        raise InvalidRequest(
            "MODEL", options.model, "a directory of this machine, or 'sample', with --plan", problem="is not fetched"
        )
    check_body(body)
    cost = _planned(options, {name: value for name, value in body.items() if name not in ("calibration", "labelled")})
    if as_json:
        output.document(cost.model_dump() | {"forwards": cost.forwards, "disk_bytes": cost.disk_bytes})
    else:
        _show(cost)
    return DONE


def _planned(options: RecommendOptions, job: dict[str, object]) -> Cost:
    require_worker()
    chosen = with_options(settings(), WorkerOptions(options.memory, options.device))
    asked = {
        "job": job,
        "calibration": _path(options.calibration),
        "labelled": _path(options.labelled),
        "machine": {"memory_bytes": int(chosen.memory), "device": chosen.device},
    }
    command = [sys.executable, "-m", "workers.planning"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    for line in said:
        if line["kind"] == "failed":
            raise (PlanRefused if line["bad_input"] else PlanFailed)(line["message"])
    try:
        return Cost.model_validate(next(line for line in said if line["kind"] == "plan"))
    except (StopIteration, ValidationError) as error:
        raise PlanFailed(f"the plan could not be made: {done.stderr[-500:]}") from error


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _show(cost: Cost) -> None:
    console = output.results()
    text = f"{cost.sequences} x {cost.sequence_length} tokens"
    held_out = f", and {cost.held_out_sequences} held-out sequences" if cost.held_out_sequences else ""
    output.line(console, f"{cost.source}: {cost.layers} layers, {cost.modules} modules to replace; {text}{held_out}")
    output.table(
        ("Stage", "Forward passes", "Streams on disk", "Checkpoints on disk"),
        [
            (stage.stage, f"{stage.forwards:.0f}", decimal(stage.streams_bytes), decimal(stage.checkpoint_bytes))
            for stage in cost.stages
        ],
    )
    output.line(
        console,
        f"In all about {cost.forwards:.0f} forward passes, and at most {decimal(cost.disk_bytes)} of disk at once.",
    )
    groups = "1 group" if cost.swap_groups == 1 else f"{cost.swap_groups} groups"
    further = f"; {cost.further_swaps} more if harms do not add up" if cost.further_swaps else ""
    output.line(
        console, f"Parts replaced alone: {cost.swaps} in {groups}{further}. Mixes and controls: at most {cost.mixes}."
    )
    for size in cost.sizes:
        output.line(
            console,
            f"Mixes of {size.scheme}: {decimal(size.smallest)} to {decimal(size.largest)} "
            f"({size.smallest:,} to {size.largest:,} bytes).",
        )
