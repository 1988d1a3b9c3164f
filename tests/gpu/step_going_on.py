"""Kills a measurement in the middle, lets it go on, and holds its tables against those of one that was never killed.

Where they are not the same, a third measurement, never killed either, tells whether the device repeats itself.
"""

import io
from typing import Any

from measuring_process import differing_tables, kill_after, read_report, start_measuring, write_token_ids
from step_correctness import SEQUENCES, request_of, save_model
from step_support import Context, quiet, run

LAYERS, KILLED_AFTER, LENGTH = 8, 4, 48


def tiny_request(context: Context) -> Any:
    """Make a Llama of several layers, and return a request that keeps a checkpoint after each."""
    import torch
    from architectures import CONFIGS, VOCABULARY

    path = context.scratch / "tiny-going-on"
    config = CONFIGS["llama"]()
    config.update({"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS})
    save_model(path, config)
    token_ids = torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(6))
    write_token_ids(path / "tokens.jsonl", token_ids)
    shape = (SEQUENCES, LENGTH)
    return request_of(path, path / "tokens.jsonl", shape, context.device, batch_sequences=1, checkpoint_seconds=0)


def check(context: Context) -> None:
    """Tell whether a kill shows in the tables."""
    quiet()
    from workers.measurement.program import measure
    from workers.measurement.runtime.progress import ProgressReporter

    request, outs = tiny_request(context), {name: context.scratch / name for name in ("killed", "whole", "again")}
    process = start_measuring(request.model_dump_json(), outs["killed"])
    if not kill_after(process, KILLED_AFTER):
        context.problem(f"the measurement ended with status {process.returncode} before it could be killed")
        return
    for name in ("whole", "killed"):
        measure(request, outs[name], ProgressReporter(out=io.StringIO()))
    gone_on_at = read_report(outs["killed"])["timing"]["resumed_at_layer"]
    context.figure("killed by SIGKILL, went on at layer", gone_on_at)
    if not gone_on_at:
        context.problem("the measurement did not go on from a checkpoint")
    differing = differing_tables(outs["whole"], outs["killed"])
    if differing:
        measure(request, outs["again"], ProgressReporter(out=io.StringIO()))
        unsteady = differing_tables(outs["whole"], outs["again"])
        context.detail("tables that differ without a kill too", unsteady)
        if not {name.split()[0] for name in differing} <= {name.split()[0] for name in unsteady}:
            context.problem(f"tables differ after going on: {'; '.join(differing)}")
    context.figure(
        "tables the same to the byte after going on", "yes" if not differing else f"but {'; '.join(differing)}"
    )


if __name__ == "__main__":
    run(check)
