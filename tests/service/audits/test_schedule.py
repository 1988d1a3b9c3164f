"""When audits run: against a simulation of Debian's cron daemon, minute by minute, and the rules of catching up."""

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from service.audits.schedule import MOST_SKIPPED, due, runs_per_year, schedule, start, times
from service.errors import InvalidRequest

BEGIN, END = datetime(2027, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def minutes_of_day(hours, minutes):
    return {60 * hour + minute for hour in hours for minute in minutes}


def every_day(_):
    return True


# Each schedule as read by hand: minutes of the day, days, and whether a wildcard makes it follow the clock.
SCHEDULES = {
    "30 2 * * *": (minutes_of_day([2], [30]), every_day, False),
    "0 */2 * * *": (minutes_of_day(range(0, 24, 2), [0]), every_day, True),
    "*/20 1-3 * * SUN": (minutes_of_day([1, 2, 3], [0, 20, 40]), lambda day: day.weekday() == 6, True),
    "15,45 1,2,3 * * *": (minutes_of_day([1, 2, 3], [15, 45]), every_day, False),
    "10 2 1 * MON": (minutes_of_day([2], [10]), lambda day: day.day == 1 or day.weekday() == 0, False),
}
ANY = set().union(*(minutes for minutes, _, _ in SCHEDULES.values()))
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]


def cron_daemon(zone):
    """Return the moments at which Debian's cron would start each schedule in the year.

    The daemon wakes up every minute and holds the wall clock against the minute that it has got to. In step, it runs
    all that fits. Where the clock went ahead by less than 3 hours it runs wildcard jobs by the clock, and then the
    fixed-time jobs of all minutes in between. Where it went back by less, it runs wildcard jobs alone until the clock
    has caught up. Several starts in one minute count once.
    """
    started = defaultdict(set)
    reached = None
    moment = BEGIN - timedelta(days=1)
    while moment < END:
        wall = moment.astimezone(zone).replace(tzinfo=None)
        now = (wall.toordinal() * 1440) + wall.hour * 60 + wall.minute
        ahead = 1 if reached is None else now - reached
        in_between = range(now - ahead + 1, now + 1) if 0 < ahead < 180 else () if -180 < ahead <= 0 else (now,)
        reached = now if in_between else reached
        moment += MINUTE
        if now % 1440 not in ANY and len(in_between) < 2:
            continue
        for expression, (of_day, fits, wildcard) in SCHEDULES.items():
            for minute in (now,) if wildcard else in_between:
                day, time = divmod(minute, 1440)
                if time in of_day and fits(date.fromordinal(day)) and moment - MINUTE > BEGIN:
                    started[expression].add(moment - MINUTE)
    return {expression: sorted(moments) for expression, moments in started.items()}


@pytest.mark.parametrize("name", ZONES)
def test_a_moving_clock_runs_each_schedule_as_debians_cron_does(name):
    zone = ZoneInfo(name)
    expected = cron_daemon(zone)
    for expression, moments in expected.items():
        checked, clock, step = schedule(expression, name), BEGIN, random.Random(expression)
        ran, handled, upcoming = [], BEGIN, next(times(checked, BEGIN))
        while clock < END:
            clock += step.randint(1, 10) * MINUTE
            if clock >= upcoming and clock < END:
                looked = due(checked, "audit", handled, clock)
                assert (looked.skipped, looked.unlisted) == ((), 0)
                ran.append(looked.run)
                handled, upcoming = looked.handled, next(times(checked, looked.handled))
        assert ran == moments
        assert len(moments) > 50


def local_times(expression, name, first, count):
    """Return the next times as the clock on the wall shows them, with the offset."""
    checked = schedule(expression, name)
    listed = times(checked, first.replace(tzinfo=checked.zone))
    return [f"{next(listed).astimezone(checked.zone):%d %H:%M %z}" for _ in range(count)]


def test_a_fixed_time_in_a_gap_runs_right_after_it_once():
    assert local_times("0,30 2 * * *", "Europe/Berlin", datetime(2027, 3, 28), 2) == [
        "28 03:00 +0200",
        "29 02:00 +0200",
    ]
    assert local_times("0 2,3 * * *", "Europe/Berlin", datetime(2027, 3, 28), 2) == ["28 03:00 +0200", "29 02:00 +0200"]
    assert local_times("30 2 * * *", "Antarctica/Troll", datetime(2027, 3, 28), 1) == ["28 03:00 +0200"]


def test_a_fixed_time_in_a_fold_runs_the_first_time_alone():
    expected = ["31 02:30 +0200", "01 02:30 +0100"]
    assert local_times("30 2 * * *", "Europe/Berlin", datetime(2027, 10, 31), 2) == expected


