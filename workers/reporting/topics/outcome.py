"""The outcome: the verdict on every scheme, its reasons, and the figures behind it."""

from typing import NamedTuple

from service.contracts.report import Estimate, Report, SchemeFacts
from service.evaluation.verdict import Level, mean_kl
from workers.reporting.drawing.style import scheme_title
from workers.reporting.text import claim, counted, data_size, estimate, listing, number, percent, percent_estimate
from workers.reporting.topics.records import joined
from workers.reporting.verdict import Verdict, allowed, verdict

SIGNS = {Level.negligible: "○", Level.noticeable: "◐", Level.severe: "●", Level.unjudged: "?"}
"""A fuller circle is worse. The level's name follows it, so the sign never stands alone."""

LISTED_MODULES = 4
"""Modules that are listed by name."""
_COMMON = {"embed_tokens": "embeddings", "wte": "embeddings", "embed_in": "embeddings", "wpe": "position embeddings"}
"""Last parts of module names, and what a reader calls these modules."""

HEAD = ("Mean KL, nats", "Perplexity ratio", "Same top token", "Size", "Smaller")
"""Columns of the table of outcomes, after the scheme's name and level."""


class Outcome(NamedTuple):
    """One scheme: a row of the table of outcomes, its verdict and its settings."""

    name: str
    simulated: bool
    analysis_only: bool
    title: str
    verdict: Verdict
    cells: tuple[str, ...]
    """As `HEAD` says."""
    perplexity: str
    not_quantised: str | None
    """The modules that the scheme leaves as they are, and their share of the result; None if there are none."""
    settings: str


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
    return Outcome(
        name=name,
        simulated=scheme.simulated,
        analysis_only=scheme.analysis_only,
        title=scheme_title(name, scheme).removeprefix(name).strip(" ()"),
        verdict=verdict(report, scheme),
        cells=cells,
        perplexity=estimate(scheme.perplexity),
        not_quantised=_not_quantised(scheme),
        settings=", ".join(f"{key} {value}" for key, value in scheme.settings.items()) or "none",
    )


def _not_quantised(scheme: SchemeFacts) -> str | None:
    modules = scheme.not_quantised
    if not modules:
        return None
    names = [_COMMON.get(name.rpartition(".")[2], name) for name in modules]
    shown = joined(names) if len(names) <= LISTED_MODULES else listing(names, LISTED_MODULES)
    size = scheme.not_quantised_bytes
    share = "" if size is None else f" ({percent(size / scheme.model_bytes, 0)} of the result)"
    return f"Not quantized: {shown}{share}."


def by_level(report: Report) -> tuple[tuple[Level, str], ...]:
    """Return the schemes of every level that occurs, the mildest first, as `a, b and c`."""
    names: dict[Level, list[str]] = {}
    for outcome in outcomes(report):
        names.setdefault(outcome.verdict.level, []).append(_name_with_remarks(outcome))
    return tuple((level, joined(names[level])) for level in sorted(names))


def _name_with_remarks(outcome: Outcome) -> str:
    marks = [*(["simulated"] if outcome.simulated else []), *(["analysis only"] if outcome.analysis_only else [])]
    remarks = [*marks, *doubt(outcome.verdict)]
    return f"{outcome.name} ({'; '.join(remarks)})" if remarks else outcome.name


def doubt(judged: Verdict) -> tuple[str, ...]:
    """Return what qualifies the level: a small share of quantized weights, and other levels within the intervals."""
    unsettled = f"95% intervals also allow {allowed(judged.doubtful)}" if judged.doubtful else None
    return tuple(remark for remark in (judged.partial, unsettled) if remark)


def reference(report: Report) -> str:
    """Return the reference's perplexity and what the intervals rest on, in sentences."""
    perplexity = report.reference.perplexity
    if perplexity is None:
        return "The reference has no finite prediction at any position."
    scored = counted(perplexity.scored_tokens, "scored token")
    return f"Reference perplexity is {claim(perplexity)} over {scored}. {intervals(perplexity)}"


def intervals(figure: Estimate) -> str:
    """Return what the values in brackets are, and which units they take as independent."""
    if figure.units is None or figure.unit_count is None:
        return "The values have no 95% intervals."
    cut = "" if figure.units == "sequences" else " cut from the text, which has fewer than 8 sequences"
    return f"Brackets: 95% intervals over {figure.unit_count:,} independent {figure.units}{cut}."
