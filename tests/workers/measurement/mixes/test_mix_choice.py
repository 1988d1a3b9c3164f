"""The mix that is chosen of those measured: better than the best control, corrected for the mixes tried."""

import numpy as np
from scipy import stats

from workers.measurement.mixes.choice import choose

SEQUENCE = np.repeat(np.arange(16), 30)


def around(value: float, seed: int, spread: float = 0.02) -> np.ndarray:
    """KL divergences whose sequences differ by `spread`."""
    rng = np.random.default_rng(seed)
    return value + np.repeat(rng.normal(0, spread, 16), 30) + rng.normal(0, spread, len(SEQUENCE))


def test_a_clearly_better_mix_is_chosen() -> None:
    common = around(0, 1, 0.1)
    mixes = {"a": common + around(0.5, 2), "b": common + around(0.3, 3)}
    controls = {"uniform": common + around(0.8, 4), "random": common + around(0.7, 5)}
    choice = choose(mixes, controls, SEQUENCE)
    assert (choice.chosen, choice.best_control) == ("b", "random")
    assert choice.difference.value == (mixes["b"] - controls["random"]).mean()
    assert choice.difference.interval[1] < 0


def test_none_is_chosen_that_the_best_control_equals() -> None:
    common = around(0, 1, 0.1)
    controls = {"uniform": common + 0.8, "attn-v": common + around(0.3, 6)}
    choice = choose({"a": common + around(0.3, 7)}, controls, SEQUENCE)
    assert (choice.chosen, choice.best_control) == (None, "attn-v")
    assert choice.difference is not None


def test_more_mixes_need_more_certainty() -> None:
    changes = np.repeat(np.random.default_rng(8).normal(0, 1, 16), 30)
    changes -= changes.mean()
    error = changes[::30].std(ddof=1) / 4
    borderline = stats.t.ppf(1 - 0.04 / 2, 15) * error  # significant at 0.05 alone, and not at 0.05 / 2
    control = np.ones(len(SEQUENCE))
    better, other = control + changes - borderline, control + 9
    assert choose({"a": better}, {"uniform": control}, SEQUENCE).chosen == "a"
    assert choose({"a": better, "b": other}, {"uniform": control}, SEQUENCE).chosen is None


def test_one_sequence_has_blocks_and_an_exact_gain_is_a_gain() -> None:
    sequence = np.zeros(32, dtype=int)
    choice = choose({"a": np.full(32, 0.25)}, {"uniform": np.full(32, 0.5)}, sequence)
    assert choice.chosen == "a"
    assert choose({"a": np.full(3, 0.25)}, {"uniform": np.full(3, 0.5)}, sequence[:3]).chosen is None
