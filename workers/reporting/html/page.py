"""Builds `report.html`: one file, for screens of any size, light or dark, and for print."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from service.contracts.report import LeftOut, Report
from service.evaluation import decision
from service.evaluation.next_steps import next_steps
from service.evaluation.shown_warnings import by_code, most_important
from workers.reporting.drawing.figure import Saved
from workers.reporting.drawing.figure import calibrated as measured_on
from workers.reporting.figures.gallery import Gallery
from workers.reporting.html.templates import Placed, environment, placed_figure, style_sheet
from workers.reporting.loading import Source
from workers.reporting.text import short_name
from workers.reporting.topics import (
    divergence,
    dynamic_range,
    errors,
    harm,
    heads,
    labelled,
    mixes,
    outcome,
    outliers,
    reproduction,
)
from workers.reporting.topics.records import Topic
from workers.reporting.verdict import limits_in_words

OTHER = "figures"
"""The section of a figure that belongs to no topic."""
MAX_UNFOLDED_FIGURES = 8
"""More figures of one kind than this are folded."""
_TOPICS = {
    "range_by_layer": "range",
    "component_heatmap_range_bits": "range",
    "component_heatmap_crest_db": "range",
    "component_heatmap_abs_max": "range",
    "outlier_dimensions": "outliers",
    "activation_profile": "outliers",
    "fp16_columns": "outliers",
    "channel_surface": "outliers",
    "head_severity": "heads",
    "head_agreement": "heads",
    "error_growth": "errors",
    "component_heatmap": "errors",
    "divergence": "divergence",
    "harm_map": "harm",
    "harm_shares": "harm",
    "estimate_check": "harm",
    "frontier": "mixes",
    "labelled_activations": "labelled",
}
"""The topic of every figure by the beginning of its name; the longest beginning that fits decides. Inside a topic
figures stand in this order."""


class Group(NamedTuple):
    """Figures that stand together."""

    figures: tuple[Placed, ...]
    folded: bool
    """In a closed `details`."""


def _beginning(figure: str) -> str | None:
    fitting = [start for start in _TOPICS if figure == start or figure.startswith(f"{start}_")]
    return max(fitting, key=len, default=None)


def topic_of(figure: str) -> str:
    """Return the name of the topic that the figure of this name belongs to."""
    return _TOPICS.get(_beginning(figure) or "", OTHER)


def _place(saved: Saved) -> int:
    return list(_TOPICS).index(_beginning(saved.name) or "labelled_activations")


def topics(source: Source) -> tuple[Topic, ...]:
    """Return the sections of the page between the outcome and the calibration, in order."""
    report = source.report
    return (
        dynamic_range.topic(source),
        outliers.topic(source),
        heads.topic(source),
        errors.topic(source),
        divergence.topic(report),
        *filter(None, [harm.topic(report)]),
        *mixes.topics(report),
        labelled.topic(report),
    )


def _placed(shown: Sequence[Saved], directory: Path) -> dict[str, list[Group]]:
    """Return the figures by topic, in the order of the page; a kind of many figures makes a group of its own."""
    placed: dict[str, list[Group]] = {}
    for kind, group in itertools.groupby(sorted(shown, key=_place), key=lambda saved: _beginning(saved.name)):
        figures = tuple(placed_figure(saved, directory) for saved in group)
        groups = placed.setdefault(_TOPICS.get(kind or "", OTHER), [])
        if len(figures) <= MAX_UNFOLDED_FIGURES and groups and not groups[-1].folded:
            groups[-1] = Group(groups[-1].figures + figures, folded=False)
        else:
            groups.append(Group(figures, folded=len(figures) > MAX_UNFOLDED_FIGURES))
    return placed


def _left_out(gallery: Gallery) -> dict[str, list[LeftOut]]:
    """Return the figures that the report cannot have, by topic."""
    missing: dict[str, list[LeftOut]] = {}
    for figure in gallery.left_out:
        missing.setdefault(topic_of(figure.name), []).append(figure)
    return missing


def page(source: Source, sections: Sequence[Topic], gallery: Gallery, directory: Path) -> str:
    """Return the page.

    Args:
        source: The report and its tables.
        sections: The sections between the outcome and the calibration.
        gallery: Its figures, and those that it cannot have.
        directory: Where the figures' files lie.
    """
    report = source.report
    figures = _placed(gallery.figures, directory)
    name = short_name(report.model.source)
    template = environment().get_template("report.html.j2")
    return template.render(
        style=style_sheet(),
        report=report,
        name=name,
        measured=f"{report.created_at:%-d %B %Y, %H:%M} {report.created_at.tzname() or ''}".strip(),
        topics=sections,
        figures=figures,
        measured_on=f"{name}, {measured_on(report)}",
        left_out=_left_out(gallery),
        others=figures.get(OTHER, []),
        **_verdict_part(report),
        **_reproduction_part(report),
    )


def _verdict_part(report: Report) -> dict[str, Any]:
    """Return the template's variables for the verdict, the warnings and the next steps."""
    first, others = most_important(report.warnings)
    shipped = decision.configuration(report)
    return {
        "decision": decision.decision(report),
        "shipped": shipped
        and {
            "scheme": shipped[0],
            "python": decision.as_python(shipped[1]),
            "json": decision.as_json(shipped[1]),
        },
        "next_steps": next_steps(report),
        "first_warnings": first,
        "other_warnings": by_code(others),
        "other_count": len(others),
        "reference": outcome.reference(report),
        "by_level": outcome.by_level(report),
        "outcomes": outcome.outcomes(report),
        "outcome_head": outcome.HEAD,
        "signs": outcome.SIGNS,
        "limits": limits_in_words(report.analysis.verdict),
    }


def _reproduction_part(report: Report) -> dict[str, Any]:
    """Return the template's variables for calibration and reproduction."""
    return {
        "calibrated": reproduction.calibrated(report),
        "provenance": reproduction.provenance(report),
        "identity": reproduction.identity(report),
        "command": reproduction.command(report),
        "names_files": reproduction.names_files(report),
    }
