"""Defines the input of the harm measurement: model, text, settings, and the directory of its checkpoints.

N sequences of S tokens
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from service.contracts.harm.settings import HarmSettings
from service.contracts.schemes import Scheme
from workers.measurement.harm.copies import Module, weight_only
from workers.measurement.harm.plan import Plan
from workers.measurement.layers.sweep_state import SweepState


@dataclass(frozen=True)
class HarmTask:
    """One measurement of harm."""

    state: SweepState
    """Of the sweep; its streams are not touched."""
    settings: HarmSettings
    token_ids: torch.Tensor
    """[N, S]: the text whose predictions are compared."""
    first: int
    """First scored position of each sequence."""
    seed: int
    replaced: Mapping[str, Mapping[Module, int]]
    """By scheme: the modules that it replaces, and the bytes by which each is smaller."""
    plan: Plan
    directory: Path
    """For results and checkpoints; must exist."""
    checkpoint_seconds: float
    """Seconds between checkpoints of the streams."""
    passed: Callable[[int], None]
    """Gets how many passes of the text through one layer the work since the last call is worth."""
    whole: Mapping[str, float] = field(default_factory=dict)
    """By scheme: measured mean KL divergence of all of it, nats."""
    complete: bool = False
    """Measure all modules of a scheme whose harms do not add up."""
    extended: Callable[[int], None] = lambda _: None
    """Gets how many such passes come on top of what was planned."""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.state.decoder.layers)

    @property
    def schemes(self) -> list[Scheme]:
        """Those that replace anything."""
        return [scheme for scheme in self.state.schemes if self.replaced[scheme.name]]

    @property
    def divided(self) -> list[Scheme]:
        """Those whose harm is divided among dimensions."""
        return [scheme for scheme in self.schemes if self.settings.dimensions and weight_only(scheme)]
