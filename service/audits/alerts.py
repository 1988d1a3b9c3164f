"""Alerts: one for every figure that breaks a limit; messages go out when it opens and when it closes.

An alert is known by its audit, figure, site and direction. It opens with a run that failed on the figure. It stays open
until a later run passes every limit on that figure in that direction: a run that was skipped, failed to measure, found
the model unchanged or could not judge the limit neither opens nor closes anything. A gate in a pipeline judges another
model than the audit's, so it does not either.

The first run after a dismissal has expired that finds the figure still broken sends the messages of the alert again.
Until then the dismissal also covers the same figure when it breaks again. Receivers of the message that an alert opened
also get the one that it closed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from service.audits.figures import BLOCK_ABS_MAX
from service.audits.judgment import confirmed
from service.audits.limits import Relation
from service.contracts.audits.audit import AuditRun, Finding

Direction = Literal["above", "below", "worse", "gained"]
"""The side of its limit on which a figure is: over a bound, under one, a worse level, dimensions gained."""
WHOLE_MODEL = "model"
_DIRECTIONS: Mapping[Relation, Direction] = {
    "<=": "above",
    ">=": "below",
    "no worse than": "worse",
    "none gained": "gained",
}
_JUDGED = ("pass", "warn", "fail", "unconfirmed")


class Identity(NamedTuple):
    """What one alert of an audit is about."""

    figure: str
    """As in `Finding.figure`."""
    site: str
    """Where in the model the figure is taken: `model`, or `block.output` for the largest over the layers there."""
    direction: Direction


class OpenAlert(NamedTuple):
    """An alert that has not closed, as far as the next run needs it."""

    id: str
    identity: Identity
    broken: bool
    """Whether the last run that judged it failed on it."""
    dismissed_until: datetime | None
    """None where it is not dismissed."""


class Changes(NamedTuple):
    """What a run does to the alerts of its audit."""

    opened: tuple[tuple[Identity, Finding], ...] = ()
    broken: tuple[tuple[str, Finding], ...] = ()
    """Ids of open alerts that the run failed on again."""
    doubtful: tuple[str, ...] = ()
    """Ids of open alerts that the run judged, and neither failed on nor passed."""
    closed: tuple[tuple[str, Finding], ...] = ()
    """Ids of alerts that the run passed."""
    expired: tuple[str, ...] = ()
    """Ids of alerts that are still broken and whose dismissal has expired: their messages are sent again."""


def identity(figure: str, limit: str) -> Identity:
    """Return the identity of the alert on a figure that breaks a limit; both are texts of a finding."""
    relation = next(one for one in get_args(Relation) if one in limit)
    return Identity(figure, "block.output" if figure == BLOCK_ABS_MAX else WHOLE_MODEL, _DIRECTIONS[relation])


def changes(run: AuditRun, alerts: Sequence[OpenAlert], now: datetime) -> Changes:
    """Return what an ended run does to the open alerts of its audit.

    Args:
        run: With its findings and reruns.
        alerts: Those that are open, one for an identity.
        now: The time by which dismissals expire.
    """
    if run.trigger == "gate":
        return Changes()
    if run.verdict == "unchanged":
        return Changes(expired=_expired((alert for alert in alerts if alert.broken), now))
    if run.verdict not in _JUDGED:
        return Changes()
    judged, broken = _by_identity(run)
    known = {alert.identity for alert in alerts}
    still_broken = [alert for alert in alerts if alert.identity in broken]
    others = [(alert, judged.get(alert.identity, [])) for alert in alerts if alert.identity not in broken]
    return Changes(
        opened=tuple((key, finding) for key, finding in broken.items() if key not in known),
        broken=tuple((alert.id, broken[alert.identity]) for alert in still_broken),
        doubtful=tuple(alert.id for alert, findings in others if _is_doubtful(findings)),
        closed=tuple((alert.id, findings[0]) for alert, findings in others if _passed(findings)),
        expired=_expired(still_broken, now),
    )


def _by_identity(run: AuditRun) -> tuple[dict[Identity, list[Finding]], dict[Identity, Finding]]:
    """Return a run's findings on every figure, and of each figure on which it failed the first that failed."""
    judged: defaultdict[Identity, list[Finding]] = defaultdict(list)
    for finding in run.findings:
        judged[identity(finding.figure, finding.limit)].append(finding)
    failed = confirmed(run.findings, run.reruns) if run.verdict == "fail" else ()
    first = {identity(one.figure, one.limit): one for one in reversed(failed)}
    return dict(judged), {key: first[key] for key in judged if key in first}


def _is_doubtful(findings: Sequence[Finding]) -> bool:
    """Whether a run judged a figure on which it did not fail, and did not pass it."""
    return any(finding.verdict in ("warn", "broken") for finding in findings)


def _passed(findings: Sequence[Finding]) -> bool:
    """Whether a run judged a figure, and passed every limit on it."""
    return bool(findings) and all(finding.verdict == "pass" for finding in findings)


def _expired(alerts: Iterable[OpenAlert], now: datetime) -> tuple[str, ...]:
    return tuple(one.id for one in alerts if one.dismissed_until is not None and one.dismissed_until <= now)
