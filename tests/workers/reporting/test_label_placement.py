"""Labels that are moved apart stay in order, do not overlap, and move no further than they must."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from workers.reporting.drawing.label_placement import spread

PLACES = st.lists(st.floats(0, 100), min_size=1, max_size=5)


@given(PLACES, st.floats(1, 15))
def test_labels_fit_without_overlap_and_in_order(wanted, size):
    placed = spread(wanted, [size] * len(wanted), 0, 100)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) >= size - 1e-9).all()
    assert placed.min() >= size / 2 - 1e-9
    assert placed.max() <= 100 - size / 2 + 1e-9


@given(PLACES)
def test_labels_with_room_stay_where_they_are(wanted):
    spaced = np.arange(len(wanted)) * 20.0 + 10
    np.testing.assert_array_equal(spread(spaced, [20.0] * len(wanted), 0, 100), spaced)


def test_moves_are_the_smallest_possible():
    wanted, size = np.array([50.0, 52.0, 53.0, 90.0]), 10.0
    oracle = minimize(
        lambda placed: ((placed - wanted) ** 2).sum(),
        [20.0, 40.0, 60.0, 90.0],
        constraints=[{"type": "ineq", "fun": lambda placed: np.diff(placed) - size}],
    )
    np.testing.assert_allclose(spread(wanted, [size] * 4, 0, 200), oracle.x, atol=1e-4)


def test_no_labels():
    assert spread([], [], 0, 1).size == 0
