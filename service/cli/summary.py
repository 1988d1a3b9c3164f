"""What an engineer can act on, taken out of `report.json`.

Keys are read one by one and others are passed over, so that a newer service's report can be summarized too.
"""

from typing import Any

from service.cli.client import Document
from service.contracts.labelled import CHANCE
from service.contracts.outliers import discriminating
from service.contracts.report import Estimate
from service.contracts.request import SAMPLE, VerdictLimits
from service.evaluation.next_steps import MeasuredText, SchemeOutcome, keep_trial, steps_after, variant_named
from service.evaluation.verdict import Grounds, recorded


def summarize(report: Document) -> dict[str, Any]:
    """Return the figures that `analyze` shows, as a document of its own."""
    limits = _limits(report)
    perplexity = report["reference"]["perplexity"]
    schemes = {
        name: {"verdict": _verdict(facts, limits, perplexity, report["model"]["vocabulary"])} | _scheme(facts)
        for name, facts in report["schemes"].items()
    }
    return {
        "model": {
            key: report["model"][key] for key in ("source", "architecture", "layers", "hidden_size", "parameters")
        },
        "reference": report["reference"],
        "verdict_limits": limits.model_dump(),
        "schemes": schemes,
        **_by_definition(report),
        "labelled": _labelled(report.get("labelled")),
        "warnings": list(report["warnings"]),
        "next_steps": _next_steps(report, schemes),
    }


def _next_steps(report: Document, schemes: dict[str, Any]) -> list[str]:
    """Return what to do next, in sentences; a newer service's report need not be a whole `Report` for it."""
    calibration, analysis = report.get("calibration", {}), report.get("analysis", {})
    sequences = calibration.get("sequences", 0)
    text = MeasuredText(
        sequences=sequences,
        exhausted=sequences < analysis.get("sequences", sequences),
        bundled=calibration.get("source") == SAMPLE != report["model"]["source"],
        predictable=report["reference"]["perplexity"] is not None,
    )
    return list(steps_after([_outcome(report, name, facts) for name, facts in schemes.items()], text))


def _outcome(report: Document, name: str, facts: dict[str, Any]) -> SchemeOutcome:
    verdict, kl = facts["verdict"], facts["kl_divergence"]
    return SchemeOutcome(
        name=name,
        level=verdict["level"],
        settled=not verdict["not_ruled_out"] and (kl is None or kl["interval"] is not None),
        mean_kl=float("inf") if kl is None else kl["mean"],
        model_bytes=facts["model_bytes"],
        compression=facts["compression"],
        deployable=not facts["simulated"] and not facts["analysis_only"],
        replaces_nothing=facts["quantised_share"] == 0,
        keep_trial=keep_trial(
            variant_named(name, report.get("analysis", {}).get("schemes", ())),
            [(site["layer"], site["component"]) for site in report["schemes"][name]["worst_sites"]],
            report["model"]["architecture"],
        ),
    )


def _by_definition(report: Document) -> dict[str, Any]:
    """Return the outlier dimensions, and how many a definition flags that does not discriminate among them."""
    flagged = {name: list(of["dimensions"]) for name, of in report["outliers"].items() if of and of["dimensions"]}
    size = report["model"]["hidden_size"]
    counts = {name: len(dimensions) for name, dimensions in flagged.items()}
    unnamed = {name: count for name, count in counts.items() if not discriminating(count, size)}
    return {
        "outlier_dimensions": {name: dimensions for name, dimensions in flagged.items() if name not in unnamed},
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
    verdict = facts.get("verdict")
    if not verdict:
        kl, ratio = facts["kl_divergence"], facts["perplexity_ratio"]
        grounds = Grounds(perplexity["value"] if perplexity else None, vocabulary, facts.get("quantised_share"))
        judged = recorded(kl and figure(kl, "mean"), ratio and figure(ratio, "value"), limits, grounds)
        verdict = judged.model_dump(mode="json")
    return {key: verdict[key] for key in ("level", "reasons", "not_ruled_out")}


def figure(figure: Document, value: str) -> Estimate:
    """Return a figure with its interval, if it has one: a standard error without one takes tokens as independent."""
    interval, error = figure.get("interval"), figure["standard_error"]
    return Estimate(value=figure[value], standard_error=error if interval else None, interval=interval)


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