def test_wildcards_follow_the_clock():
    quarter = local_times("*/30 2 * * *", "Europe/Berlin", datetime(2027, 10, 31), 5)
    assert quarter == ["31 02:00 +0200", "31 02:30 +0200", "31 02:00 +0100", "31 02:30 +0100", "01 02:00 +0100"]
    assert local_times("*/30 2 * * *", "Europe/Berlin", datetime(2027, 3, 28), 1) == ["29 02:00 +0200"]
    # Half an hour back at 02:00, so that 02:00 comes once, half an hour late.
    assert local_times("0 */2 * * *", "Australia/Lord_Howe", datetime(2027, 4, 4), 2) == [
        "04 02:00 +1030",
        "04 04:00 +1030",
    ]


def test_a_look_between_the_two_passes_of_a_fold_misses_none():
    checked = schedule("10 * * * *", "Europe/Berlin")
    between = datetime(2027, 10, 31, 0, 30, tzinfo=UTC)  # 02:30, the first time
    assert next(times(checked, between)) == datetime(2027, 10, 31, 1, 10, tzinfo=UTC)  # 02:10, the second time


def test_a_change_of_three_hours_or_more_corrects_the_clock():
    # Samoa had no 30 December 2011.
    assert local_times("30 0 * * *", "Pacific/Apia", datetime(2011, 12, 29, 12), 1) == ["31 00:30 +1400"]


def test_after_an_outage_only_the_latest_missed_time_runs():
    hourly = schedule("0 * * * *", "UTC")
    looked = due(hourly, "audit", BEGIN, BEGIN + timedelta(hours=5, minutes=20))
    assert looked.run == BEGIN + timedelta(hours=5)
    assert [one.scheduled_at for one in looked.skipped] == [BEGIN + timedelta(hours=hour) for hour in range(1, 5)]
    assert {one.reason for one in looked.skipped} == {"a later time, 2027-01-01 05:00 UTC, is due too"}
    assert due(hourly, "audit", looked.handled, BEGIN + timedelta(hours=5, minutes=59)).run is None


def test_a_missed_time_is_made_up_for_inside_the_window_alone():
    daily = schedule("0 3 * * *", "UTC", catch_up_seconds=3600)
    three = BEGIN + timedelta(hours=3)
    assert due(daily, "audit", BEGIN, three + timedelta(hours=1)).run == three
    late = due(daily, "audit", BEGIN, three + timedelta(hours=1, seconds=1))
    assert late.run is None
    assert late.handled == three
    assert [one.scheduled_at for one in late.skipped] == [three]
    assert late.skipped[0].reason == (
        "no scheduler was running until 1:00:01 after that time; the catch-up window is 1:00:00"
    )


def test_without_a_window_a_time_is_still_run_at_the_next_look():
    daily = schedule("0 3 * * *", "UTC", catch_up_seconds=0)
    three = BEGIN + timedelta(hours=3)
    assert due(daily, "audit", BEGIN, three + timedelta(minutes=5)).run == three
    assert due(daily, "audit", BEGIN, three + timedelta(minutes=5, seconds=1)).run is None


def test_a_long_outage_lists_the_latest_skipped_times_and_counts_the_rest():
    looked = due(schedule("* * * * *", "UTC"), "audit", BEGIN, BEGIN + timedelta(minutes=1000))
    assert looked.run == BEGIN + timedelta(minutes=1000)
    assert (len(looked.skipped), looked.unlisted) == (MOST_SKIPPED, 1000 - 1 - MOST_SKIPPED)
    assert looked.skipped[-1].scheduled_at == BEGIN + timedelta(minutes=999)
    gone = due(schedule("* * * * *", "UTC", 0), "audit", BEGIN, BEGIN + timedelta(minutes=1000, seconds=59))
    assert gone.run is not None
    far = due(schedule("0 0 * * *", "UTC", 0), "audit", BEGIN, BEGIN + timedelta(days=200, hours=1))
    assert (far.run, len(far.skipped), far.unlisted) == (None, MOST_SKIPPED, 200 - MOST_SKIPPED)
    assert far.skipped[-1].scheduled_at == far.handled == BEGIN + timedelta(days=200)


def test_editing_a_schedule_fires_no_time_that_lies_in_the_past():
    edited = BEGIN + timedelta(hours=12)  # from 18:00 to 09:00, which is over
    looked = due(schedule("0 9 * * *", "UTC"), "audit", edited, edited + timedelta(hours=1))
    assert (looked.run, looked.skipped) == (None, ())
    assert next(times(schedule("0 9 * * *", "UTC"), edited)) == BEGIN + timedelta(days=1, hours=9)


