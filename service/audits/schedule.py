"""Computes the scheduled times of an audit: cron expressions in a time zone, across clock changes.

The expression is read and evaluated by cronsim on plain local times, without a zone. Placing those on the time line
follows cron(8) of Debian:

- A job at fixed times (neither minute nor hour begins with `*`) whose time is skipped by a clock change of less than
  3 hours runs right after the change, once; where a clock change repeats its time it runs the first time alone.
- A job with a wildcard follows the new time at once: skipped times do not happen, repeated ones happen twice.
- A change of 3 hours or more corrects the clock: skipped times do not happen.

cronsim's own handling of zones is not used: it misses 02:00 of `0 */2 * * *` on the day on which Lord Howe's clocks go
back by half an hour, and it moves jobs over changes of any length.
"""

import difflib
import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from service.contracts.audits.audit import SkippedTime
from service.errors import InvalidRequest

LONGEST_CHANGE = timedelta(hours=3)
"""A clock change from here on is a correction, not daylight saving."""
ON_TIME = timedelta(minutes=5)
"""A time that is evaluated so late is not called missed: schedulers look at intervals."""
MOST_SKIPPED = 100
"""Skipped times that are listed one by one, the latest."""
_HORIZON = timedelta(days=50 * 366)
"""A schedule that does not fire within so long never does; all combinations of date and weekday come in 28 years."""
_YEAR = timedelta(days=365.2425)
_COUNTED = 1000
"""Times of a year that are counted one by one; of more frequent schedules the rate of these stands for the year's."""
_EXPRESSION = (
    "five fields, minute hour day-of-month month day-of-week, each *, a number, a name (JAN, MON), a range, "
    'a list or a step, such as "0 3 * * *" (every day at 03:00) or "30 2 * * MON-FRI"'
)
_NEVER = "would never fire, since no date fits it"
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class Schedule(NamedTuple):
    """A checked schedule; `schedule` makes it."""

    expression: str
    zone: ZoneInfo
    catch_up: timedelta
    """How late a missed time may still be made up for."""
    jitter: timedelta
    """Runs start up to so long after their scheduled time."""


class Due(NamedTuple):
    """The scheduled times that have come, and the next one."""

    run: datetime | None
    """The scheduled time to run for, UTC; None where none is due."""
    skipped: tuple[SkippedTime, ...]
    """Earlier times that are not made up for, the latest `MOST_SKIPPED`, ascending."""
    unlisted: int
    """How many more were skipped before these."""
    handled: datetime
    """Up to here nothing fires anymore: pass it on to the next look."""


@lru_cache(maxsize=1024)  # listing the zones alone takes longer than all else that a look at the clock needs
def schedule(expression: str, timezone: str, catch_up_seconds: int = 86400, jitter_seconds: int = 0) -> Schedule:
    """Return a checked schedule.

    Raises InvalidRequest for an expression that is not one, or fires at no time, and for an unknown zone.
    """
    checked = Schedule(
        _expression(expression), _zone(timezone), timedelta(seconds=catch_up_seconds), timedelta(seconds=jitter_seconds)
    )
    if next(times(checked, _ANY_TIME), None) is None:
        raise InvalidRequest("schedule", expression, _EXPRESSION, problem=_NEVER)
    return checked


