"""Gives reports of schema 1.0 and 1.1 the errors and verdicts that today's have.

Those reports took tokens as independent of one another, which makes standard errors several times too small. Their
`tokens` table has all that the errors by sequence follow from. Where it cannot be used there is no error at all.
"""

from collections.abc import Callable, Sequence
from typing import Any

from service.contracts.report import Estimate, Report, SchemeFacts, Uncertain
from service.contracts.warnings import Warning
from service.evaluation.scored import Rows, ScoredSequence, scored_sequences
from service.evaluation.uncertainty import MIN_UNITS, mean, mean_exp
from service.evaluation.verdict import with_verdicts

_UNKNOWN = (
    Warning(
        code="no-intervals",
        message="The report is from an earlier version. It has no table from which 95% intervals can be computed.",
        where=None,
        advice="Rerun the analysis to have 95% intervals.",
    ),
)
_NOTHING: dict[str, Any] = dict.fromkeys(Uncertain.model_fields)


def predates_intervals(schema_version: str) -> bool:
    """Return whether a report of this version takes tokens as independent; one of another major version does not."""
    major, _, minor = schema_version.partition(".")
    return major == "1" and minor.isdecimal() and int(minor) < 2


def restated(report: Report, tokens: Callable[[], Rows | None]) -> Report:
    """Return the report as today's would be, errors and verdicts by sequence; one of today's as it is.

    Args:
        report: Of this major version of the schema.
        tokens: Reads the columns `scored.COLUMNS` of the table of that name; None where that cannot be. It is called
            only for a report that needs it.
    """
    if not predates_intervals(report.schema_version):
        return with_verdicts(report)
    rows = tokens()
    scored = {name: scored_sequences(rows, name) if rows is not None else [] for name in report.schemes}
    reference = report.reference
    known = next((sequences for sequences in scored.values() if sequences), [])
    if reference.perplexity is not None:
        of_reference = _known(mean_exp, [one.nll_reference for one in known])
        reference = reference.model_copy(update={"perplexity": _update(reference.perplexity, of_reference)})
    sequences = sum(bool(one.nll_reference) for one in known)
    changed = {
        "reference": reference,
        "schemes": {name: _scheme(facts, scored[name]) for name, facts in report.schemes.items()},
        "warnings": (*report.warnings, *(few_sequences(reference.perplexity, sequences) if known else _UNKNOWN)),
    }
    return with_verdicts(report.model_copy(update=changed))


def few_sequences(perplexity: Estimate | None, sequences: int) -> tuple[Warning, ...]:
    """Return the warning that errors are by blocks, or that there are none; nothing where they are by sequence.

    Args:
        perplexity: The reference's, or another mean over the same positions; None if there is none.
        sequences: Sequences with a scored position.
    """
    if perplexity is None or perplexity.units == "sequences":
        return ()
    if perplexity.units is None:
        message = "The scored text is too short for 95% intervals, so no value has one."
    else:
        text = f"{sequences} sequence{'' if sequences == 1 else 's'}"
        message = (
            f"The calibration text has {text}, so errors are estimated from {perplexity.unit_count} blocks. "
            "The 95% intervals may be too narrow."
        )
    advice = f"Rerun with --sequences {MIN_UNITS} or more."
    return (Warning(code="few-sequences", message=message, where=None, advice=advice),)


def _scheme(facts: SchemeFacts, sequences: Sequence[ScoredSequence]) -> SchemeFacts:
    scored = [list(one.positions.values()) for one in sequences]
    changed = {
        "perplexity": _known(mean_exp, [[at.nll for at in one] for one in scored]),
        "perplexity_ratio": _known(mean_exp, [[at.log_ratio for at in one] for one in scored]),
        "kl_divergence": _known(mean, [[at.kl for at in one] for one in scored]),
        "same_top_token": _known(mean, [[at.same_top for at in one] for one in scored]),
    }
    return facts.model_copy(update={name: _update(getattr(facts, name), of) for name, of in changed.items()})


def _known(
    estimate: Callable[[Sequence[Sequence[float]]], Estimate], sequences: Sequence[Sequence[float]]
) -> Estimate | None:
    return estimate(sequences) if any(len(one) for one in sequences) else None


def _update(figure: Uncertain | None, estimate: Estimate | None) -> Uncertain | None:
    """Return the figure with the error of `estimate`; without any where that is None."""
    if figure is None:
        return None
    error = {name: getattr(estimate, name) for name in _NOTHING} if estimate is not None else _NOTHING
    return figure.model_copy(update=error)
