"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import whole_number

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the report: new or empty.")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Keep hidden states above SIZE, such as 4GiB, in files. Default: HEADROOM_MEMORY, 2GiB.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device: auto, cpu, cuda or cuda:N. Default: HEADROOM_DEVICE, auto.",
    ),
]
Limit = Annotated[
    int,
    typer.Option("--limit", parser=whole_number("--limit", 1, 200), metavar="N", help="Entries to print, 1 to 200."),
]
PageToken = Annotated[
    str | None, typer.Option("--page-token", help="Continue a list; the previous page prints the token.")
]
ModelFilter = Annotated[str | None, typer.Option("--model", help="List only entries of this model.")]