def times(of: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield the scheduled times later than `after`, in UTC, ascending, no two equal; `after` has a zone."""
    last = after.astimezone(UTC)
    for moment in _placed(of, last):
        if moment > last:
            last = moment
            yield moment


def start(of: Schedule, audit_id: str, scheduled: datetime) -> datetime:
    """Return when the run for a scheduled time starts: its jitter later, which id and time alone decide."""
    digest = hashlib.sha256(f"{audit_id} {scheduled.astimezone(UTC).isoformat()}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return scheduled + timedelta(seconds=int(of.jitter.total_seconds() * share))


def due(of: Schedule, audit_id: str, handled: datetime, now: datetime) -> Due:
    """Return what is to run at `now`, of the scheduled times later than `handled`.

    Only the latest can run, and only inside the catch-up window; earlier ones are skipped with the reason. Whoever
    creates or resumes an audit, or edits its schedule, sets `handled` to that time: nothing before it fires.

    Args:
        of: The schedule.
        audit_id: Decides the jitter.
        handled: `Due.handled` of the last look, or the time of the last edit of the schedule or resumption.
        now: Not before `handled`; where the clock went back, nothing is due.
    """
    latest: deque[datetime] = deque(maxlen=MOST_SKIPPED + 1)
    count = 0
    for moment in takewhile(lambda at: start(of, audit_id, at) <= now, times(of, handled)):
        latest.append(moment)
        count += 1
    if not latest:
        return Due(None, (), 0, handled)
    last = latest[-1]
    late = now - start(of, audit_id, last)
    run = last if late <= max(of.catch_up, ON_TIME) else None
    skipped = [SkippedTime(scheduled_at=at, reason=f"a later time, {last:%Y-%m-%d %H:%M} UTC, is due too")
               for at in islice(latest, len(latest) - 1)]  # fmt: skip
    if run is None:
        window = f"the catch-up window is {of.catch_up}"
        skipped.append(
            SkippedTime(scheduled_at=last, reason=f"no scheduler was running until {late} after that time; {window}")
        )
        skipped = skipped[-MOST_SKIPPED:]
    listed = len(skipped)
    return Due(run, tuple(skipped), count - listed - (run is not None), last)


def runs_per_year(of: Schedule, after: datetime) -> float:
    """Return how often the schedule fires in the year after `after`."""
    counted = list(islice(takewhile(lambda at: at <= after + _YEAR, times(of, after)), _COUNTED))
    if len(counted) < _COUNTED:
        return float(len(counted))
    return _COUNTED * (_YEAR / (counted[-1] - after))


def _placed(of: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield the local times as moments in UTC, ascending, from shortly before `after` on."""
    wildcard = any(field.startswith("*") for field in of.expression.split()[:2])
    repeated: deque[datetime] = deque()  # second passes, which come after the whole of the first
    for local in _local_times(of, after):
        # Where the clock skips `local`, fold 0 and 1 read it by the offsets before and after the change, so that the
        # first is the later one; where it repeats `local`, they are its two passes; elsewhere they are equal.
        first, second = (local.replace(tzinfo=of.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        follows_clock = wildcard or abs(first - second) >= LONGEST_CHANGE
        if first > second and follows_clock:
            continue
        moment = _change(second, first, of.zone) if first > second else first
        while repeated and repeated[0] < moment:
            yield repeated.popleft()
        yield moment
        if second > first and follows_clock:
            repeated.append(second)
    yield from repeated


def _local_times(of: Schedule, after: datetime) -> Iterator[datetime]:
    """Yield the times that fit the expression, without a zone, from 3 hours before `after`: these may be repeated."""
    local = after.astimezone(of.zone).replace(tzinfo=None)
    end = local + _HORIZON
    return takewhile(lambda at: at <= end, CronSim(of.expression, local - LONGEST_CHANGE))


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment of the one clock change later than `before` and not later than `after`, by bisection."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        before, after = (middle, after) if middle.astimezone(zone).utcoffset() == offset else (before, middle)
    return after.replace(microsecond=0)


def _expression(text: str) -> str:
    try:
        if len(text.split()) != 5:  # cronsim takes seconds too
            raise CronSimError(f"has {len(text.split())} fields")
        CronSim(text, datetime(2000, 1, 1))
    except CronSimError as error:
        raise InvalidRequest("schedule", text, _EXPRESSION, problem=_problem(error, text)) from error
    return " ".join(text.split())


def _problem(error: CronSimError, text: str) -> str:
    """Say what is wrong, as the predicate of a sentence about the expression."""
    field = str(error).removeprefix("Bad ")
    if field == str(error):
        return field
    minute, hour, day, _, weekday = text.split()
    with suppress(CronSimError):  # in other months the day is good
        CronSim(" ".join((minute, hour, day, "*", weekday)), datetime(2000, 1, 1))
        if field == "day-of-month":
            return _NEVER
    return f"has no valid {field}"


def _zone(name: str) -> ZoneInfo:
    names = available_timezones()
    if name in names:
        return ZoneInfo(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or ["Europe/Berlin"]
    raise InvalidRequest("timezone", name, f'an IANA time zone, such as "UTC" or "{near[0]}"')
