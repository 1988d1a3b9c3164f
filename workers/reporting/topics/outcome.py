"""The outcome: what every scheme does to the predictions, in one word each, and the figures and limits behind it."""

from typing import NamedTuple

from service.contracts.report import Estimate, Report, SchemeFacts
from service.contracts.verdict import Level, interval, mean_kl
from workers.reporting.columns import fp16_columns
from workers.reporting.figures.style import scheme_title
from workers.reporting.text import ABSENT, counted, data_size, estimate, listing, number, percent
from workers.reporting.topics.records import joined
from workers.reporting.verdict import Verdict, verdict

SIGNS = {Level.negligible: "○", Level.noticeable: "◐", Level.severe: "●", Level.unjudged: "?"}
"""Fuller is worse; the word stands beside it, so that no colour is needed to tell them apart."""

HEAD = ("Mean KL, nats", "Perplexity ratio", "Same top token", "Size", "Smaller")
"""What the table of outcomes tells of a scheme, after its name and the word."""


class Outcome(NamedTuple):
    """One scheme: a row of the table of outcomes, and its grounds."""

    name: str
    simulated: bool
    analysis_only: bool
    title: str
    verdict: Verdict
    cells: tuple[str, ...]
    """As `HEAD` says."""
    perplexity: str
    interval: str
    """The perplexity ratio's 95 % interval."""
    not_quantised: str
    settings: str
    columns: str | None
    """How many input columns int8 computes in 16 bits; None for another scheme."""


def outcomes(report: Report) -> tuple[Outcome, ...]:
    """Return every scheme's outcome, in the report's order."""
    return tuple(_outcome(report, name, scheme) for name, scheme in report.schemes.items())


def _outcome(report: Report, name: str, scheme: SchemeFacts) -> Outcome:
    cells = (
        estimate(mean_kl(scheme.kl_divergence)),
        estimate(scheme.perplexity_ratio),
        share(scheme.same_top_token),
        data_size(scheme.model_bytes),
        f"{number(scheme.compression)} times",
    )
    left = scheme.not_quantised
    return Outcome(
        name=name,
        simulated=scheme.simulated,
        analysis_only=scheme.analysis_only,
        title=scheme_title(name, scheme).removeprefix(name).strip(" ()"),
        verdict=verdict(report, scheme),
        cells=cells,
        perplexity=estimate(scheme.perplexity),
        interval=_bounds(scheme.perplexity_ratio),
        not_quantised=f"{counted(len(left), 'module')} ({listing(left, 6)})" if left else "",
        columns=fp16_columns(name, scheme),
        settings=", ".join(f"{key} {value}" for key, value in scheme.settings.items()) or "none",
    )


def by_level(report: Report) -> tuple[tuple[Level, str], ...]:
    """Return the schemes of every level that occurs, the mildest first, as `a, b and c`."""
    found: dict[Level, list[str]] = {}
    for outcome in outcomes(report):
        found.setdefault(outcome.verdict.level, []).append(_told(outcome))
    return tuple((level, joined(found[level])) for level in sorted(found))


def _told(outcome: Outcome) -> str:
    marks = [*(["simulated"] if outcome.simulated else []), *(["analysis only"] if outcome.analysis_only else [])]
    remarks = [*marks, *doubt(outcome.verdict)]
    return f"{outcome.name} ({'; '.join(remarks)})" if remarks else outcome.name


def doubt(found: Verdict) -> tuple[str, ...]:
    """Return what the word must not be read without: how little was quantised, which other class is not ruled out."""
    unsettled = f"{' and '.join(level.name for level in found.doubtful)} not ruled out" if found.doubtful else None
    return tuple(remark for remark in (found.partial, unsettled) if remark)


def reference(report: Report) -> str:
    """Say how the model does without quantisation."""
    perplexity = report.reference.perplexity
    if perplexity is None:
        return "No position has a finite prediction under the reference."
    scored = counted(perplexity.scored_tokens, "scored token")
    return f"The reference has a perplexity of {estimate(perplexity)} over {scored}. Every ± is one standard error."


def _bounds(ratio: Estimate | None) -> str:
    if ratio is None or ratio.standard_error is None:
        return ABSENT
    low, high = interval(ratio)
    return f"{number(low, 5)} to {number(high, 5)}"


def share(top: Estimate | None) -> str:
    """Return a share with its standard error, in percent."""
    if top is None:
        return ABSENT
    if top.standard_error is None:
        return percent(top.value)
    return f"{percent(top.value, 2)} ± {percent(top.standard_error, 2)}"
