"""The parts of a report that state how it was measured: model, calibration text, environment, time and memory."""

from typing import Annotated

from pydantic import Field

from service.contracts.record import Record


class ModelFacts(Record):
    """The model that was measured."""

    source: str
    revision: str | None
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Over the weight files' names and contents."""
    architecture: str
    layers: int
    hidden_size: int
    heads: int | None
    """Query heads; None in a model without attention."""
    kv_heads: int | None
    head_dim: int | None
    """Channels of one head's output."""
    vocabulary: int
    parameters: int
    weight_bytes: int
    """Bytes of the parameters in `dtype`, tied ones counted once."""
    dtype: str


class CalibrationFacts(Record):
    """The text that was run through it."""

    source: str
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Over the token ids."""
    sequences: int
    sequence_length: int
    tokens: int
    adds_bos: bool
    """Every sequence begins with the tokenizer's BOS token, put there."""
    documents: int
    """Documents that held a token or more."""
    separator: int | None
    """Token id put between two documents; None where nothing was put."""
    seed: int
    batch_sequences: int


class Environment(Record):
    """Where it ran, and with what."""

    device: str
    torch: str
    transformers: str
    bitsandbytes: str
    python: str
    kernels: dict[str, str]
    """Code path that each scheme took, for paths that differ in the last digits."""


class PeakMemory(Record):
    """Peak memory in bytes."""

    resident: int
    device: int | None


class Timing(Record):
    """What it cost; where the measurement was broken off and went on, what its last run cost."""

    wall_seconds: float
    stage_seconds: dict[str, float]
    peak_memory_bytes: PeakMemory
    resumed_at_layer: int | None = None
    """Layers that an earlier run had done; None where the whole was one run."""
