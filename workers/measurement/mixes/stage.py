"""Runs the measurement of mixes as a stage: gathers what is known of every scheme, plans, measures, concludes.

N sequences of S tokens, M modules
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.contracts.harm import recommendation as contract
from service.contracts.request import MeasurementRequest
from service.contracts.schemes import Scheme
from service.evaluation.verdict import Grounds
from workers.measurement.harm.copies import Module
from workers.measurement.harm.measuring import HarmResults, SchemeHarm
from workers.measurement.harm.stage import room_left
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.mixes.mix_sweep import Workplace
from workers.measurement.mixes.plan import F64, MixInputs, Plan, plan_mixes
from workers.measurement.mixes.recommendation import HeldOut, measure_plans, without_mixes
from workers.measurement.mixes.refusals import check_sizes, fits
from workers.measurement.mixes.units import QuantizedModule
from workers.measurement.predictions.comparison import Predictions, first_scored
from workers.measurement.predictions.metrics import perplexity
from workers.measurement.runtime.progress import ProgressReporter

_CORRECTION = 4.0
"""A measured harm corrects an estimate by this factor at most: beyond it one of the two is noise."""


@dataclass(frozen=True)
class Measured:
    """What the sweep and what follows it have measured."""

    state: SweepState
    """After the last layer."""
    predictions: Predictions
    replaced: Mapping[str, Mapping[Module, int]]
    """By scheme: the modules of the layers that it replaces, and the bytes by which each is smaller."""
    errors: Mapping[str, Mapping[Module, float]]
    """By scheme: isolated relative_l2 of the modules' outputs."""

    def sizes(self, scheme: str) -> tuple[int, int]:
        """Return the bytes of the model under a scheme, and as it came."""
        reference = sum(parameter.nbytes for parameter in self.state.decoder.model.parameters())
        saved = sum(self.replaced[scheme].values()) + self.state.outside[scheme].saved_bytes
        return reference - saved, reference

    def divergences(self) -> dict[str, float]:
        """Return the mean KL divergence, nats, of every scheme that has a finite prediction anywhere."""
        finite = {name: comparison.where_finite() for name, comparison in self.predictions.comparisons.items()}
        return {name: float(of.kl_divergence.mean()) for name, of in finite.items() if len(of.kl_divergence)}

    def quantized(self, scheme: str) -> frozenset[str]:
        """Return the full names of all modules that a scheme replaces."""
        inside = (self.full_name(module) for module in self.replaced[scheme])
        return frozenset(inside) | frozenset(self.state.outside[scheme].modules)

    def full_name(self, module: Module) -> str:
        """Return a module's name in the model."""
        return f"{self.state.decoder.prefix}{module.layer}.{module.name}"


def check_targets(request: MeasurementRequest, measured: Measured) -> None:
    """Refuse a target in bytes that no mix of any scheme has. Raises BadRequest."""
    check_sizes(request.recommend, {scheme.name: measured.sizes(scheme.name) for scheme in measured.state.schemes})


def run_mixes(
    request: MeasurementRequest,
    measured: Measured,
    harm: HarmResults | None,
    held_out: torch.Tensor | None,
    work: Path,
    reporter: ProgressReporter,
) -> dict[str, contract.Recommendation] | None:
    """Return the recommendation for every scheme; None where none was asked for.

    Args:
        request: the settings.
        measured: of the sequences that choose.
        harm: of the same.
        held_out: [N, S], other sequences.
        work: for streams in files.
        reporter: gets progress.
    """
    if not request.recommend.enabled or held_out is None:
        return None
    schemes = measured.state.schemes
    missing = {scheme.name: _missing(request, scheme, measured, harm) for scheme in schemes}
    plans = {
        scheme.name: plan_mixes(_inputs(scheme, measured, harm), request.recommend, request.seed)
        for scheme in schemes
        if harm is not None and missing[scheme.name] is None
    }
    recommended: dict[str, contract.Recommendation] = {}
    if plans:
        recommended = _measure(plans, request, measured, held_out, work, reporter)
    return {
        scheme.name: recommended[scheme.name]
        if scheme.name in recommended
        else without_mixes(missing[scheme.name] or "", scheme, measured.quantized(scheme.name), measured.state.decoder)
        for scheme in schemes
    }


