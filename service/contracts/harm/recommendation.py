"""Settings of a recommendation, and its section of the report: mixes, measured, and which modules stay in 16 bits."""

from typing import Annotated, Any, Literal, Self

from pydantic import ByteSize, Field, model_validator

from service.contracts.harm.facts import HarmFigure
from service.contracts.record import Frozen, NoBoolean, Record, WholeBytes, allowing


class RecommendSettings(Frozen):
    """Whether a mix is recommended for every scheme, and under what target; without one, the knee of the frontier."""

    enabled: bool = False
    """Needs estimated harm, and as many sequences again as `sequences` that are measured for nothing else."""
    max_bytes: (
        Annotated[
            ByteSize,
            Field(gt=0),
            WholeBytes,
            allowing("allowed: 1 or more bytes, or a number with a unit, such as 125MB or 4GiB"),
        ]
        | None
    ) = None
    """Bytes that the model may take: weights with scales, embeddings included."""
    max_kl: Annotated[float, Field(gt=0, allow_inf_nan=False), NoBoolean] | None = None
    """The KL divergence may be so large, nats per token; as few bytes as that is predicted to take."""
    whole_groups: bool = True
    """Keep q, k, v of a layer together, and gate, up, as vLLM and SGLang need it."""
    rounds: Annotated[int, Field(ge=1, le=8), NoBoolean] = 1
    """Times that mixes are selected and measured; from the second on, with predictions that fit the best mix so far."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.max_bytes is not None and self.max_kl is not None:
            raise ValueError("max_bytes and max_kl exclude each other; give one of them, or none")
        if not self.enabled and (self.max_bytes is not None or self.max_kl is not None):
            raise ValueError("max_bytes and max_kl are targets of a recommendation; set enabled to true")
        return self


class Target(Record):
    """What the mixes were selected under."""

    kind: Literal["max_bytes", "max_kl", "knee"]
    value: float | None
    """What was asked for, bytes or nats; None for the knee."""
    bytes: int
    """What mixes and controls may take."""


class FrontierPoint(Record):
    """The least predicted KL divergence of all mixes of that size."""

    bytes: int
    predicted_kl: float
    """Nats, scaled as the mixes' is."""


class KeptComponent(Record):
    """Layers of which a mix keeps a component in 16 bits."""

    component: str
    layers: tuple[int, ...]


class HeldOutFigure(HarmFigure):
    """A mean over scored positions of held-out sequences, nats."""

    interval: tuple[float, float] | None
    """95% interval; None where there is no standard error."""


class MixFacts(Record):
    """A mix that was measured on held-out sequences, or a control."""

    name: str
    control: bool
    bytes: int
    """Of the model: weights, scales and embeddings."""
    predicted_kl: float
    """Harms and a quarter of the interactions (of mixes of later rounds: the part that fits the first ones), nats;
    times one factor for all, with which the uniform scheme's is what was measured."""
    kl: HeldOutFigure
    """Measured mean KL divergence from the reference, nats."""
    level: Literal["negligible", "noticeable", "severe", "unjudged"]
    """What that and the perplexity ratio mean, as in the verdict of a scheme."""
    kept: tuple[KeptComponent, ...]
    skip_modules: tuple[str, ...]
    """Full names of the modules that stay in 16 bits because the mix says so."""


class Difference(HeldOutFigure):
    """The KL divergence of the best mix minus that of the best control, nats, paired by sequence.

    A mix is chosen at 5% divided by the mixes that were tried, not by the interval of one.
    """

    mix: str
    control: str


class Recommendation(Record):
    """The mix that is recommended for a scheme, and what it was measured against."""

    target: Target | None = None
    """None where no mix could be selected."""
    held_out_sequences: int = 0
    """Sequences that mixes and controls were measured on. They selected nothing; but where there are several rounds,
    what the first mixes do there selects later ones."""
    selected_by: Literal["estimates", "measured"] = "estimates"
    """Mixes are selected by estimated harms, corrected by those that were measured; or, where estimates do not add up
    to the whole scheme's divergence, by the measured harms of all modules."""
    frontier: tuple[FrontierPoint, ...] = ()
    mixes: tuple[MixFacts, ...] = ()
    """Those that were measured, controls last."""
    difference: Difference | None = None
    chosen: str | None = None
    """Name of the recommended mix; None where none is better than the best control."""
    reason: str
    """Why it was chosen, or why none was, in a sentence."""
    analysis_only: bool = False
    """BitsAndBytesConfig cannot express the scheme, so there is no `config`."""
    config: dict[str, Any] | None = None
    """What `transformers.BitsAndBytesConfig(**config)` takes: of the chosen mix, else of the uniform scheme."""
    config_verified: bool = False
    """The model that transformers builds by `config` converts exactly the modules that the mix quantizes."""

    def mix(self, name: str) -> MixFacts:
        """Return the measured mix of this name. Raises KeyError."""
        return {mix.name: mix for mix in self.mixes}[name]
