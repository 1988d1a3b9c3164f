"""Chooses the report that a run is compared with: a pinned one, the last that passed, or the median of the last few.

Only runs with the verdict `pass` enter a baseline. A run that warned, failed, erred or was not confirmed does not, so
that a slow decline within the noise is still compared with the last good report. A run that found nothing changed
has no report of its own. A chosen report, unlike a pinned one, is of a run with the audit's present settings: after an
edit of the text, of a threshold or of a scheme there is no baseline yet, until the next run has passed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import AuditSettings, PastRun
from service.contracts.files import StoredFile
from service.contracts.report import DEFINITIONS_VERSION, Report
from service.contracts.request import JOB_ID, Analysis
from service.errors import InvalidRequest

LAST_PASSING = "last-passing"
MOST_RUNS = 100
"""Runs that a median may be of."""
_PINNED = re.compile(rf"report:({JOB_ID})")
_MEDIAN = re.compile(r"median:([1-9][0-9]{0,2})", re.ASCII)
_ALLOWED = f"{LAST_PASSING}, median:K with K from 1 to {MOST_RUNS}, or report:ID, such as median:5"
_TEXT_SETTINGS = ("sequences", "sequence_length", "seed", "bos", "score", "text_field")
"""Settings of an analysis that choose the text, or which of its positions are scored."""
_FIGURE_SETTINGS = sorted(set(Analysis.model_fields) - {"schemes", "batch_sequences", "verdict", "harm", "recommend"})
"""Settings of an analysis that change its figures; levels follow from the newer report's limits."""


class Rule(NamedTuple):
    """How a baseline is chosen; `rule` makes it."""

    kind: Literal["pinned", "last-passing", "median"]
    report_id: str | None = None
    """Of a pinned one."""
    runs: int = 1
    """How many of the last passing runs a median is of."""


def rule(text: str) -> Rule:
    """Return the rule that a text says. Raises InvalidRequest for one that says none."""
    if text == LAST_PASSING:
        return Rule("last-passing")
    if pinned := _PINNED.fullmatch(text):
        return Rule("pinned", report_id=pinned[1])
    if (median := _MEDIAN.fullmatch(text)) and int(median[1]) <= MOST_RUNS:
        return Rule("median", runs=int(median[1]))
    raise InvalidRequest("baseline", text, _ALLOWED)


def select(of: Rule, runs: Sequence[PastRun], figures: Sequence[str]) -> str | None:
    """Return the id of the report that a run is compared with; None where there is none yet.

    The median of the last k passing runs is the report that holds it. For one figure and odd k that is the report
    with the middle value. For several figures, each ranks the reports, and the report whose ranks lie closest to the
    middle in all is taken; among equals the newest.

    Args:
        of: The rule.
        runs: Past runs of the audit, in any order; a pinned report needs none.
        figures: Paths of the figures that limits hold against the baseline.
    """
    if of.kind == "pinned":
        return of.report_id
    passed = sorted((run for run in runs if run.verdict == "pass" and run.report_id), key=lambda run: run.finished_at)
    last = passed[-of.runs :]
    if not last:
        return None
    distances = [sum(_distance(run, last, figure) for figure in figures) for run in last]
    best = min(distances)
    return next(run.report_id for run, far in zip(reversed(last), reversed(distances), strict=True) if far == best)


def choose(
    of: Rule,
    runs: Sequence[PastRun],
    figures: Sequence[str],
    read: Callable[[str], ComparableReport],
    definitions_version: str,
) -> ComparableReport | None:
    """Return the report that a run is compared with; None where there is none yet.

    Args:
        of: The rule.
        runs: Past runs of the audit that are comparable, in any order; a pinned report needs none.
        figures: Paths of the figures that limits hold against the baseline.
        read: Returns a report by its id.
        definitions_version: Of the run's report; a baseline that is not pinned has the same major version.

    Raises what `read` raises.
    """
    remaining = tuple(runs)
    while chosen := select(of, remaining, figures):
        baseline = read(chosen)
        if of.kind == "pinned" or _major(baseline.report.definitions_version) == _major(definitions_version):
            return baseline
        remaining = tuple(run for run in remaining if run.report_id != chosen)
    return None