def _measure(
    plans: Mapping[str, Plan],
    request: MeasurementRequest,
    measured: Measured,
    held_out: torch.Tensor,
    work: Path,
    reporter: ProgressReporter,
) -> dict[str, contract.Recommendation]:
    state = measured.state
    batches = held_out.split(len(state.batches[0].token_ids))
    return measure_plans(
        plans,
        state.decoder,
        HeldOut(batches, first_scored(request.score, request.sequence_length)),
        request,
        Workplace(room_left(request, state).most, work / "mixes", request.checkpoint_seconds),
        reporter,
    )


def _missing(request: MeasurementRequest, scheme: Scheme, measured: Measured, harm: HarmResults | None) -> str | None:
    """Return why no mix of a scheme can be recommended, in a sentence; None where one can."""
    finite = np.isfinite(measured.predictions.reference_nll)
    reference = None
    if finite.any():
        nll, sequence = measured.predictions.reference_nll[finite], measured.predictions.sequence[finite]
        reference = perplexity(nll, sequence).value
    if (lacking := Grounds(reference, measured.state.decoder.config.vocab_size, None).lacking()) is not None:
        return lacking
    if not measured.predictions.comparisons[scheme.name].finite.any():
        return f"No position has a finite prediction under {scheme.name}."
    if not fits(request.recommend, *measured.sizes(scheme.name)):
        smallest = measured.sizes(scheme.name)[0] / 1e6
        return f"The target lies outside the sizes of its mixes, the smallest of which takes {smallest:,.4g} MB."
    if harm is None or scheme.name not in harm.schemes:
        return f"{scheme.name} replaces no module of the layers."
    products = harm.schemes[scheme.name].products
    if products is None:
        return f"Harm could not be estimated: {harm.no_estimate or 'the model uses none of the replaced modules'}."
    if not np.isfinite(products.matrix()).all(axis=(0, 1)).any():
        return f"No module has a finite estimated harm under {scheme.name}."
    return None


def _inputs(scheme: Scheme, measured: Measured, harm: HarmResults) -> MixInputs:
    """Return what the mixes of a scheme are planned by."""
    of_scheme, name = harm.schemes[scheme.name], scheme.name
    assert of_scheme.products is not None
    values = of_scheme.products.matrix()
    # A module whose products are not all finite stays quantized in every mix.
    finite = np.flatnonzero(np.isfinite(values).all(axis=(0, 1)))
    places = [of_scheme.products.modules[place] for place in finite]
    uniform_bytes, reference_bytes = measured.sizes(name)
    comparison = measured.predictions.comparisons[name].where_finite()
    return MixInputs(
        scheme=scheme,
        modules=[
            QuantizedModule(place.layer, measured.full_name(place), of_scheme.components[place], of_scheme.saved[place])
            for place in places
        ],
        products=values[:, :, finite] * np.sqrt(_corrections(of_scheme, harm)[finite]),
        positions=harm.positions,
        uniform_kl=float(comparison.kl_divergence.mean()),
        uniform_bytes=uniform_bytes,
        reference_bytes=reference_bytes,
        errors={measured.full_name(module): error for module, error in measured.errors[name].items()},
        kept=frozenset(measured.state.kept.get(name, ())),
        quantized=measured.quantized(name),
        apart=of_scheme.apart,
    )


def _corrections(of_scheme: SchemeHarm, harm: HarmResults) -> F64:
    """Return measured over estimated harm of every module, [M], less the noise floor.

    The modules of the largest estimates are those whose estimates are most often too large, so without this a mix
    would prefer them. Modules that were not measured have the factor of all those that were drawn at random.
    """
    assert of_scheme.products is not None
    estimated = np.square(of_scheme.products.matrix()).mean(axis=(0, 1)) / (2 * harm.positions)
    exact = np.full(len(estimated), np.nan)
    drawn = np.zeros(len(estimated), dtype=bool)
    for place, module in enumerate(of_scheme.products.modules):
        measured = of_scheme.modules.get(module)
        if measured is not None and harm.noise_floor is not None and estimated[place] > 0:
            exact[place] = measured.value - harm.noise_floor[module.layer]
            drawn[place] = module in of_scheme.at_random
    drawn &= np.isfinite(exact)
    usual = exact[drawn].sum() / estimated[drawn].sum() if drawn.any() else 1.0
    ratios = np.divide(exact, estimated, out=np.full(len(exact), np.nan), where=np.isfinite(exact))
    factors: F64 = np.where(np.isfinite(ratios), ratios, usual)
    # Where estimates do not add up, what was measured takes their place, whatever they are.
    least, most = (0.0, None) if of_scheme.apart is not None else (1 / _CORRECTION, _CORRECTION)
    corrected: F64 = np.clip(factors, least, most)
    return corrected
