"""What an engineer can act on, taken out of `report.json`.

Keys are read one by one and others are passed over, so that a newer service's report can be summarized too.
"""

from operator import itemgetter
from typing import Any

from rich.console import Console
from rich.table import Table

from service.cli.client import Document
from service.contracts.labelled import CHANCE
from service.contracts.numbers import claim
from service.contracts.outliers import discriminating
from service.contracts.report import Estimate
from service.contracts.request import VerdictLimits
from service.contracts.verdict import Grounds, recorded
from service.contracts.warnings import by_code

NONE = "none"
"""Stands for a figure that could not be had: no position had a finite prediction."""
SIMULATED = "(sim.)"
"""Stands after the name of a simulated scheme where there is little room."""
ANALYSIS_ONLY = "(a.o.)"
"""Stands after the name of one that BitsAndBytesConfig cannot express."""
SHOWN_NAMES = 6
"""Of a longer list of module names only the first are shown; report.json has them all."""
SHOWN_DIMENSIONS = 20
"""The same for outlier dimensions."""


def summarize(report: Document) -> dict[str, Any]:
    """Return the figures that `analyze` shows, as a document of its own."""
    limits = _limits(report)
    perplexity = report["reference"]["perplexity"]
    return {
        "model": {
            key: report["model"][key] for key in ("source", "architecture", "layers", "hidden_size", "parameters")
        },
        "reference": report["reference"],
        "verdict_limits": limits.model_dump(),
        "schemes": {
            name: {"verdict": _verdict(facts, limits, perplexity, report["model"]["vocabulary"])} | _scheme(facts)
            for name, facts in report["schemes"].items()
        },
        **_by_definition(report),
        "labelled": _labelled(report.get("labelled")),
        "warnings": list(report["warnings"]),
    }


def _by_definition(report: Document) -> dict[str, Any]:
    """Return the outlier dimensions, and how many a definition flags that does not discriminate among them."""
    found = {name: list(of["dimensions"]) for name, of in report["outliers"].items() if of and of["dimensions"]}
    size = report["model"]["hidden_size"]
    unnamed = {name: len(dimensions) for name, dimensions in found.items() if not discriminating(len(dimensions), size)}
    return {
        "outlier_dimensions": {name: dimensions for name, dimensions in found.items() if name not in unnamed},
        "not_discriminating": unnamed,
    }


def _labelled(labelled: Document | None) -> dict[str, Any] | None:
    """Return the dimension that separates labeled prompts best, and how probable so good a best is by chance."""
    if not labelled or not labelled["dimensions"]:
        return None
    best = labelled["dimensions"][0]
    probability = labelled.get("permutation_probability")
    return {
        "dimension": best["dimension"],
        "reference": best["reference"],
        "permutation_probability": probability,
        "by_chance": probability is not None and probability > CHANCE,
    }


def _limits(report: Document) -> VerdictLimits:
    """Return where the verdict's classes begin: as the report says, or the defaults in a report that says nothing."""
    return VerdictLimits.model_validate(report.get("analysis", {}).get("verdict", {}), extra="ignore")


def _verdict(facts: Document, limits: VerdictLimits, perplexity: Document | None, vocabulary: int) -> dict[str, Any]:
    """Return the report's own verdict, or where it has none, what follows from its figures."""
    found = facts.get("verdict")
    if not found:
        kl, ratio = facts["kl_divergence"], facts["perplexity_ratio"]
        grounds = Grounds(perplexity["value"] if perplexity else None, vocabulary, facts.get("quantised_share"))
        judged = recorded(kl and _figure(kl, "mean"), ratio and _figure(ratio, "value"), limits, grounds)
        found = judged.model_dump(mode="json")
    return {key: found[key] for key in ("level", "reasons", "not_ruled_out")}


def _figure(told: Document, value: str) -> Estimate:
    """Return a figure with its interval, if it has one: a standard error without one takes tokens as independent."""
    interval = told.get("interval")
    return Estimate(value=told[value], standard_error=told["standard_error"] if interval else None, interval=interval)


def _scheme(facts: Document) -> dict[str, Any]:
    worst = facts["worst_sites"]
    kl_divergence = facts["kl_divergence"]
    return {
        # Earlier reports do not say so, but only such schemes name a format for their weights.
        "simulated": facts.get("simulated", "weight_format" in facts["settings"]),
        "analysis_only": facts.get("analysis_only", False),
        "perplexity": facts["perplexity"],
        "perplexity_ratio": facts["perplexity_ratio"],
        "kl_divergence": kl_divergence
        and {key: kl_divergence.get(key) for key in ("mean", "standard_error", "interval", "p99")},
        "same_top_token": facts["same_top_token"],
        "model_bytes": facts["model_bytes"],
        "compression": facts["compression"],
        "quantised_share": facts.get("quantised_share"),
        "not_quantised": list(facts["not_quantised"]),
        "worst_site": worst[0] if worst else None,
        "fp16_columns": facts.get("fp16_columns"),
    }


