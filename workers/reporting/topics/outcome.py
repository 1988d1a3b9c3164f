"""The outcome: what every scheme does to the predictions, in one word each, and the figures and limits behind it."""

from typing import NamedTuple

from service.contracts.report import Estimate, Report, SchemeFacts
from service.contracts.verdict import Level, mean_kl
from workers.reporting.columns import fp16_columns
from workers.reporting.figures.style import scheme_title
from workers.reporting.text import claim, counted, data_size, estimate, listing, number, percent_estimate
from workers.reporting.topics.records import joined
from workers.reporting.verdict import Verdict, verdict

SIGNS = {Level.negligible: "○", Level.noticeable: "◐", Level.severe: "●", Level.unjudged: "?"}
"""Fuller is worse; the word stands beside it, so that no color is needed to tell them apart."""

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
        percent_estimate(scheme.same_top_token),
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
    """Return what the word must not be read without: how little was quantized, which other class is not ruled out."""
    unsettled = f"{' and '.join(level.name for level in found.doubtful)} not ruled out" if found.doubtful else None
    return tuple(remark for remark in (found.partial, unsettled) if remark)


def reference(report: Report) -> str:
    """Say how the model does without quantization."""
    perplexity = report.reference.perplexity
    if perplexity is None:
        return "No position has a finite prediction under the reference."
    scored = counted(perplexity.scored_tokens, "scored token")
    return f"The reference has a perplexity of {claim(perplexity)} over {scored}. {intervals(perplexity)}"


def intervals(figure: Estimate) -> str:
    """Say what the brackets hold, and what was taken as independent for them."""
    if figure.units is None or figure.unit_count is None:
        return "No value has a 95% interval."
    independent = f"{figure.unit_count:,} {figure.units}"
    cut = "" if figure.units == "sequences" else ", into which the text is cut because it has fewer than 8 sequences"
    return f"Brackets hold 95% intervals, with {independent} taken as independent{cut}."
