"""Writes the report's section on harm and its tables from measured and estimated harms."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from service.contracts.harm.facts import EstimateCheck, HarmFacts, HarmFigure, ModuleHarm
from service.contracts.sections.outliers import Outliers
from service.evaluation.additivity import ADDITIVE, adds_up
from workers.measurement.harm.estimates.agreement import (
    less_floor,
    measured_over_estimated,
    ratio,
    spearman,
)
from workers.measurement.harm.estimates.estimate import interactions, predicted_divergence
from workers.measurement.harm.measuring import HarmResults, SchemeHarm
from workers.measurement.harm.products import InnerProducts
from workers.measurement.predictions.metrics import Comparison, kl_divergence
from workers.measurement.results.harm_dimensions import write_dimensions
from workers.measurement.results.harm_parts import Part, column, full_name, layer_parts, module_parts
from workers.measurement.results.report import MeasurementResults
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.table_writer import TableWriter

LISTED_MODULES = 10
"""Modules that the section names."""


def write_harm(
    results: MeasurementResults, outliers: Outliers, tables: Mapping[str, TableWriter], reporter: ProgressReporter
) -> dict[str, HarmFacts] | None:
    """Write the tables on harm, and return the section by scheme; None where no harm was asked for.

    Args:
        results: of the measurement.
        outliers: what each definition flags.
        tables: writers by name.
        reporter: is warned where single harms say little of several together.
    """
    if not results.request.harm.measures:
        return None
    if results.harm is None:
        return {}
    prefix, section = results.state.decoder.prefix, {}
    flagged = outliers.named(results.state.decoder.config.hidden_size)
    for scheme, harm in results.harm.schemes.items():
        modules = module_parts(harm, results.harm, prefix)
        layers = layer_parts(harm, results.harm, prefix)
        tables["harm"].append_rows([{"scheme": scheme} | part._asdict() for part in (*layers, *modules)])
        if harm.products is not None:
            _write_interactions(scheme, harm.products, results.harm.positions, prefix, tables["interactions"])
        facts = _facts(harm, results.harm, results.predictions.comparisons[scheme], modules, layers)
        dimensions = write_dimensions(scheme, harm, flagged, tables)
        section[scheme] = facts.model_copy(update={"dimensions": dimensions})
        _warn_additivity(scheme, facts, len(modules), results.state.decoder.outside, reporter)
    return section


def _warn_additivity(
    scheme: str, facts: HarmFacts, modules: int, outside: Sequence[str], reporter: ProgressReporter
) -> None:
    if adds_up(facts.additivity):
        return
    advice = "Rely on what was measured together, such as a variant with keep=MODULE."
    if facts.additivity_of == "estimates":
        advice = f"Measure every module: --harm modules --set harm.top_modules={modules}."
    reporter.warn(
        "harm-not-additive",
        f"The KL divergence of {scheme} is {facts.additivity:.3g} times the sum of its parts' harms, outside of "
        f"{ADDITIVE[0]} to {ADDITIVE[1]}: harms of single modules say little of what several do together"
        + (f"; those of modules outside of the layers, {', '.join(outside)}, are not in the sum" if outside else ""),
        advice,
        where=scheme,
    )


def _write_interactions(scheme: str, products: InnerProducts, positions: int, prefix: str, table: TableWriter) -> None:
    names = [full_name(prefix, module) for module in products.modules]
    for name, values in zip(names, interactions(products.matrix(), positions), strict=True):
        one, count = name, len(names)
        table.append({"scheme": [scheme] * count, "module_a": [one] * count, "module_b": names, "value": values})


def _facts(
    harm: SchemeHarm, results: HarmResults, comparison: Comparison, modules: Sequence[Part], layers: Sequence[Part]
) -> HarmFacts:
    whole, predicted = _whole(comparison), _predicted(harm.products, results.positions)
    check = _check(modules, layers)
    additivity, of = _additivity(whole, check, modules, layers)
    shown = modules if any(part.measured or part.estimated for part in modules) else layers
    return HarmFacts(
        whole=whole,
        predicted_whole=predicted,
        scale_factor=ratio(whole.value, predicted.value) if whole and predicted else None,
        additivity=additivity,
        additivity_of=of,
        noise_floor=None if results.noise_floor is None else tuple(map(_known, results.noise_floor)),
        check=check,
        modules=tuple(map(_named, most_harmful(shown))),
        dimensions=None,
        no_estimate=results.no_estimate,
    )


def _whole(comparison: Comparison) -> HarmFigure | None:
    """Return the measured divergence of the whole scheme."""
    finite = comparison.where_finite()
    if not len(finite.same_top):
        return None
    kl = kl_divergence(finite)
    return HarmFigure(value=kl.mean, standard_error=kl.standard_error)


def _predicted(products: InnerProducts | None, positions: int) -> HarmFigure | None:
    """Return the divergence of the whole scheme as the estimate predicts it."""
    if products is None:
        return None
    value, error = predicted_divergence(products.matrix(), positions)
    return None if np.isnan(value) else HarmFigure(value=value, standard_error=_known(error))


def _check(modules: Sequence[Part], layers: Sequence[Part]) -> EstimateCheck | None:
    """Compare estimates with measurements: of modules, where any was measured."""
    of: Literal["modules", "layers"] = "modules" if any(part.measured for part in modules) else "layers"
    both = [part for part in (modules if of == "modules" else layers) if part.measured and part.estimated]
    if not both:
        return None
    at_random = np.array([part.at_random for part in both])
    return EstimateCheck(
        of=of,
        swaps=len(both),
        spearman=spearman(_net(both), column(both, "estimated_harm")),
        measured_over_estimated=measured_over_estimated(_net(both), column(both, "estimated_harm"), at_random),
    )


def _additivity(
    whole: HarmFigure | None, check: EstimateCheck | None, modules: Sequence[Part], layers: Sequence[Part]
) -> tuple[float | None, Literal["modules", "layers", "estimates"] | None]:
    """Return the whole over the sum of its parts, and which parts these are: the best that there is."""
    if whole is None:
        return None, None
    if modules and all(part.measured for part in modules):
        return ratio(whole.value, _net(modules).sum()), "modules"
    if layers and all(part.measured for part in layers):
        return ratio(whole.value, _net(layers).sum()), "layers"
    if check is not None and check.measured_over_estimated is not None:
        parts = np.nansum(column(modules, "estimated_harm")) * check.measured_over_estimated
        return ratio(whole.value, parts), "estimates"
    return None, None


def _net(parts: Sequence[Part]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the measured harms less the noise floor."""
    return less_floor(column(parts, "harm"), np.nan_to_num(column(parts, "noise_floor")))


def most_harmful(parts: Sequence[Part]) -> list[Part]:
    """Return the ten most harmful parts: by the measured harm less the noise floor, else by the estimate.

    An estimate holds no noise floor, so that measured parts would stand before others of more harm. A part without
    either figure comes last.
    """
    known = np.where(
        [part.measured for part in parts], _net(parts), np.nan_to_num(column(parts, "estimated_harm"), nan=-1)
    )
    return [parts[place] for place in np.argsort(-known, kind="stable")[:LISTED_MODULES]]


def _named(part: Part) -> ModuleHarm:
    figures = ("harm", "standard_error", "estimated_harm", "noise_floor")
    return ModuleHarm(
        layer=part.layer,
        component=part.component,
        module=part.module,
        **{name: _known(getattr(part, name)) for name in figures},
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
