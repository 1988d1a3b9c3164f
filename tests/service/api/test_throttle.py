"""Token buckets: the rate, the size, and the bound on what is remembered."""

import pytest

from service.api.keys.throttle import Buckets


class Time:
    """A clock in seconds that stands until it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


def test_a_full_bucket_is_taken_at_once_and_then_at_the_rate(clock):
    buckets = Buckets(2, 3, now=clock)
    assert [buckets.take("ann") for _ in range(3)] == [0, 0, 0]
    assert buckets.wait("ann") == buckets.take("ann") == 0.5
    clock.now = 0.25
    assert buckets.take("ann") == 0.25
    clock.now = 0.5
    assert (buckets.wait("ann"), buckets.take("ann"), buckets.take("ann")) == (0, 0, 0.5)
    clock.now = 100
    assert [buckets.take("ann") for _ in range(4)] == [0, 0, 0, 0.5]


def test_callers_do_not_share_a_bucket(clock):
    buckets = Buckets(1, 1, now=clock)
    assert (buckets.take("ann"), buckets.take("ben"), buckets.take("ann")) == (0, 0, 1)
    assert buckets.wait("cleo") == 0


def test_so_many_callers_are_remembered_the_quiet_ones_forgotten_first(clock):
    buckets = Buckets(1, 1, most=2, now=clock)
    for caller in ("ann", "ben", "ann", "cleo"):
        buckets.take(caller)
    assert [buckets.wait(caller) for caller in ("ann", "ben", "cleo")] == [1, 0, 1]
    assert len(buckets._buckets) == 2


def test_a_caller_may_have_a_rate_of_its_own_and_a_bucket_of_two_seconds(clock):
    buckets = Buckets(1, now=clock)
    assert [buckets.take("ann") for _ in range(3)] == [0, 0, 1]
    assert [buckets.take("ben", 4) for _ in range(9)] == [0] * 8 + [0.25]
    assert [buckets.take("cleo", 0.25) for _ in range(2)] == [0, 4]
