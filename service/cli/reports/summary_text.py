"""Prints the summary of a report for a person."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from service.cli.output import line
from service.cli.reports.summary import flagging
from service.contracts.harm.facts import HarmFacts
from service.contracts.report import Estimate, Report, SchemeFacts
from service.contracts.sections.labelled import Labelled
from service.contracts.sections.outliers import LayerwiseDimension, LlmInt8Dimension
from service.contracts.warnings import Warning
from service.evaluation import decision
from service.evaluation.next_steps import next_steps
from service.evaluation.numbers import claim, number
from service.evaluation.shown_warnings import by_code
from service.evaluation.verdict import verdict_of

NONE = "none"
"""Stands for a value that could not be had: no position had a finite prediction."""
SIMULATED = "(sim.)"
"""Stands after the name of a simulated scheme where there is little room."""
ANALYSIS_ONLY = "(a.o.)"
"""Stands after the name of one that BitsAndBytesConfig cannot express."""
SHOWN_NAMES = 6
"""Of a longer list of modules or dimensions only the first are shown; report.json has them all."""
SHOWN_WARNINGS = 2
"""Warnings of one code that are shown."""

Schemes = Mapping[str, SchemeFacts]


def show(console: Console, report: Report) -> None:
    """Print the summary: verdicts, warnings, values, outlier dimensions, what to do next."""
    _lines(console, _decision(report))
    _lines(console, _model(report))
    _lines(console, _verdicts(report))
    _lines(console, _warnings(report.warnings))
    if report.schemes:
        console.print(_divergences(report.schemes))
        _lines(console, _notes(report.schemes))
        _lines(console, _not_quantised(report.schemes))
    _lines(console, _outliers(report))
    _lines(console, _harm(report.harm or {}))
    _lines(console, _separation(report.labelled))
    _lines(console, _next(next_steps(report)))


def _decision(report: Report) -> Iterable[str]:
    yield from decision.decision(report)
    if (shipped := decision.configuration(report)) is not None:
        yield from decision.as_python(shipped[1]).splitlines()


def _model(report: Report) -> Iterable[str]:
    model, perplexity = report.model, report.reference.perplexity
    size = f"{model.layers} layers, {model.parameters / 1e6:.1f} M parameters"
    yield f"{model.source}: {model.architecture}, {size}"
    tokens = f" over {perplexity.scored_tokens:,} tokens" if perplexity else ""
    yield f"Perplexity without quantization: {claim(perplexity) if perplexity else NONE}{tokens}"


def _verdicts(report: Report) -> Iterable[str]:
    for name, facts in report.schemes.items():
        verdict = facts.verdict or verdict_of(report, facts)
        yield f"The effect of {name} is {verdict.level}."
        yield from (f"  {reason}" for reason in verdict.reasons)
        if also := " and ".join(verdict.not_ruled_out):
            yield f"  The 95% intervals also allow {also}."


def _warnings(warnings: Iterable[Warning]) -> Iterable[str]:
    for same in by_code(warnings, SHOWN_WARNINGS):
        for warning in same.shown:
            where = f" ({warning.where})" if warning.where else ""
            stop = "" if warning.message.endswith(".") and not where else "."
            advice = f"{stop} {warning.advice}" if warning.advice else ""
            yield f"Warning {same.code}: {warning.message}{where}{advice}"
        if same.rest:
            yield f"Warning {same.code}: {len(same.rest)} more in report.json."


def _divergences(schemes: Schemes) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("scheme", "perplexity", "ratio", "KL mean", "KL p99", "same top token", "size", "smaller by"):
        table.add_column(title, justify="left" if title == "scheme" else "right", no_wrap=True)
    for name, facts in schemes.items():
        table.add_row(
            _marked(name, facts),
            _value(facts.perplexity, 3),
            _value(facts.perplexity_ratio, 4),
            *_divergence(facts),
            decimal(facts.model_bytes),
            f"{facts.compression:.2f}x",
        )
    return table


def _marked(name: str, facts: SchemeFacts) -> str:
    marks = [*([SIMULATED] if facts.simulated else []), *([ANALYSIS_ONLY] if facts.analysis_only else [])]
    return " ".join([name, *marks])


def _divergence(facts: SchemeFacts) -> tuple[str, str, str]:
    kl, same_top_token = facts.kl_divergence, facts.same_top_token
    if kl is None or same_top_token is None:
        return (NONE, NONE, NONE)
    return f"{kl.mean:.3g}", f"{kl.p99:.3g}", f"{same_top_token.value:.2%}"


def _notes(schemes: Schemes) -> Iterable[str]:
    """Explain the marks in the table of the schemes, and name the modules with the largest errors."""
    if any(facts.simulated for facts in schemes.values()):
        yield f"{SIMULATED}: simulated, rounded numbers stand in for a low-precision kernel"
    if any(facts.analysis_only for facts in schemes.values()):
        yield f"{ANALYSIS_ONLY}: analysis only, no BitsAndBytesConfig loads a model with these settings"
    worst = {name: facts.worst_sites[0] for name, facts in schemes.items() if facts.worst_sites}
    if worst:
        places = (f"{name} layer {w.layer} {w.component} ({w.relative_l2:.2%})" for name, w in worst.items())
        yield f"Largest relative error of a component's output: {'; '.join(places)}"


def _not_quantised(schemes: Schemes) -> Iterable[str]:
    for modules in dict.fromkeys(facts.not_quantised for facts in schemes.values()):
        under = [name for name, facts in schemes.items() if facts.not_quantised == modules]
        if modules:
            names = "" if len(under) == len(schemes) else f" under {', '.join(under)}"
            yield f"Not quantized{names}: {_some(modules)}"


def _outliers(report: Report) -> Iterable[str]:
    size = report.model.hidden_size
    flagged, not_discriminating = flagging(report), report.outliers.unnamed(size)
    if not flagged and not not_discriminating:
        yield "No outlier dimensions found"
        return
    yield "Outlier dimensions by definition, those in the most layers first (report.json has all):"
    for name, definition in flagged.items():
        ranked = sorted(definition.dimensions, key=_prominence, reverse=True)
        yield f"  {name}: {len(ranked)} ({_some([str(one.dimension) for one in ranked])})"
    for name, count in not_discriminating.items():
        yield f"  {name}: {count} of {size}, so it does not discriminate"


def _prominence(flagged: LlmInt8Dimension | LayerwiseDimension) -> tuple[float, float]:
    return flagged.layers_fraction, flagged.abs_max


def _harm(harms: Mapping[str, HarmFacts]) -> Iterable[str]:
    """Say how far the harms of single modules can be trusted."""
    for name, facts in harms.items():
        figures = []
        if facts.check is not None:
            count, parts = facts.check.swaps, facts.check.of if facts.check.swaps != 1 else facts.check.of[:-1]
            figures.append(f"Spearman {number(facts.check.spearman)} of estimates and {count} measured {parts}")
        if facts.additivity is not None:
            figures.append(f"additivity {number(facts.additivity)}")
        if floors := [floor for floor in facts.noise_floor or () if floor is not None]:
            figures.append(f"noise floor up to {number(max(floors))} nats")
        if figures:
            yield f"Harm of {name}: {', '.join(figures)}"


def _separation(labelled: Labelled | None) -> Iterable[str]:
    if labelled is None or not labelled.dimensions:
        return
    best = labelled.dimensions[0]
    measures = {"AUROC": best.reference.auroc, "rho": best.reference.spearman_rho}
    figures = ", ".join(f"{name} {value:.3f}" for name, value in measures.items() if value is not None)
    probability = labelled.permutation_probability
    tested = "" if probability is None else f"; permutation probability of the best of all {probability:.3g}"
    verdict = "no dimension separates beyond chance; best is" if labelled.by_chance else "best separated by"
    yield f"Labeled prompts: {verdict} dimension {best.dimension} ({figures}){tested}"


def _next(steps: Iterable[str]) -> Iterable[str]:
    for place, step in enumerate(steps):
        yield f"Next: {step}" if place == 0 else f"      {step}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - SHOWN_NAMES
    return ", ".join(listed[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _value(estimate: Estimate | None, digits: int) -> str:
    return NONE if estimate is None else f"{estimate.value:.{digits}f}"


def _lines(console: Console, texts: Iterable[str]) -> None:
    for text in texts:
        line(console, text)
