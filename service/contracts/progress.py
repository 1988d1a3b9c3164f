"""The lines that a measurement prints while it runs, one JSON object each.

The last line is `finished` or `failed`. A process that ends without either was killed.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from service.contracts.record import Frozen
from service.contracts.warnings import Warning

Stage = Literal["load", "calibrate", "sweep", "divergence", "harm", "mixes", "write", "report"]
"""A stage of a job, in the order of the stages; `report` is the drawing, after the measurement."""


class Progress(Frozen):
    """How far the work has come."""

    kind: Literal["progress"] = "progress"
    stage: Stage
    done: Annotated[int, Field(ge=0)]
    """Units done: layers in `sweep` and `mixes`, sequences in `divergence`, passes through a layer in `harm`, else 0
    or 1."""
    total: Annotated[int, Field(ge=1)]
    elapsed_seconds: Annotated[float, Field(ge=0)]
    """Since the measurement began."""
    batch_sequences: Annotated[int | None, Field(ge=1, exclude_if=lambda sequences: sequences is None)] = None
    """Sequences in a batch, in the first line of `sweep`; left out elsewhere. Where a library ends the process for want
    of device memory, nothing else tells which batch was too large."""
    cost: Annotated[str | None, Field(exclude_if=lambda cost: cost is None)] = None
    """What the stage is going to take, in the first line of `harm` and `mixes`; left out elsewhere."""


class Finished(Frozen):
    """The output directory is whole."""

    kind: Literal["finished"] = "finished"


class Failed(Frozen):
    """The measurement failed, and wrote nothing to the output directory."""

    kind: Literal["failed"] = "failed"
    code: str
    """Stable: `bad-model`, `model-changed`, `model-not-allowed`, `model-too-large`, `hub-unreachable`, `hub-timeout`,
    `bad-calibration`, `bad-labelled`, `bad-request`, `out-of-memory` (the host's), `device-out-of-memory`,
    `missing-library`, `disk-full`, `memory-limit`, `file-size-limit`, `cpu-limit`, `deadline`, `killed`,
    `worker-lost`, `internal`."""
    message: str
    bad_input: bool
    """True when the request, the model or the text is at fault, so that trying again cannot help."""
    batch_sequences: int | None = None
    """Code `device-out-of-memory`: sequences in a batch, where batches were in use by then."""


def _kind(line: Any) -> str | None:
    """Return the kind of a line, parsed from JSON or a record; None where it has none."""
    return line.get("kind") if isinstance(line, dict) else getattr(line, "kind", None)


ProgressLine = Annotated[
    Annotated[Progress, Tag("progress")]
    | Annotated[Warning, Tag("warning")]
    | Annotated[Finished, Tag("finished")]
    | Annotated[Failed, Tag("failed")],
    Discriminator(_kind),
]
PROGRESS_LINE: TypeAdapter[ProgressLine] = TypeAdapter(ProgressLine)
"""Parses one line: `PROGRESS_LINE.validate_json(line)`."""


def json_line(line: ProgressLine) -> str:
    """Return a line as JSON, without a line break."""
    return json.dumps({"kind": line.kind, **line.model_dump(mode="json")}, separators=(",", ":"))