def is_comparable(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether an earlier report can be a baseline: its settings, texts and schemes are the present ones.

    Args:
        before: The definition that the report's audit had then, as JSON.
        now: The definition to which its reports are compared, likewise; every scheme of it must have been there.
    """
    return not changed_keys(before, now)


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a definition that keep earlier reports from being comparable; see `is_comparable`."""
    files = [key for key in ("calibration", "labelled") if _sha256(before.get(key)) != _sha256(now.get(key))]
    settings = [key for key in _FIGURE_SETTINGS if before.get(key) != now.get(key)]
    schemes = [] if all(one in before.get("schemes", ()) for one in now["schemes"]) else ["schemes"]
    return (*files, *settings, *schemes)


def check_pinned(of: Rule, runs: Sequence[PastRun]) -> None:
    """Raise InvalidRequest where a pinned report is that of a run which failed or erred."""
    verdict = next((run.verdict for run in runs if of.report_id and run.report_id == of.report_id), None)
    if verdict in ("fail", "error"):
        problem = f"is the report of a run that ended as {verdict}"
        raise InvalidRequest("baseline", f"report:{of.report_id}", _ALLOWED, problem=problem)


def mismatches(baseline: Report, audit: AuditSettings) -> tuple[str, ...]:
    """Return in sentences why limits against a baseline would mean nothing or be weak; none where all fits.

    Whoever pins such a baseline is refused, unless they insist.
    """
    reasons = []
    if _major(baseline.definitions_version) != _major(DEFINITIONS_VERSION):
        reasons.append(f"Its definitions are {baseline.definitions_version}; reports now have {DEFINITIONS_VERSION}.")
    for name in _TEXT_SETTINGS:
        before, after = getattr(baseline.analysis, name), getattr(audit, name)
        if before != after:
            reasons.append(f"Its {name} is {before}; the audit's is {after}, so that the calibration texts differ.")
    if lacking := [name for name in audit.scheme_names if name not in baseline.schemes]:
        reasons.append(f"It lacks the schemes {', '.join(lacking)}.")
    variants = {variant.name: variant for variant in baseline.analysis.schemes}
    changed = [one.name for one in audit.schemes if one.name in variants and variants[one.name] != one]
    if changed:
        reasons.append(f"Its settings differ for the schemes {', '.join(changed)}.")
    return tuple(reasons)


def text_mismatch(baseline: StoredFile | None, audit: StoredFile | None) -> tuple[str, ...]:
    """Return in a sentence, as `mismatches` does, how a baseline's calibration file differs from an audit's.

    None stands for the bundled text.
    """
    before, after = (one and one.sha256 for one in (baseline, audit))
    if before == after:
        return ()
    names = [f"the file {one.name}" if one else "the bundled text" for one in (baseline, audit)]
    difference = f"the audit's is {names[1]}" if names[0] != names[1] else "the audit's file has other content"
    return (f"Its calibration text is {names[0]}; {difference}, so that the calibration texts differ.",)


def same_fit(present: Mapping[str, Any], audit: AuditSettings) -> bool:
    """Return whether an audit has the baseline, the text and the schemes of its present definition, read as JSON."""
    fields = {"baseline", "calibration", "schemes", *_TEXT_SETTINGS}
    asked = audit.model_dump(mode="json", include=fields)
    return all(name in present and present[name] == value for name, value in asked.items())


def _major(version: str) -> str:
    return version.partition(".")[0]


def _sha256(file: Mapping[str, Any] | None) -> Any:
    return file and file["sha256"]


def _distance(run: PastRun, runs: Sequence[PastRun], figure: str) -> float:
    """Return how many ranks a run's figure is away from the middle; equal values share their mean rank.

    A run without the figure is further away than any other.
    """
    value = run.values.get(figure)
    if value is None:
        return float(len(runs))
    values = [other.values[figure] for other in runs if figure in other.values]
    below, equal = sum(other < value for other in values), sum(other == value for other in values)
    return abs(below + (equal - 1) / 2 - (len(values) - 1) / 2)
