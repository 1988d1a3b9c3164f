"""The labeled prompts: which dimensions separate true from false records, and whether they still do when quantized."""

from service.contracts.report import Report
from service.contracts.sections.labelled import MAX_CHANCE_PROBABILITY, Labelled, LabelledDimension, Separation
from workers.reporting.text import counted, number, percent
from workers.reporting.topics.records import Grid, Topic, marked

_TITLE = "Labeled prompts"


def topic(report: Report) -> Topic:
    """Return the section on labeled prompts."""
    labelled = report.labelled
    if labelled is None:
        return Topic("labelled", _TITLE, "No labeled prompts were given.")
    grids = (_separations(labelled, report),) if labelled.dimensions else ()
    return Topic("labelled", _TITLE, _lead(labelled, report), _notes(labelled), grids=grids)


def _lead(labelled: Labelled, report: Report) -> str:
    false = labelled.records - labelled.true_records
    if not labelled.records:
        return "The file of labeled prompts has no records."
    if not labelled.true_records or not false:
        what = "true" if labelled.true_records else "false"
        every = f"All {labelled.records:,} records are {what}" if labelled.records > 1 else f"The only record is {what}"
        return f"{every}, so no dimension can separate true from false. Give records of both kinds."
    if not labelled.dimensions:
        return "No dimension separates true from false."
    best = labelled.dimensions[0]
    if labelled.by_chance:
        return f"No dimension separates better than chance: {chance(labelled)}."
    separation = (
        f"Dimension {best.dimension} best separates the {labelled.true_records:,} true from the {false:,} false "
        f"records: {_figures(best.reference)} without quantization."
    )
    weakest = _weakest(best)
    if weakest is None:
        return separation
    if number(weakest[1]) == number(best.reference.auroc):
        return f"{separation} No scheme weakens it."
    return f"{separation} It is weakest under {_marked(report, weakest[0])}: AUROC {number(weakest[1])}."


def chance(labelled: Labelled) -> str:
    """Return the permutation test of the best dimension as a clause; there must be a best dimension."""
    best = labelled.dimensions[0]
    return (
        f"the probability that a dimension is as good as dimension {best.dimension} ({_figures(best.reference)}) by "
        f"chance is {percent(labelled.permutation_probability or 0)} ({labelled.permutations:,} permutations of the "
        f"{labelled.given}s)"
    )


def _marked(report: Report, scheme: str) -> str:
    """Return a scheme's name as the other sections have it; as it is, where the report has no such scheme."""
    return marked(scheme, report.schemes[scheme]) if scheme in report.schemes else scheme


def _figures(separation: Separation) -> str:
    return f"AUROC {number(separation.auroc)}, Spearman's rho {number(separation.spearman_rho)}"


def _weakest(best: LabelledDimension) -> tuple[str, float] | None:
    """Return the scheme that leaves the dimension the least of its power, and its AUROC there."""
    known = {name: one.auroc for name, one in best.schemes.items() if one.auroc is not None}
    if not known:
        return None
    name = min(known, key=lambda one: abs(known[one] - 0.5))
    return name, known[name]


def _notes(labelled: Labelled) -> tuple[str, ...]:
    where = "after the final norm" if labelled.depth is None else f"after layer {labelled.depth}"
    truth = "labels" if labelled.given == "label" else f"scores, true above {number(labelled.threshold)}"
    ranked = {"auroc": "their AUROC's distance from one half", "spearman_rho": "the magnitude of Spearman's rho"}
    by = f"; dimensions are ranked by {ranked[labelled.ranked_by]}" if labelled.ranked_by else ""
    tested: tuple[str, ...] = ()
    if labelled.dimensions and labelled.permutation_probability is not None:
        limit = f"Over {percent(MAX_CHANCE_PROBABILITY, 0)}, the separation is not better than chance."
        tested = (f"Permutation test without quantization: {chance(labelled)}. {limit}",)
    return (
        *tested,
        f"{counted(labelled.records, 'record')} of {labelled.source}, with {truth}. The vector is the last token's "
        f"hidden state {where}{by}. AUROC 0.5 is no separation; 0 and 1 are perfect separation.",
    )


def _separations(labelled: Labelled, report: Report) -> Grid:
    schemes = list(labelled.dimensions[0].schemes)
    rows = tuple(
        (str(one.dimension), _cell(one.reference), *(_cell(one.schemes[name]) for name in schemes))
        for one in labelled.dimensions
    )
    return Grid(
        "AUROC (Spearman's rho) of the dimensions that separate best",
        ("Dimension", "Reference", *(_marked(report, name) for name in schemes)),
        rows,
    )


def _cell(separation: Separation) -> str:
    return f"{number(separation.auroc)} ({number(separation.spearman_rho)})"
