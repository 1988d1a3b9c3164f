"""Numbers keep the digits that a reader needs, and foreign text cannot hide anything."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contracts.report import Estimate
from workers.reporting.text import (
    claim,
    data_size,
    duration,
    estimate,
    listing,
    number,
    percent_estimate,
    plain,
    ranges,
    visible,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (math.nan, "n/a"),
        (math.inf, "infinite"),
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (12.3456, "12.3"),
        (-1234.5, "-1,234"),
        (1.5e-9, "1.50e-09"),
        (3.2e38, "3.20e+38"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@given(st.floats(1e-30, 1e30))
def test_a_number_is_right_to_three_digits(value):
    assert math.isclose(float(number(value).replace(",", "")), value, rel_tol=0.00501)


@pytest.mark.parametrize(
    ("value", "reach", "text"),
    [
        (12.3456, 0.0512, "12.346 (12.294 to 12.397)"),
        (119.606, 10.0588, "119.6 (109.5 to 129.7)"),
        (0.00884, 0.00126, "0.0088 (0.0076 to 0.0101)"),
        (12.3456, None, "12.35"),
        (12.3456, 0.0, "12.35 (12.35 to 12.35)"),
        (320.0, 4.2e-14, "320.0 (320.0 to 320.0)"),
        (320.0, 4.2e-8, "320.000000000 (319.999999958 to 320.000000042)"),
        (8123.4, 56.7, "8,123 (8,067 to 8,180)"),
    ],
)
def test_estimates_are_given_to_the_second_digit_of_the_intervals_reach(value, reach, text):
    assert estimate(within(value, reach)) == text


def within(value, reach):
    interval = None if reach is None else (value - reach, value + reach)
    return Estimate(value=value, standard_error=reach, interval=interval)


def test_a_naive_standard_error_is_never_shown():
    naive = Estimate(value=0.25, standard_error=0.004)
    assert (estimate(naive), claim(naive)) == ("0.2500", "0.2500")


def test_intervals_in_sentences_and_in_percent():
    assert claim(within(0.0243, 0.0021), "nats") == "0.0243 nats (95% interval 0.0222 to 0.0264)"
    assert percent_estimate(within(0.919, 0.004)) == "91.90% (91.50% to 92.30%)"
    assert percent_estimate(within(0.999, 0.002)) == "99.90% (99.70% to 100.00%)"
    assert percent_estimate(within(0.919, None)) == "91.9%"


def test_sizes_times_lists_and_ranges():
    assert estimate(None) == "n/a"
    assert [data_size(size) for size in (999, 6_800_000, 13_500_000_000)] == ["999 B", "6.80 MB", "13.5 GB"]
    assert [duration(seconds) for seconds in (4.23, 83.4, 7500)] == ["4.2 s", "1 min 23 s", "2 h 5 min"]
    assert listing("abc", limit=2) == "a, b and 1 more"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@given(st.text())
def test_visible_text_is_printable_and_stays_so(text):
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown
    assert not text.isprintable() or shown == text


def test_marks_that_reorder_or_break_a_line_become_escapes():
    assert visible("a\u202eb\n\x00") == "a\\u202eb\\n\\x00"
    assert plain("層" * 3) == "\\u5c64" * 3
    assert plain("m" * 50) == "m" * 29 + "..."
