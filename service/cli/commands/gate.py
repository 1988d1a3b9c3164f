"""`headroom gate`: holds a model to limits in a pipeline."""

from service.cli.commands.gate_options import GateOptions
from service.cli.commands.option_groups import with_options
from service.cli.options import Json


@with_options(GateOptions)
def gate(*, options: GateOptions, as_json: Json = False) -> int:
    """Run one audit of a model. Exit status: 4 if it fails, 1 if a measurement or an output file fails, else 0."""
    from service.cli.gating import command

    return command.gate(options, as_json=as_json)
