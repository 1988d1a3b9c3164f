"""The verdict of a run: tests every limit against noise, and confirms broken figures by reruns on other text.

A limit that is broken is weighed by how improbable so clear an excess is where the limit just holds. All limits of a
run that can be weighed are taken together by Holm's method, so that the chance of one false alarm or more in a run is
5% at most, however many limits there are. What is broken beyond that is measured again on other text, and fails the
run only if it is broken there too.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from service.audits.assessment import assess
from service.audits.evidence import Evidence, holm
from service.audits.limits import Limit
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import Finding, Rerun, RunVerdict

ALPHA = 0.05
"""Chance that limits which just hold are called broken beyond noise, for all limits of one measurement together."""
_SMALLEST = 1e-12
"""Probabilities under it are written as that."""


class Outcome(NamedTuple):
    """The verdict of a run, and why."""

    verdict: RunVerdict
    reasons: tuple[str, ...]
    """A sentence for each limit that decides, or that was not judged."""


def judge(
    limits: Sequence[Limit], candidate: ComparableReport, baseline: ComparableReport | None
) -> tuple[Finding, ...]:
    """Return what a report says of every limit, in their order.

    Args:
        limits: As `limits.parse_all` gives them.
        candidate: The report of the run, with its tables `tokens` and `sites`.
        baseline: The report that it is compared with; None where there is none yet.
    """
    evidence = Evidence(candidate, baseline)
    assessed = [assess(limit, evidence) for limit in limits]
    weighed = [finding.p_value for finding in assessed if finding.p_value is not None]
    levels = iter(holm(weighed, ALPHA))
    findings = (finding if finding.p_value is None else _weighed(finding, *next(levels)) for finding in assessed)
    return tuple(_final(limit, finding, evidence) for limit, finding in zip(limits, findings, strict=True))


def to_measure_again(limits: Sequence[Limit], findings: Sequence[Finding]) -> tuple[Limit, ...]:
    """Return the limits that are broken beyond noise and not for good: those that a rerun judges, and no others."""
    broken = {finding.limit for finding in findings if finding.verdict == "broken" and not finding.final}
    return tuple(limit for limit in limits if limit.text in broken)


def combine(findings: Sequence[Finding], reruns: Sequence[Rerun]) -> Outcome:
    """Return the verdict of a run from its findings and those of its reruns.

    A figure that is broken fails the run if it is broken in every rerun that ended, or if none did. Where it is not
    broken in one, or the baseline's model is gone so that it could not be judged, it is unconfirmed. A limit that could
    not be judged against the baseline that there is makes a run warn that would pass otherwise: what is not compared
    becomes no baseline.

    Args:
        findings: Of the first measurement.
        reruns: On other calibration seeds, in any order; none where none was asked for.
    """
    broken = [finding for finding in findings if finding.verdict == "broken"]
    not_judged = [f"{one.limit}: not judged. {one.reason}" for one in findings if one.verdict == "not_judged"]
    if not broken:
        warned = [f"{one.limit}: {one.reason}" for one in findings if one.verdict == "warn"]
        uncompared = any(one.uncompared for one in findings)
        return Outcome("warn" if warned or uncompared else "pass", (*warned, *not_judged))
    verdict: RunVerdict = "fail" if confirmed(findings, reruns) else "unconfirmed"
    return Outcome(verdict, (*(_why_broken(one, reruns) for one in broken), *not_judged))


def _why_broken(finding: Finding, reruns: Sequence[Rerun]) -> str:
    """Return the reason of a broken finding, with what its reruns say of it."""
    ended = _ended(reruns)
    said = tuple(_doubts(finding, ended)) or (_standing(finding, reruns, ended),)
    return " ".join((f"{finding.limit}: {finding.reason}", *said))


def confirmed(findings: Sequence[Finding], reruns: Sequence[Rerun]) -> tuple[Finding, ...]:
    """Return the findings that fail a run: broken, and broken in every rerun that ended."""
    ended = _ended(reruns)
    return tuple(one for one in findings if one.verdict == "broken" and not any(_doubts(one, ended)))


def _ended(reruns: Sequence[Rerun]) -> list[Rerun]:
    return [rerun for rerun in reruns if rerun.status != "failed"]


def _doubts(finding: Finding, ended: Sequence[Rerun]) -> Iterator[str]:
    """Yield why a broken figure is not confirmed, by the reruns that ended."""
    for rerun in () if finding.final else ended:
        again = next((one for one in rerun.findings if one.limit == finding.limit), None)
        if again is not None and again.verdict == "broken":
            continue
        if again is None or again.verdict == "not_judged":
            gone = (
                "the baseline's model is no longer available"
                if rerun.status == "baseline_gone"
                else "it was not judged there"
            )
            yield f"Not confirmed on seed {rerun.seed}: {gone}."
        else:
            yield f"Not confirmed on seed {rerun.seed}: {again.reason}"


def _standing(finding: Finding, reruns: Sequence[Rerun], ended: Sequence[Rerun]) -> str:
    if finding.final:
        return "The weights are the baseline's, so a rerun could not tell more, and the first measurement stands."
    if ended:
        return f"Broken again on seed {', '.join(str(rerun.seed) for rerun in ended)}."
    return "The rerun failed, so the first measurement stands." if reruns else "No rerun was asked for."


def _final(limit: Limit, finding: Finding, evidence: Evidence) -> Finding:
    """Return a finding that says whether the first measurement decides, and whether the baseline was of no use.

    A rerun measures the baseline's weights with the software of the day. Where they are the candidate's own, both sides
    would be one measurement, which agrees with itself whatever the software does.
    """
    if not limit.against_baseline or evidence.baseline is None:
        return finding
    if finding.verdict != "broken":
        return finding.model_copy(update={"uncompared": finding.verdict == "not_judged"})
    candidate, baseline = evidence.candidate.report.model, evidence.baseline.report.model
    return finding.model_copy(update={"final": candidate.fingerprint == baseline.fingerprint})


def _weighed(finding: Finding, level: float, beyond: bool) -> Finding:
    """Return a finding with what its p-value means beside those of the other limits."""
    if finding.verdict != "broken" or finding.p_value is None:
        return finding.model_copy(update={"level_needed": level})
    p = f"under {_SMALLEST:g}" if finding.p_value < _SMALLEST else f"= {finding.p_value:.2g}"
    where = "beyond" if beyond else "within"
    needed = f"one-sided p {p} if the figure equals its limit; Holm's method requires {level:.2g} or less"
    changed = {
        "level_needed": level,
        "verdict": "broken" if beyond else "warn",
        "reason": f"{finding.reason} That is {where} its noise: {needed}.",
    }
    return finding.model_copy(update=changed)
