"""Cost of a measurement before it is made, from the shapes of the model and the settings."""

from typing import Literal

from service.contracts.record import Frozen


class StageCost(Frozen):
    """One sweep over the layers, with what lies on the disk while it runs."""

    stage: Literal["sweep", "harm", "mixes"]
    forwards: float
    """The work in forward passes of the text, about; for the held-out text, which has as many tokens, of that."""
    streams_bytes: int
    """Hidden states in files, because memory does not hold them; 0 where it does."""
    checkpoint_bytes: int
    """Checkpoints of the streams, from which a killed measurement is continued."""


class SchemeSize(Frozen):
    """The bytes of the model between which the mixes of a scheme lie: weights with scales, embeddings included."""

    scheme: str
    smallest: int
    """With every module quantized."""
    largest: int
    """In 16 bits, or what the model is stored in."""


class Cost(Frozen):
    """What a measurement takes, at most."""

    kind: Literal["plan"] = "plan"
    source: str
    """Name of the model."""
    layers: int
    sequences: int
    sequence_length: int
    held_out_sequences: int
    stages: tuple[StageCost, ...]
    modules: int
    """That the schemes replace, in all."""
    swaps: int
    """Parts that are replaced alone to measure their harm, those of nothing and of rounding among them."""
    further_swaps: int
    """What comes on top where the harms of single modules do not add up to that of the whole."""
    swap_groups: int
    """Groups in which swaps go through the layers, as many together as memory holds, or else the disk."""
    mixes: int
    """Mixes and controls of all schemes."""
    sizes: tuple[SchemeSize, ...]

    @property
    def forwards(self) -> float:
        """Forward passes of all stages, about."""
        return sum(stage.forwards for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        """The most that lies on the disk at once."""
        return max(stage.streams_bytes + stage.checkpoint_bytes for stage in self.stages)
