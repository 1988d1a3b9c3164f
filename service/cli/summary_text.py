"""Prints the summary of a report for a person."""

from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from rich.console import Console
from rich.table import Table

from service.cli.client import Document
from service.cli.summary import figure
from service.contracts.warnings import by_code
from service.evaluation.numbers import claim

NONE = "none"
"""Stands for a figure that could not be had: no position had a finite prediction."""
SIMULATED = "(sim.)"
"""Stands after the name of a simulated scheme where there is little room."""
ANALYSIS_ONLY = "(a.o.)"
"""Stands after the name of one that BitsAndBytesConfig cannot express."""
SHOWN_NAMES = 6
"""Of a longer list of modules or dimensions only the first are shown; report.json has them all."""
SHOWN_WARNINGS = 2
"""Warnings of one code that are shown."""


def show(console: Console, summary: dict[str, Any]) -> None:
    """Print the summary for a person: verdicts, warnings, figures, outlier dimensions, what to do next."""
    model, perplexity = summary["model"], summary["reference"]["perplexity"]
    size = f"{model['layers']} layers, {model['parameters'] / 1e6:.1f} M parameters"
    _line(console, f"{model['source']}: {model['architecture']}, {size}")
    tokens = f" over {perplexity['scored_tokens']:,} tokens" if perplexity else ""
    value = claim(figure(perplexity, "value")) if perplexity else NONE
    _line(console, f"Perplexity without quantization: {value}{tokens}")
    _lines(console, _verdicts(summary["schemes"]))
    _lines(console, _warnings(summary["warnings"]))
    if summary["schemes"]:
        console.print(_divergences(summary["schemes"]))
        _lines(console, _notes(summary["schemes"]))
    _lines(console, _outliers(summary))
    _lines(console, _separation(summary["labelled"]))
    _lines(console, _next(summary["next_steps"]))


def _verdicts(schemes: dict[str, Any]) -> Iterable[str]:
    for name, facts in schemes.items():
        verdict = facts["verdict"]
        yield f"The effect of {name} is {verdict['level']}."
        yield from (f"  {reason}" for reason in verdict["reasons"])
        if also := " and ".join(verdict["not_ruled_out"]):
            yield f"  The 95% intervals also allow {also}."


def _warnings(warnings: list[Document]) -> Iterable[str]:
    for kind in by_code(warnings, itemgetter("code")):
        same = [*kind.first, *kind.rest]
        for warning in same[:SHOWN_WARNINGS]:
            where = f" ({warning['where']})" if warning.get("where") else ""
            advice = f" {warning['advice']}" if warning.get("advice") else ""
            yield f"Warning {kind.code}: {warning['message']}{where}{advice}"
        if more := same[SHOWN_WARNINGS:]:
            yield f"Warning {kind.code}: {len(more)} more in report.json."


def _divergences(schemes: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("scheme", "perplexity", "ratio", "KL mean", "KL p99", "same top token", "size", "smaller by"):
        table.add_column(title, justify="left" if title == "scheme" else "right", no_wrap=True)
    for name, facts in schemes.items():
        table.add_row(
            _marked(name, facts),
            _value(facts["perplexity"], 3),
            _value(facts["perplexity_ratio"], 4),
            *_divergence(facts),
            _bytes(facts["model_bytes"]),
            f"{facts['compression']:.2f}x",
        )
    return table


def _marked(name: str, facts: dict[str, Any]) -> str:
    marks = {"simulated": SIMULATED, "analysis_only": ANALYSIS_ONLY}
    return " ".join([name, *(mark for key, mark in marks.items() if facts[key])])


def _divergence(facts: dict[str, Any]) -> tuple[str, str, str]:
    kl_divergence, same_top_token = facts["kl_divergence"], facts["same_top_token"]
    if kl_divergence is None or same_top_token is None:
        return (NONE, NONE, NONE)
    return f"{kl_divergence['mean']:.3g}", f"{kl_divergence['p99']:.3g}", f"{same_top_token['value']:.2%}"


def _notes(schemes: dict[str, Any]) -> Iterable[str]:
    """Say what the table of the schemes leaves out."""
    if any(facts["simulated"] for facts in schemes.values()):
        yield f"{SIMULATED}: simulated, rounded numbers stand in for a low-precision kernel"
    if any(facts["analysis_only"] for facts in schemes.values()):
        yield f"{ANALYSIS_ONLY}: analysis only, no BitsAndBytesConfig loads a model with these settings"
    worst = {name: facts["worst_site"] for name, facts in schemes.items() if facts["worst_site"] is not None}
    if worst:
        places = (f"{name} layer {w['layer']} {w['component']} ({w['relative_l2']:.2%})" for name, w in worst.items())
        yield f"Largest relative error of a component's output: {'; '.join(places)}"
    for left in dict.fromkeys(tuple(facts["not_quantised"]) for facts in schemes.values()):
        under = [name for name, facts in schemes.items() if tuple(facts["not_quantised"]) == left]
        if left:
            names = "" if len(under) == len(schemes) else f" under {', '.join(under)}"
            yield f"Not quantized{names}: {_some(left)}"


def _outliers(summary: dict[str, Any]) -> Iterable[str]:
    definitions, size = summary["outlier_dimensions"], summary["model"]["hidden_size"]
    if not definitions and not summary["not_discriminating"]:
        yield "No outlier dimensions found"
        return
    yield "Outlier dimensions by definition, those in the most layers first (report.json has all):"
    for definition, dimensions in definitions.items():
        ranked = sorted(dimensions, key=_prominence, reverse=True)
        yield f"  {definition}: {len(dimensions)} ({_some([str(one['dimension']) for one in ranked])})"
    for definition, count in summary["not_discriminating"].items():
        yield f"  {definition}: {count} of {size}, so it does not discriminate"


def _prominence(dimension: Document) -> tuple[float, float]:
    return dimension.get("layers_fraction") or 0.0, dimension.get("abs_max") or 0.0


def _separation(labelled: dict[str, Any] | None) -> Iterable[str]:
    if labelled is None:
        return
    figures = ", ".join(
        f"{name} {labelled['reference'][key]:.3f}"
        for name, key in (("AUROC", "auroc"), ("rho", "spearman_rho"))
        if labelled["reference"].get(key) is not None
    )
    best = f"dimension {labelled['dimension']} ({figures})"
    probability = labelled["permutation_probability"]
    tested = "" if probability is None else f"; permutation probability of the best of all {probability:.3g}"
    verdict = "no dimension separates beyond chance; best is" if labelled["by_chance"] else "best separated by"
    yield f"Labeled prompts: {verdict} {best}{tested}"


def _next(steps: list[str]) -> Iterable[str]:
    for number, step in enumerate(steps):
        yield f"Next: {step}" if number == 0 else f"      {step}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - SHOWN_NAMES
    return ", ".join(listed[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _value(figure: Document | None, digits: int) -> str:
    return NONE if figure is None else f"{figure['value']:.{digits}f}"


def _bytes(count: int) -> str:
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}"


def _lines(console: Console, texts: Iterable[str]) -> None:
    for text in texts:
        _line(console, text)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
