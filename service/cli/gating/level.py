"""`--fail-on` of `headroom analyze`: the schemes of a report whose effect is at a level, or worse."""

from service.contracts.refusals import nearest
from service.contracts.report import Report
from service.errors import InvalidRequest
from service.evaluation.verdict import Level, verdict_of

LEVELS = (Level.noticeable.name, Level.severe.name)
"""Levels that a report may be refused from."""


def checked_level(text: str) -> str:
    """Return the level that `--fail-on` names. Raises InvalidRequest."""
    if text not in LEVELS:
        raise InvalidRequest("--fail-on", text, " or ".join(LEVELS) + nearest(text, LEVELS))
    return text


def reaching(report: Report, level: str) -> tuple[list[str], list[str]]:
    """Return the schemes whose effect is at `level` or worse, and those whose effect cannot be judged."""
    levels = {name: Level[(facts.verdict or verdict_of(report, facts)).level] for name, facts in report.schemes.items()}
    unjudged = [name for name, one in levels.items() if one is Level.unjudged]
    return [name for name, one in levels.items() if Level[level] <= one < Level.unjudged], unjudged
