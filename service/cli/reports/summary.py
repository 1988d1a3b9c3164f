"""Selects from a report the values that `headroom analyze --json` prints."""

from typing import Any

from service.contracts.harm.recommendation import Recommendation
from service.contracts.record import Record
from service.contracts.report import Report, SchemeFacts, SchemeVerdict
from service.contracts.sections.labelled import Labelled
from service.contracts.sections.outliers import Definition
from service.contracts.thresholds import VerdictLimits
from service.evaluation.decision import configuration, decision, to_ship
from service.evaluation.next_steps import next_steps
from service.evaluation.verdict import verdict_of


def summarize(report: Report) -> dict[str, Any]:
    """Return verdicts, main values, outlier dimensions, warnings and next steps as a JSON document."""
    recommended = report.recommendation
    return {
        **(
            {}
            if recommended is None
            else {
                "decision": list(decision(report)),
                "ship": _shipped(report),
                "recommendation": _recommended(recommended),
            }
        ),
        "model": report.model.model_dump(
            include={"source", "architecture", "layers", "hidden_size", "parameters"}, mode="json"
        ),
        "reference": _document(report.reference),
        "verdict_limits": report.analysis.verdict.model_dump(include=set(VerdictLimits.model_fields)),
        "schemes": {
            name: {"verdict": _verdict(facts.verdict or verdict_of(report, facts))} | _scheme(facts)
            for name, facts in report.schemes.items()
        },
        "outlier_dimensions": {
            name: [_document(dimension) for dimension in definition.dimensions]
            for name, definition in flagging(report).items()
        },
        "not_discriminating": report.outliers.unnamed(report.model.hidden_size),
        "labelled": _labelled(report.labelled),
        "warnings": [_document(warning) for warning in report.warnings],
        "next_steps": list(next_steps(report)),
    }


def _shipped(report: Report) -> dict[str, Any] | None:
    """Return the scheme or mix to ship, with its configuration; None where nothing is shipped."""
    shipped = to_ship(report)
    if shipped is None:
        return None
    configured = configuration(report)
    return {
        "scheme": shipped.scheme,
        "mix": shipped.mix and shipped.mix.name,
        "level": shipped.level.name,
        "kl": shipped.kl,
        "bytes": shipped.bytes,
        "config": configured and configured[1],
    }


def flagging(report: Report) -> dict[str, Definition]:
    """Return the definitions that flag a dimension and discriminate among the dimensions, by name."""
    named = report.outliers.named(report.model.hidden_size)
    return {name: definition for name, definition in named.items() if definition.dimensions}


def _document(record: Record | None) -> dict[str, Any] | None:
    return None if record is None else record.model_dump(mode="json")


def _verdict(verdict: SchemeVerdict) -> dict[str, Any]:
    return verdict.model_dump(include=set(SchemeVerdict.model_fields), mode="json")


def _scheme(facts: SchemeFacts) -> dict[str, Any]:
    kl = facts.kl_divergence
    return {
        "simulated": facts.simulated,
        "analysis_only": facts.analysis_only,
        "perplexity": _document(facts.perplexity),
        "perplexity_ratio": _document(facts.perplexity_ratio),
        "kl_divergence": kl and kl.model_dump(include={"mean", "standard_error", "interval", "p99"}, mode="json"),
        "same_top_token": _document(facts.same_top_token),
        "model_bytes": facts.model_bytes,
        "compression": facts.compression,
        "quantised_share": facts.quantised_share,
        "not_quantised": list(facts.not_quantised),
        "worst_site": _document(facts.worst_sites[0]) if facts.worst_sites else None,
        "fp16_columns": _document(facts.fp16_columns),
    }


def _recommended(recommendations: dict[str, Recommendation]) -> dict[str, Any]:
    """Return what is recommended for every scheme, without the frontier."""
    return {name: one.model_dump(exclude={"frontier"}, mode="json") for name, one in recommendations.items()}


def _labelled(labelled: Labelled | None) -> dict[str, Any] | None:
    """Return the dimension that separates labeled prompts best, and how probable so good a best is by chance."""
    if labelled is None or not labelled.dimensions:
        return None
    best = labelled.dimensions[0]
    return {
        "dimension": best.dimension,
        "reference": _document(best.reference),
        "permutation_probability": labelled.permutation_probability,
        "by_chance": labelled.by_chance,
    }
