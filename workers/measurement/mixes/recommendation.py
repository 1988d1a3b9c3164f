"""Recommends a mix for every scheme: plans, measures all mixes and controls in one sweep, chooses.

N sequences of S tokens
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from service.contracts.harm import recommendation as contract
from service.contracts.report import Estimate
from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from service.evaluation.numbers import megabytes
from service.evaluation.verdict import Grounds, judge, mean_kl
from workers.measurement.mixes.choice import F64, Choice, choose
from workers.measurement.mixes.configuration import configuration, converted_modules
from workers.measurement.mixes.controls import UNIFORM, VALUES_FIRST
from workers.measurement.mixes.mix_sweep import Mix, Workplace, measure_mixes
from workers.measurement.mixes.plan import Plan
from workers.measurement.mixes.prediction import Prediction
from workers.measurement.mixes.refining import refined
from workers.measurement.models.decoder import Decoder
from workers.measurement.predictions.metrics import Comparison, kl_divergence, perplexity, perplexity_ratio
from workers.measurement.runtime.progress import ProgressReporter


@dataclass(frozen=True)
class HeldOut:
    """The text that mixes are measured on."""

    batches: Sequence[torch.Tensor]
    """Token ids, [B, S] each."""
    first: int
    """First scored position of each sequence."""


def measure_plans(
    plans: Mapping[str, Plan],
    decoder: Decoder,
    text: HeldOut,
    analysis: Analysis,
    workplace: Workplace,
    reporter: ProgressReporter,
) -> dict[str, contract.Recommendation]:
    """Return the recommendation for every scheme that has a plan, by its name.

    Args:
        plans: by scheme.
        decoder: the model.
        text: held out: it chose nothing.
        analysis: settings.
        workplace: for the streams.
        reporter: gets the layers done.
    """
    names: dict[str, Sequence[str]] = {scheme: plan.names for scheme, plan in plans.items()}
    measured = _measure(plans, names, decoder, text, analysis, workplace, reporter)
    for _ in range(1, analysis.recommend.rounds):
        further = {scheme: _refined(plan, measured[scheme], analysis) for scheme, plan in plans.items()}
        names = {scheme: [n for n in plan.names if n not in measured[scheme]] for scheme, plan in further.items()}
        if not any(names.values()):
            break
        more = _measure(further, names, decoder, text, analysis, workplace, reporter)
        plans, measured = further, {scheme: measured[scheme] | more[scheme] for scheme in plans}
    sequences = sum(len(batch) for batch in text.batches)
    return {
        scheme: _Conclusion(plan, measured[scheme], analysis, decoder).recommendation(sequences)
        for scheme, plan in plans.items()
    }


def _measure(
    plans: Mapping[str, Plan],
    names: Mapping[str, Sequence[str]],
    decoder: Decoder,
    text: HeldOut,
    analysis: Analysis,
    workplace: Workplace,
    reporter: ProgressReporter,
) -> dict[str, dict[str, Comparison]]:
    """Return by scheme and name what the mixes and controls of these names were measured to do."""
    mixes = [
        Mix(_stream(scheme, name), plan.inputs.scheme, plan.inputs.kept | plan.kept(name))
        for scheme, plan in plans.items()
        for name in names[scheme]
    ]
    predictions = measure_mixes(decoder, mixes, text.batches, analysis, text.first, workplace, reporter)
    return {
        scheme: {name: predictions.comparisons[_stream(scheme, name)] for name in of_scheme}
        for scheme, of_scheme in names.items()
    }


def _refined(plan: Plan, measured: Mapping[str, Comparison], analysis: Analysis) -> Plan:
    """Return the plan with further mixes; as it is where no position is finite under all."""
    finite = _where_all_finite(measured)
    if finite is None:
        return plan
    means = {name: float(comparison.kl_divergence.mean()) for name, comparison in finite.items()}
    return refined(plan, means, whole_groups=analysis.recommend.whole_groups)


def _stream(scheme: str, mix: str) -> str:
    return f"{scheme} {mix}"


class _Conclusion:
    """What the measured mixes of one scheme say."""

    def __init__(self, plan: Plan, measured: Mapping[str, Comparison], analysis: Analysis, decoder: Decoder) -> None:
        self._plan, self._analysis, self._decoder = plan, analysis, decoder
        self._comparisons = _where_all_finite(measured)

    def recommendation(self, sequences: int) -> contract.Recommendation:
        """Return what is recommended, measured on that number of held-out sequences."""
        plan = self._plan
        common = {
            "target": plan.target,
            "held_out_sequences": sequences,
            "frontier": plan.frontier,
            "selected_by": "estimates" if plan.inputs.apart is None else "measured",
        }
        if self._comparisons is None:
            reason = "No held-out position has a finite prediction under every mix."
            return contract.Recommendation(**common, reason=reason, **self._config(None))
        kl = {name: comparison.kl_divergence for name, comparison in self._comparisons.items()}
        sequence = self._comparisons[UNIFORM].sequence
        prediction = plan.prediction.scaled(float(kl[UNIFORM].mean()))
        factor = prediction.uniform / plan.prediction.uniform if plan.prediction.uniform else 1.0
        common["frontier"] = tuple(
            point.model_copy(update={"predicted_kl": point.predicted_kl * factor}) for point in plan.frontier
        )
        choice = choose({n: kl[n] for n in plan.mixes}, {n: kl[n] for n in plan.controls}, sequence)
        return contract.Recommendation(
            **common,
            mixes=tuple(self._facts(name, prediction) for name in plan.names),
            difference=_difference(choice),
            chosen=choice.chosen,
            reason=self._reason(choice, kl) + self._selected(),
            **self._config(choice.chosen),
        )

    def _facts(self, name: str, prediction: Prediction) -> contract.MixFacts:
        plan, comparison = self._plan, self._measured()[name]
        control = name in plan.controls
        kl, ratio = kl_divergence(comparison), perplexity_ratio(comparison)
        reference = perplexity(comparison.nll_reference, comparison.sequence).value
        grounds = Grounds(reference, self._decoder.config.vocab_size, 1.0)
        return contract.MixFacts(
            name=name,
            control=control,
            bytes=plan.inputs.uniform_bytes + plan.extra_bytes(name),
            predicted_kl=plan.later.get(name, prediction).divergence(
                plan.controls[name] if control else plan.mixes[name]
            ),
            kl=contract.HeldOutFigure(value=kl.mean, standard_error=kl.standard_error, interval=kl.interval),
            level=judge(mean_kl(kl), ratio, self._analysis.verdict, grounds).level.name,
            kept=_components(plan, plan.kept(name)),
            skip_modules=tuple(m.name for m in plan.inputs.modules if m.name in plan.kept(name)),
        )

    def _measured(self) -> Mapping[str, Comparison]:
        assert self._comparisons is not None
        return self._comparisons

    def _reason(self, choice: Choice, kl: Mapping[str, F64]) -> str:
        plan = self._plan
        control = f"{choice.best_control} ({kl[choice.best_control].mean():.3g} nats)"
        if choice.chosen is not None:
            return f"{choice.chosen} ({kl[choice.chosen].mean():.3g} nats) beats the best control, {control}."
        extra = plan.target.bytes - plan.inputs.uniform_bytes
        if not plan.mixes and plan.target.kind == "max_kl" and not extra:
            return uniform_suffices(plan.target.value or 0.0, float(kl[UNIFORM].mean()))
        if not plan.mixes and plan.target.kind == "max_kl":
            return f"No mix is predicted to have {plan.target.value:.3g} nats or less: only the model as it came has."
        budget = f"+{megabytes(extra)}"
        if not plan.mixes:
            return f"No module fits within {budget}, or none has harm."
        beside = "" if choice.best_control == UNIFORM else f"; {UNIFORM} has {kl[UNIFORM].mean():.3g}"
        splits = choice.best_control == VALUES_FIRST and self._analysis.recommend.whole_groups
        how = ", which splits fused groups, as mixes may with --split-groups" if splits else ""
        return f"No mix under {budget} beats the best control, {control}{how}{beside}."

    def _selected(self) -> str:
        """Say that measured harms selected the mixes, where they did."""
        inputs = self._plan.inputs
        if inputs.apart is None or not self._plan.mixes:
            return ""
        return (
            f" Estimated harms do not add up (the whole is {inputs.apart:.3g} times their sum), so the mixes were "
            f"selected by the measured harms of all {len(inputs.modules)} modules."
        )

    def _config(self, chosen: str | None) -> dict[str, Any]:
        """Return the configuration of the chosen mix, else of the uniform scheme."""
        inputs = self._plan.inputs
        quantized = inputs.quantized - (self._plan.kept(chosen) if chosen else frozenset())
        return _configured(inputs.scheme, quantized, self._decoder)


def uniform_suffices(target: float, measured: float) -> str:
    """Say that a scheme met a target of the KL divergence where mixes are chosen, and whether it does held out."""
    if measured <= target:
        return f"With every module quantized it meets the target ({measured:.3g} nats)."
    return (
        "With every module quantized it meets the target on the text that selects mixes, but not on held-out text "
        f"({measured:.3g} nats). Set a lower --max-kl."
    )


def without_mixes(reason: str, scheme: Scheme, quantized: frozenset[str], decoder: Decoder) -> contract.Recommendation:
    """Return the recommendation of a scheme of which no mix was measured, with the configuration of all of it.

    Args:
        reason: why none was, in a sentence.
        scheme: settings that the model decides are resolved.
        quantized: full names of all modules that it quantizes.
        decoder: the model.
    """
    return contract.Recommendation(reason=reason, **_configured(scheme, quantized, decoder))


def _configured(scheme: Scheme, quantized: frozenset[str], decoder: Decoder) -> dict[str, Any]:
    """Return the fields that state a configuration, and whether transformers makes of it what is meant."""
    config = configuration(scheme, quantized, decoder)
    if config is None:
        return {"analysis_only": True}
    verified = converted_modules(config, decoder.model.config) == quantized  # type: ignore[arg-type]
    return {"config": config, "config_verified": verified}


def _where_all_finite(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison] | None:
    """Return the comparisons at the positions where all of them are finite; None where there is no such position."""
    finite = np.logical_and.reduce([comparison.finite for comparison in comparisons.values()])
    if not finite.any():
        return None
    return {
        name: Comparison(*(values[finite] for values in vars(comparison).values()))
        for name, comparison in comparisons.items()
    }


def _components(plan: Plan, kept: frozenset[str]) -> tuple[contract.KeptComponent, ...]:
    """Return for every component the layers of which it is kept."""
    layers: dict[str, list[int]] = {}
    for module in plan.inputs.modules:
        if module.name in kept:
            layers.setdefault(module.component, []).append(module.layer)
    return tuple(contract.KeptComponent(component=name, layers=tuple(of)) for name, of in layers.items())


def _difference(choice: Choice) -> contract.Difference | None:
    if choice.difference is None or choice.mix is None:
        return None
    of: Estimate = choice.difference
    return contract.Difference(
        value=of.value,
        standard_error=of.standard_error,
        interval=of.interval,
        mix=choice.mix,
        control=choice.best_control,
    )