def test_editing_the_jitter_fires_no_time_that_lies_in_the_past():
    edited = BEGIN + timedelta(hours=9)
    moved = schedule("0 9 * * *", "UTC", jitter_seconds=3600)
    assert start(moved, "audit", edited) > edited
    assert due(moved, "audit", edited, edited + timedelta(hours=2)).run is None


def test_resuming_does_not_backfill():
    resumed = BEGIN + timedelta(days=10, minutes=30)
    hourly = schedule("0 * * * *", "UTC")
    assert due(hourly, "audit", resumed, resumed) == (None, (), 0, resumed)
    looked = due(hourly, "audit", resumed, resumed + timedelta(minutes=30))
    assert (looked.run, looked.skipped) == (resumed + timedelta(minutes=30), ())


def test_a_clock_that_went_back_makes_nothing_due():
    assert due(schedule("* * * * *", "UTC"), "audit", BEGIN, BEGIN - timedelta(days=1)) == (None, (), 0, BEGIN)


def test_jitter_is_bounded_and_the_same_everywhere():
    hourly = schedule("0 * * * *", "Europe/Berlin", jitter_seconds=600)
    moments = [BEGIN + timedelta(hours=hour) for hour in range(1000)]
    late = [(start(hourly, "audit", at) - at).total_seconds() for at in moments]
    assert late == [(start(hourly, "audit", at.astimezone(hourly.zone)) - at).total_seconds() for at in moments]
    assert min(late) >= 0
    assert max(late) < 600
    assert sum(late) / len(late) == pytest.approx(300, abs=5 * 600 / (12 * 1000) ** 0.5)  # 5 standard errors
    assert late != [(start(hourly, "other", at) - at).total_seconds() for at in moments]
    first = start(hourly, "audit", moments[1])
    assert due(hourly, "audit", BEGIN, first - timedelta(seconds=1)).run is None
    assert due(hourly, "audit", BEGIN, first).run == moments[1]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 0 30 2 *", "would never fire, since no date fits it"),
        ("0 0 31 4,6 *", "would never fire, since no date fits it"),
        ("* * */20 * 1L", "would never fire, since no date fits it"),
        ("0 0 * *", "has 4 fields"),
        ("0 0 0 * * *", "has 6 fields"),
        ("", "has 0 fields"),
        ("@daily", "has 1 fields"),
        ("60 0 * * *", "has no valid minute"),
        ("0 24 * * *", "has no valid hour"),
        ("0 0 32 * *", "has no valid day-of-month"),
        ("0 0 * JANUARY *", "has no valid month"),
        ("0 0 * * 8", "has no valid day-of-week"),
        ("0 0 5-1 * *", "has no valid day-of-month"),
        ("*/0 * * * *", "has no valid minute"),
        ("0 0 ٣ * *", "has no valid day-of-month"),
    ],
)
def test_what_is_no_schedule_is_refused_with_an_example(expression, said):
    with pytest.raises(InvalidRequest) as refused:
        schedule(expression, "UTC")
    assert str(refused.value).startswith(f"schedule: {expression!r} {said}; allowed: five fields")
    assert '"0 3 * * *" (every day at 03:00)' in str(refused.value)


def test_a_time_that_every_clock_change_skips_never_fires():
    with pytest.raises(InvalidRequest, match="would never fire"):
        schedule("*/15 2 * 3 7L", "Europe/Berlin")  # the last Sunday of March
    assert schedule("*/15 2 * 3 7L", "UTC")


@pytest.mark.parametrize(
    ("zone", "near"), [("Europe/Berln", "Europe/Berlin"), ("../../etc/passwd", "Europe/Berlin"), ("", "Europe/Berlin")]
)
def test_an_unknown_zone_is_refused_with_the_nearest(zone, near):
    with pytest.raises(InvalidRequest) as refused:
        schedule("0 3 * * *", zone)
    allowed = f'an IANA time zone, such as "UTC" or "{near}"'
    assert str(refused.value) == f"timezone: {zone!r} is not allowed; allowed: {allowed}"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("0 3 * * *", 365), ("0 3 * * MON", 52), ("0 0 1 1 *", 1), ("0 0 29 2 *", 1), ("*/15 * * * *", 4 * 24 * 365.2425)],
)
def test_runs_per_year(expression, expected):
    assert runs_per_year(schedule(expression, "UTC"), datetime(2027, 6, 1, tzinfo=UTC)) == pytest.approx(
        expected, rel=0.003
    )
