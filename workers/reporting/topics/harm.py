"""Harm: what replacing single modules does to the predictions, and whether the outlier dimensions carry it."""

from service.contracts.harm.facts import DimensionShares, HarmFacts, HarmFigure, ModuleHarm
from service.contracts.report import Report
from service.evaluation.additivity import adds_up
from workers.reporting.text import ABSENT, counted, number, percent
from workers.reporting.topics.records import Grid, Topic, marked

_TITLE = "Harm of single modules"


def topic(report: Report) -> Topic | None:
    """Return the section on harm; None where it was not asked for."""
    if report.harm is None:
        return None
    if not report.harm:
        return Topic("harm", _TITLE, "No scheme replaced a module, so there is no harm.")
    notes = (
        "Harm: mean KL divergence of the next-token distributions when one module alone is replaced by its quantized "
        "form, in nats. Estimates come from gradients, to second order.",
        *(sentence for name, facts in report.harm.items() for sentence in _sentences(report, name, facts)),
    )
    grids = tuple(_most_harmful(report, name, facts) for name, facts in report.harm.items())
    return Topic("harm", _TITLE, _lead(report, report.harm), notes, grids=grids)


def _lead(report: Report, harms: dict[str, HarmFacts]) -> str:
    return " ".join(
        f"{marked(name, report.schemes[name])}: {_place(facts.modules[0])} does the most harm, "
        f"{_amount(facts.modules[0])}."
        for name, facts in harms.items()
        if facts.modules
    )


def _amount(one: ModuleHarm) -> str:
    if one.harm is not None:
        return f"{number(one.harm)} nats"
    return f"{number(one.estimated_harm)} nats by the estimate"


def _place(one: ModuleHarm) -> str:
    return f"layer {one.layer}" if one.component == "block" else f"layer {one.layer} {one.component}"


def _sentences(report: Report, name: str, facts: HarmFacts) -> list[str]:
    """Return what there is to say of one scheme besides its modules."""
    who, said = marked(name, report.schemes[name]), []
    if facts.check is not None:
        said.append(
            f"{who}: the rank correlation (Spearman) of estimates and {counted(facts.check.swaps, 'measured harm')} of "
            f"{facts.check.of} is {number(facts.check.spearman)}."
        )
    if facts.additivity is not None:
        parts = "modules' scaled estimates" if facts.additivity_of == "estimates" else f"{facts.additivity_of}' harms"
        trust = "" if adds_up(facts.additivity) else "; single harms say little of several together"
        said.append(f"{who}: the whole is {number(facts.additivity)} times the sum of the {parts}{trust}.")
    if facts.dimensions is not None:
        said.append(f"{who}: {_outliers(facts.dimensions)}")
    if facts.no_estimate:
        said.append(f"{who}: harm could not be estimated ({facts.no_estimate}).")
    return said


def _outliers(shares: DimensionShares) -> str:
    """Say how much of the harm the outlier dimensions carry."""
    single = ", ".join(str(one.dimension) for one in shares.dimensions) or "no single dimension"
    largest = ", the largest first" if len(shares.dimensions) > 1 else ""
    carry = "carries" if shares.flagged_dimensions == 1 else "carry"
    return (
        f"{counted(shares.flagged_dimensions, 'dimension')} that a definition of outliers flags {carry} "
        f"{_share(shares.flagged)} of the estimated harm, the others {_share(shares.unflagged)}, inputs other than the "
        f"residual stream {_share(shares.other_inputs)}; significant by Holm's method{largest}: {single}."
    )


def _share(figure: HarmFigure) -> str:
    error = "" if figure.standard_error is None else f" ± {percent(figure.standard_error)}"
    return f"{percent(figure.value)}{error}"


def _most_harmful(report: Report, name: str, facts: HarmFacts) -> Grid:
    rows = tuple(
        (
            _place(one),
            number(one.harm),
            number(one.standard_error),
            number(one.estimated_harm),
            number(one.noise_floor),
        )
        for one in facts.modules
    )
    return Grid(
        f"Most harmful parts: {marked(name, report.schemes[name])}; in the order of harm less the noise floor, or of "
        "the estimate where harm was not measured; harm and estimates below the noise floor are not told from rounding",
        ("Part", "Harm, nats", "Standard error", "Estimated", "Noise floor"),
        rows or ((ABSENT,) * 5,),
    )
