"""Plans what is measured for a scheme: the target's bytes, the best mixes of that size, and controls of the same size.

N sequences, S draws for each, M modules
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.contracts.harm import recommendation as contract
from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.schemes import Scheme
from workers.measurement.mixes.controls import control_mixes
from workers.measurement.mixes.prediction import Bools, Prediction, predicted
from workers.measurement.mixes.refusals import check_target
from workers.measurement.mixes.selection import I64, best_mix, budget_for, frontier, knee
from workers.measurement.mixes.units import QuantizedModule, Unit, members, units_of

F64 = npt.NDArray[np.float64]
TargetKind = Literal["max_bytes", "max_kl", "knee"]

INTERACTION_WEIGHTS = (0.25, 0.0, 0.5)
"""What interactions are multiplied by in the three predictions that are minimized; the first one's is the prediction
that the report states. Chosen on one half of 16 sequences and predicted on the other, with 4 draws (SmolLM2-135M, nf4,
+2% to +25% of its bytes), mixes of the weights 0, 1/4, 1/2 and 1 leave 0.73, 0.75, 0.78 and 0.83 of the uniform
scheme's divergence: the whole interactions of few draws are mostly noise, which a minimum seeks out."""


@dataclass(frozen=True)
class MixInputs:
    """What is known of a scheme when its mixes are planned."""

    scheme: Scheme
    """Settings that the model decides are resolved."""
    modules: Sequence[QuantizedModule]
    """All M that it quantizes and that have inner products."""
    products: F64
    """a_m of every module, [N, S, M]."""
    positions: int
    """Scored positions of a sequence."""
    uniform_kl: float
    """Measured mean KL divergence of the whole scheme, nats, on the text that the products are of."""
    uniform_bytes: int
    """Bytes of the model under the scheme."""
    reference_bytes: int
    errors: Mapping[str, float]
    """Isolated relative_l2 by module."""
    kept: frozenset[str]
    """Modules that the scheme keeps by its own settings."""
    quantized: frozenset[str]
    """All modules that it quantizes."""
    apart: float | None = None
    """Additivity of the estimates because of which the products were scaled to measured harms, all of them."""


@dataclass(frozen=True)
class Plan:
    """What is measured for a scheme."""

    inputs: MixInputs
    target: contract.Target
    frontier: tuple[contract.FrontierPoint, ...]
    prediction: Prediction
    """For modules."""
    mixes: Mapping[str, Bools]
    """By name: which of the M modules stay in 16 bits, [M]."""
    controls: Mapping[str, Bools]
    later: Mapping[str, Prediction] = field(default_factory=dict)
    """By name, what predicts the mixes that were selected after others had been measured."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all mixes, and then of all controls."""
        return (*self.mixes, *self.controls)

    def kept(self, name: str) -> frozenset[str]:
        """Return the full names of the modules that a mix or control keeps, besides those of the scheme's own."""
        chosen = self.controls[name] if name in self.controls else self.mixes[name]
        return frozenset(m.name for m, own in zip(self.inputs.modules, chosen, strict=True) if own)

    def extra_bytes(self, name: str) -> int:
        """Return the bytes that a mix or control takes more than the uniform scheme."""
        kept = self.kept(name)
        return sum(module.extra_bytes for module in self.inputs.modules if module.name in kept)


def plan_mixes(inputs: MixInputs, settings: RecommendSettings, seed: int) -> Plan:
    """Return the plan for a scheme.

    Raises:
        BadRequest: the target's bytes are fewer than the uniform scheme takes, or as many as the reference.
    """
    units = units_of(inputs.modules, whole_groups=settings.whole_groups)
    extra = np.array([unit.extra_bytes for unit in units], dtype=np.int64)
    of_modules = [
        predicted(inputs.products, inputs.positions, weight).scaled(inputs.uniform_kl) for weight in INTERACTION_WEIGHTS
    ]
    of_units = of_modules[0].of_units(units)
    points = frontier(of_units, extra)
    kind, value, budget = _target(settings, inputs, of_units, extra)
    if budget is None:
        budget = knee(points).extra_bytes
    mixes = [kept for kept in distinct(best_of_units(one, units, budget) for one in of_modules) if leaves(inputs, kept)]
    mixes.sort(key=of_modules[0].divergence)
    controls = control_mixes(inputs.modules, units, budget, inputs.errors, seed)
    return Plan(
        inputs=inputs,
        target=contract.Target(kind=kind, value=value, bytes=inputs.uniform_bytes + budget),
        frontier=tuple(
            contract.FrontierPoint(bytes=inputs.uniform_bytes + point.extra_bytes, predicted_kl=point.predicted)
            for point in points
        ),
        prediction=of_modules[0],
        mixes={f"mix-{number}": kept for number, kept in enumerate(mixes, 1)},
        controls={name: kept for name, kept in controls.items() if leaves(inputs, kept)},
    )


def leaves(inputs: MixInputs, kept: Bools) -> bool:
    """Whether a mix that keeps these modules, [M], leaves any quantized; else it is the model as it came."""
    names = {module.name for module, own in zip(inputs.modules, kept, strict=True) if own}
    return not inputs.quantized <= names


def _target(
    settings: RecommendSettings, inputs: MixInputs, prediction: Prediction, extra: I64
) -> tuple[TargetKind, float | None, int | None]:
    """Return the kind of the target, what was asked for, and the bytes to spend; None for those of the knee."""
    if settings.max_bytes is not None:
        check_target(settings, inputs.scheme.name, inputs.uniform_bytes, inputs.reference_bytes)
        return "max_bytes", float(settings.max_bytes), int(settings.max_bytes) - inputs.uniform_bytes
    if settings.max_kl is not None:
        return "max_kl", settings.max_kl, budget_for(prediction, extra, settings.max_kl)
    return "knee", None, None


def best_of_units(prediction: Prediction, units: Sequence[Unit], budget: int) -> Bools:
    """Return which modules to keep for the least prediction, [M], in whole units, within a budget in bytes."""
    extra = np.array([unit.extra_bytes for unit in units], dtype=np.int64)
    kept = best_mix(prediction.of_units(units), extra, budget)
    chosen = [unit for unit, own in zip(units, kept, strict=True) if own]
    return members(chosen, len(prediction.matrix))


def distinct(mixes: Iterable[Bools]) -> list[Bools]:
    """Return the mixes that keep anything, each once."""
    return list({kept.tobytes(): kept for kept in mixes if kept.any()}.values())