def show(console: Console, summary: dict[str, Any]) -> None:
    """Print the summary for a person."""
    model, perplexity = summary["model"], summary["reference"]["perplexity"]
    size = f"{model['layers']} layers, {model['parameters'] / 1e6:.1f} M parameters"
    _line(console, f"{model['source']}: {model['architecture']}, {size}")
    tokens = f" over {perplexity['scored_tokens']} tokens" if perplexity else ""
    known = claim(_figure(perplexity, "value")) if perplexity else NONE
    _line(console, f"Reference perplexity {known}{tokens}")
    if summary["schemes"]:
        _verdicts(console, summary)
        console.print(_divergences(summary["schemes"]))
        if any(facts["simulated"] for facts in summary["schemes"].values()):
            _line(console, f"{SIMULATED}: simulated, rounded numbers stand in for a low-precision kernel")
        if any(facts["analysis_only"] for facts in summary["schemes"].values()):
            _line(console, f"{ANALYSIS_ONLY}: analysis only, no BitsAndBytesConfig loads a model with these settings")
        _worst(console, summary["schemes"])
    _outliers(console, summary)
    _separation(console, summary["labelled"])
    _warnings(console, summary["warnings"])


def _verdicts(console: Console, summary: dict[str, Any]) -> None:
    for name, facts in summary["schemes"].items():
        verdict = facts["verdict"]
        _line(console, f"The effect of {name} is {verdict['level']}")
        for reason in verdict["reasons"]:
            _line(console, f"  {reason}")
        if also := " and ".join(verdict["not_ruled_out"]):
            _line(console, f"  The 95% intervals also allow {also}; rerun with more --sequences")
        if columns := facts["fp16_columns"]:
            _line(console, f"  {_columns(columns)}")
    limits = summary["verdict_limits"]
    kl = f"mean KL of {limits['kl_noticeable']:g} and {limits['kl_severe']:g} nats"
    ratio = f"perplexity ratio of {limits['ratio_noticeable']:g} and {limits['ratio_severe']:g}"
    _line(console, f"Noticeable and severe begin at a {kl}, and a {ratio}")


def _columns(columns: Document) -> str:
    largest = columns["largest"]
    shares = (columns["prefill"], columns["decode"], largest["prefill"])
    prefill, decode, most = (f"{100 * share:.2g}%" for share in shares)
    where = f"; the most are {most}, at layer {largest['layer']} {largest['component']}" if shares[2] else ""
    return f"It computes {prefill} of the input columns in 16 bits per sequence, {decode} per token{where}"


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


def _worst(console: Console, schemes: dict[str, Any]) -> None:
    for name, facts in schemes.items():
        worst = facts["worst_site"]
        if worst is not None:
            site = f"layer {worst['layer']} {worst['component']}"
            _line(
                console,
                f"Worst component under {name}: {site}, {worst['relative_l2']:.2%} relative error of its output",
            )
        if facts["not_quantised"]:
            _line(console, f"Not quantized under {name}: {_some(facts['not_quantised'])}")


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _separation(console: Console, labelled: dict[str, Any] | None) -> None:
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
    told = "no dimension separates beyond chance; best is" if labelled["by_chance"] else "best separated by"
    _line(console, f"Labeled prompts: {told} {best}{tested}")


def _outliers(console: Console, summary: dict[str, Any]) -> None:
    definitions, size = summary["outlier_dimensions"], summary["model"]["hidden_size"]
    for definition, count in summary["not_discriminating"].items():
        _line(console, f"{definition} flags {count} of {size} dimensions, so it does not discriminate; none is listed")
    if not definitions and not summary["not_discriminating"]:
        _line(console, "No outlier dimensions found")
    for definition, dimensions in definitions.items():
        _line(console, f"Outlier dimensions ({definition}): {len(dimensions)}")
        for found in dimensions[:SHOWN_DIMENSIONS]:
            told = [f"  dimension {found['dimension']}"]
            if found.get("layers_fraction") is not None:
                told.append(f"in {found['layers_fraction']:.0%} of the layers")
            if found.get("positions_fraction") is not None:
                told.append(f"at {found['positions_fraction']:.1%} of the positions")
            if found.get("abs_max") is not None:
                told.append(f"up to {found['abs_max']:.4g}")
            _line(console, ", ".join(told))
        if len(dimensions) > SHOWN_DIMENSIONS:
            _line(console, f"  and {len(dimensions) - SHOWN_DIMENSIONS} more")


def _warnings(console: Console, warnings: list[Document]) -> None:
    for kind in by_code(warnings, itemgetter("code")):
        for warning in kind.first:
            where = f" ({warning['where']})" if warning.get("where") else ""
            _line(console, f"Warning {kind.code}: {warning['message']}{where}")
        if kind.rest:
            _line(console, f"Warning {kind.code}: {len(kind.rest)} more; report.json lists them")


def _value(told: Document | None, digits: int) -> str:
    return NONE if told is None else f"{told['value']:.{digits}f}"


def _bytes(count: int) -> str:
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
