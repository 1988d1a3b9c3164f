"""Two reports held against each other, checked with NumPy on the stored tables."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from stored_reports import copy, edit, restate, side

from service.comparison.comparable_report import labels
from service.comparison.compare import compare
from service.comparison.sites import carried
from service.contracts.comparison import Comparison
from service.errors import NotComparable


@pytest.fixture
def baseline(tmp_path):
    return copy(tmp_path / "before")


@pytest.fixture
def other(tmp_path):
    return copy(tmp_path / "after")


def compared(*directories):
    comparison = compare([side(directory) for directory in directories], "0.1.0")
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
    return comparison


def tokens(directory, scheme):
    """Return a scheme's scored rows as arrays."""
    rows = [
        row for row in pq.read_table(directory / "tables" / "tokens.parquet").to_pylist() if row["scheme"] == scheme
    ]
    scored = [row for row in rows if row["kl_divergence"] is not None]
    return {name: np.array([row[name] for row in scored], dtype=float) for name in scored[0] if name != "scheme"}


def blocks(values, sequences=4, cut=2):
    """Cut the values of sequences, all equally long, into blocks: what stands for fewer than 8 sequences."""
    return [
        one[len(one) * part // cut : len(one) * (part + 1) // cut]
        for one in np.split(values, sequences)
        for part in range(cut)
    ]


def clustered(units):
    """Mean and standard error by the definition."""
    sums, counts = np.array([unit.sum() for unit in units]), np.array([len(unit) for unit in units])
    m, n = sums.sum() / counts.sum(), len(units)
    return m, math.sqrt(n / (n - 1) * ((sums - counts * m) ** 2).sum()) / counts.sum()


def worsen(rows):
    """Make nf4 worse, at each position by another factor."""
    random = np.random.default_rng(4)
    for row in rows:
        if row["scheme"] == "nf4" and row["kl_divergence"] is not None:
            row["kl_divergence"] *= float(random.uniform(1.1, 1.7))
            row["nll_scheme"] += float(random.normal(0.05, 0.02))
            row["same_top"] = row["same_top"] and bool(random.random() < 0.9)


def test_a_report_held_against_itself_has_not_changed(baseline, other):
    comparison = compared(baseline, other)
    [difference] = comparison.differences
    assert [report.label for report in comparison.reports] == [
        "example/tiny-llama (before)",
        "example/tiny-llama (after)",
    ]
    assert comparison.warnings == ()
    assert difference.not_compared == ()
    assert (difference.range.sites, difference.range.only_baseline, difference.range.only_other) == (60, 0, 0)
    assert (difference.range.median_change_bits, difference.range.growth, difference.range.shrinkage) == (0, (), ())
    assert difference.outliers["llm_int8"].kept == (17, 40)
    assert all(not (sets.gained or sets.lost) for sets in difference.outliers.values())
    assert set(difference.schemes) == {"int8", "nf4", "w8a8-tensor"}
    for changes in difference.schemes.values():
        for change in (changes.kl_divergence, changes.perplexity_ratio, changes.same_top_token):
            assert (change.difference.value, change.difference.standard_error, change.clear) == (0, 0, False)
            assert (change.positions, change.sequences) == (4 * 63, 4)
        assert changes.growth == ()
        assert changes.final_sqnr_db[0] == changes.final_sqnr_db[1] > 0


def test_the_same_tokens_are_paired_position_by_position(baseline, other):
    edit(other, "tokens", worsen)
    changes = compared(baseline, other).differences[0].schemes["nf4"]
    before, after = tokens(baseline, "nf4"), tokens(other, "nf4")
    count = len(before["kl_divergence"])
    for change, differences in (
        (changes.kl_divergence, after["kl_divergence"] - before["kl_divergence"]),
        (changes.same_top_token, after["same_top"] - before["same_top"]),
    ):
        assert (change.paired, change.positions) == (True, count)
        value, error = clustered(blocks(differences))
        assert change.difference.value == pytest.approx(value, rel=1e-12)
        assert change.difference.standard_error == pytest.approx(error, rel=1e-12)
        assert change.difference.interval[0] == pytest.approx(value - stats.t.ppf(0.975, 7) * error, rel=1e-9)
        assert (change.difference.units, change.difference.unit_count) == ("blocks", 8)
    assert changes.kl_divergence.clear


def test_the_error_of_a_perplexity_s_change_agrees_with_the_jackknife(baseline, other):
    edit(other, "tokens", worsen)
    change = compared(baseline, other).differences[0].schemes["nf4"].perplexity_ratio
    before, after = ((t["nll_scheme"] - t["nll_reference"]) for t in (tokens(baseline, "nf4"), tokens(other, "nf4")))
    assert change.difference.value == pytest.approx(np.exp(after.mean()) - np.exp(before.mean()), rel=1e-12)
    kept = [np.delete(np.arange(8), gone) for gone in range(8)]
    parts = blocks(before), blocks(after)
    left = [np.subtract(*(np.exp(np.concatenate([p[i] for i in k]).mean()) for p in parts[::-1])) for k in kept]
    spread = math.sqrt(7 / 8 * ((np.array(left) - np.mean(left)) ** 2).sum())
    assert change.difference.standard_error == pytest.approx(spread, rel=0.06)


def test_reports_that_share_no_sequence_differ_without_an_error(baseline, other):
    restate(other, lambda report: report["calibration"].update(fingerprint="sha256:" + "c" * 64, source="other.txt"))
    edit(other, "tokens", worsen)
    edit(other, "tokens", lambda rows: [row.update(token_id=row["token_id"] + 1) for row in rows])
    comparison = compared(baseline, other)
    [warning] = comparison.warnings
    assert (warning.code, warning.where) == ("calibration-differs", "example/tiny-llama (after)")
    assert "words.txt, 4 x 64 tokens" in warning.message
    assert "other.txt, 4 x 64 tokens" in warning.message
    assert "They share no sequence, so no difference of the predictions is called better or worse." in warning.message
    assert warning.advice == "Measure both models on one text to compare them."
    changes = comparison.differences[0]
    for change in (changes.schemes["nf4"].kl_divergence, changes.schemes["nf4"].perplexity_ratio,
                   changes.schemes["nf4"].same_top_token, changes.reference_perplexity):  # fmt: skip
        assert (change.paired, change.positions, change.sequences, change.clear) == (False, None, None, None)
        assert (change.difference.standard_error, change.difference.interval) == (None, None)
        assert change.difference.value == pytest.approx(change.other.value - change.baseline.value)


def test_sequences_are_known_by_their_tokens_and_not_by_their_numbers(baseline, other):
    restate(other, lambda report: report["calibration"].update(fingerprint="sha256:" + "c" * 64))
    edit(other, "tokens", lambda rows: [row.update(sequence=3 - row["sequence"]) for row in rows])
    comparison = compared(baseline, other)
    change = comparison.differences[0].schemes["nf4"].kl_divergence
    assert (change.sequences, change.difference.value, change.clear) == (4, 0, False)
    assert "Differences of the predictions are over the 4 sequences that both scored" in comparison.warnings[0].message


def test_a_report_on_more_of_a_text_is_compared_on_what_both_scored(baseline, other):
    """The mean over the whole of each report differs; over the shared sequences nothing does."""

    def other_text(rows):
        for row in rows:
            if row["sequence"] >= 2:
                row["token_id"] += 1
                row["kl_divergence"] = row["kl_divergence"] and 3 * row["kl_divergence"]

    restate(other, lambda report: report["calibration"].update(fingerprint="sha256:" + "c" * 64))
    edit(other, "tokens", other_text)
    restate(other, lambda report: report["schemes"]["nf4"]["kl_divergence"].update(mean=1.0))
    change = compared(baseline, other).differences[0].schemes["nf4"].kl_divergence
    assert (change.sequences, change.positions) == (2, 2 * 63)
    assert change.other.value > change.baseline.value
    assert (change.difference.value, change.difference.interval, change.clear) == (0, (0, 0), False)


def test_a_sequence_that_stands_twice_is_shared_as_often_as_both_have_it(baseline, other):
    def double(rows):
        first = {(row["scheme"], row["position"]): row["token_id"] for row in rows if row["sequence"] == 0}
        for row in rows:
            if row["sequence"] == 1:
                row["token_id"] = first[row["scheme"], row["position"]]

    edit(other, "tokens", double)
    change = compared(baseline, other).differences[0].schemes["int8"].kl_divergence
    assert (change.sequences, change.difference.value) == (3, 0)
    edit(baseline, "tokens", double)
    assert compared(baseline, other).differences[0].schemes["int8"].kl_divergence.sequences == 4


def test_what_rounding_moves_is_no_difference(baseline, other):
    def round_otherwise(rows):
        for row in rows:
            if row["kl_divergence"] is not None:
                row["kl_divergence"] += 1e-15
                row["nll_scheme"] -= 1e-15

    edit(other, "tokens", round_otherwise)
    changes = compared(baseline, other).differences[0].schemes["nf4"]
    for change in (changes.kl_divergence, changes.perplexity_ratio):
        assert (change.difference.value, change.difference.standard_error, change.clear) == (0, 0, False)


def test_the_reference_is_paired_without_a_shared_scheme(baseline, other):
    restate(other, lambda report: report.update(schemes={"fp4": report["schemes"]["nf4"]}))
    edit(other, "tokens", lambda rows: [row.update(scheme="fp4") for row in rows if row["scheme"] == "nf4"])
    difference = compared(baseline, other).differences[0]
    assert difference.schemes == {}
    assert (difference.reference_perplexity.difference.value, difference.reference_perplexity.sequences) == (0, 4)


def test_only_positions_that_both_score_are_paired(baseline, other):
    def score_half(rows):
        for row in rows:
            if row["position"] < 32:
                row.update(nll_reference=None, nll_scheme=None, kl_divergence=None, same_top=None)

    edit(other, "tokens", score_half)
    restate(other, lambda report: report["analysis"].update(score="second_half"))
    comparison = compared(baseline, other)
    assert [warning.code for warning in comparison.warnings] == ["scoring-differs"]
    assert comparison.differences[0].schemes["int8"].kl_divergence.positions == 4 * 31


def test_range_site_by_site(baseline, other):
    factors = {(3, "mlp.down", "input"): 8.0, (1, "attn.q", "input"): 2.0, (4, "block", "output"): 0.25}

    def widen(rows):
        for row in rows:
            factor = factors.get((row["layer"], row["component"], row["port"]), 1.0)
            row["abs_max"] *= factor
            row["range_bits"] += math.log2(factor)

    edit(other, "sites", widen)
    edit(other, "sites", lambda rows: rows.remove(next(row for row in rows if row["component"] == "attn.o")))
    range_change = compared(baseline, other).differences[0].range
    assert (range_change.sites, range_change.only_baseline, range_change.only_other) == (59, 1, 0)
    assert [(c.layer, c.component, c.port, round(c.change_bits, 9)) for c in range_change.growth] == [
        (3, "mlp.down", "input", 3),
        (1, "attn.q", "input", 1),
    ]
    assert [(c.layer, c.component, round(c.change_bits, 9)) for c in range_change.shrinkage] == [(4, "block", -2)]
    assert range_change.growth[0].abs_max[1] == pytest.approx(8 * range_change.growth[0].abs_max[0], rel=1e-6)


def test_a_site_without_a_median_has_no_change(baseline, other):
    def flatten(rows):
        rows[0]["range_bits"] = None

    edit(other, "sites", flatten)
    range_change = compared(baseline, other).differences[0].range
    assert (range_change.sites, range_change.median_change_bits, range_change.growth) == (60, 0, ())


def test_outlier_dimensions_gained_lost_and_kept(baseline, other):
    def exchange(report):
        outliers = report["outliers"]["llm_int8"]["dimensions"]
        outliers[0]["dimension"] = 5
        report["outliers"]["massive_token"]["dimensions"] = [{"dimension": 9, "layers_fraction": 1.0, "abs_max": 200.0}]

    restate(other, exchange)
    outlier_sets = compared(baseline, other).differences[0].outliers
    assert (outlier_sets["llm_int8"].gained, outlier_sets["llm_int8"].lost, outlier_sets["llm_int8"].kept) == (
        (5,),
        (17,),
        (40,),
    )
    assert (outlier_sets["massive_token"].gained, outlier_sets["massive_token"].kept) == ((9,), ())
    assert outlier_sets["variance"].kept == (17,)


def test_sets_by_other_thresholds_are_not_compared_and_the_thresholds_named(baseline, other):
    restate(other, lambda report: report["outliers"]["llm_int8"]["thresholds"].update(magnitude=5.0))
    comparison = compared(baseline, other)
    assert [(w.code, w.message) for w in comparison.warnings] == [
        ("thresholds-differ", "The thresholds of llm_int8 differ: magnitude 6.0 and 5.0.")
    ]
    [left_out] = comparison.differences[0].not_compared
    assert (left_out.name, left_out.reason) == ("outliers.llm_int8", "different thresholds: magnitude 6.0 and 5.0")
    assert set(comparison.differences[0].outliers) == {"massive_tensor", "massive_token", "median_quantile", "variance"}


def test_a_massive_activation_carried_through_layers_is_one_of_the_ten_changes(baseline, other):
    """Layers 1 to 3 of the residual stream gain one value; ten other sites gain range too, and one fewer is listed."""
    grown = {(layer, "block", "output"): 9.0 for layer in (1, 2, 3)}
    grown |= {(layer, part, "output"): 1.0 + layer for layer in range(5) for part in ("attn.q", "attn.k", "mlp.up")}

    def grow(rows):
        for row in rows:
            site = row["layer"], row["component"], row["port"]
            row["range_bits"] += grown.get(site, 0.0)
            row["abs_max"] = 512.0 if site[1] == "block" and site in grown else row["abs_max"]

    edit(baseline, "sites", lambda rows: [row.update(abs_max=2.0) for row in rows if row["component"] == "block"])
    edit(other, "sites", grow)
    growth = compared(baseline, other).differences[0].range.growth
    assert [(one.layer, one.component) for one in growth[:3]] == [(1, "block"), (2, "block"), (3, "block")]
    expected = sorted((by for site, by in grown.items() if site[1] != "block"), reverse=True)[:9]
    assert [one.change_bits for one in growth[3:]] == pytest.approx(expected)
    groups = carried(growth)
    assert [len(group) for group in groups] == [3] + [1] * 9


def test_the_threshold_of_a_prediction_that_is_no_longer_made_is_no_difference(baseline, other):
    def without(report):
        del report["heads"]["thresholds"]["predicted_peak"], report["analysis"]["heads"]["predicted_peak"]

    restate(other, without)
    assert compared(baseline, other).warnings == ()


def test_the_errors_that_grew_most(baseline, other):
    def worsen_one(rows):
        for row in rows:
            place = (row["scheme"], row["layer"], row["component"], row["mode"], row["port"])
            if place == ("int8", 2, "mlp.up", "isolated", "output"):
                row["relative_l2"] *= 10
            if place == ("int8", 4, "block", "accumulated", "output"):
                row["sqnr_db"] -= 6

    edit(other, "errors", worsen_one)
    schemes = compared(baseline, other).differences[0].schemes
    [grown] = schemes["int8"].growth
    assert (grown.layer, grown.component, round(grown.change_db, 6)) == (2, "mlp.up", 20)
    assert schemes["int8"].final_sqnr_db[1] == pytest.approx(schemes["int8"].final_sqnr_db[0] - 6)
    assert schemes["nf4"].growth == ()


def test_schemes_of_one_report_alone_are_listed(baseline, other):
    restate(other, lambda report: report["schemes"].pop("nf4"))
    restate(other, lambda report: report["schemes"].update(fp4=report["schemes"].pop("int8")))
    difference = compared(baseline, other).differences[0]
    assert list(difference.schemes) == ["w8a8-tensor"]
    assert (difference.only_baseline, difference.only_other) == (("int8", "nf4"), ("fp4",))


def test_other_settings_weights_and_machines_are_named(baseline, other):
    def change(report):
        report["schemes"]["int8"]["settings"]["threshold"] = 0.0
        report["model"]["fingerprint"] = "sha256:" + "d" * 64
        report["environment"]["bitsandbytes"] = "0.48.0"
        report["definitions_version"] = "1.7"

    restate(other, change)
    warnings = compared(baseline, other).warnings
    assert all(warning.advice for warning in warnings)
    told = {warning.code: warning.message for warning in warnings}
    assert told["scheme-settings-differ"] == "The settings of int8 differ: threshold 6.0 and 0.0."
    assert told["models-differ"] == "The weights differ."
    assert "and 0.48.0" in told["environment-differs"]
    assert "definitions 1.0 and 1.7" in told["definitions-differ"]
    assert len(told) == 4


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(1.0, 0.2, ["int8 replaces 100% and 20% of the layers' weights."]), (0.998, 0.996, []), (None, 0.2, []),
     (0.2, None, [])],
)  # fmt: skip
def test_a_scheme_that_replaces_another_share_is_named(baseline, other, before, after, told):
    for directory, share in ((baseline, before), (other, after)):
        restate(directory, lambda report, share=share: report["schemes"]["int8"].update(quantised_share=share))
    warnings = compared(baseline, other).warnings
    assert [one.message for one in warnings if one.code == "quantized-shares-differ"] == told


def test_schemes_that_depend_on_the_batch_are_named_where_it_differs(baseline, other):
    restate(other, lambda report: report["calibration"].update(batch_sequences=1))
    told = [one.message for one in compared(baseline, other).warnings if one.code == "batches-differ"]
    assert [message.partition(",")[0] for message in told] == [
        "int8 was measured in batches of 4 and 1 sequences",
        "w8a8-tensor was measured in batches of 4 and 1 sequences",
    ]


def test_models_of_other_depth_and_width_are_compared_as_far_as_that_means_something(baseline, other):
    restate(other, lambda report: report["model"].update(layers=4, hidden_size=32))
    difference = compared(baseline, other).differences[0]
    assert difference.range is None
    assert difference.outliers == {}
    reasons = {left_out.name: left_out.reason for left_out in difference.not_compared}
    assert reasons["range"] == "different numbers of layers, 5 and 4"
    assert reasons["outliers.variance"] == "different hidden sizes, 64 and 32"
    assert len(reasons) == 7
    assert difference.schemes["nf4"].growth == ()
    assert difference.schemes["nf4"].kl_divergence.difference.value == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"schema_version": "2.0"},
            "after: compare needs schema_version 1.x; got '2.0'",
        ),
        (
            {"definitions_version": "2.0"},
            "after: compare needs definitions_version 1.x, as in the baseline; got '2.0', whose",
        ),
    ],
)
def test_other_major_versions_are_refused_by_name(baseline, other, change, said):
    restate(other, lambda report: report.update(change))
    with pytest.raises(NotComparable, match=said):
        compared(baseline, other)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_and_too_many_are_refused(baseline, count):
    with pytest.raises(NotComparable, match=f"compare needs 2 to 8 reports; got {count}"):
        compare([side(baseline)] * count, "0.1.0")


def test_a_scheme_without_any_finite_prediction_has_no_difference(baseline, other):
    def silence(report):
        report["schemes"]["nf4"].update(perplexity_ratio=None, kl_divergence=None, same_top_token=None)

    restate(other, silence)
    change = compared(baseline, other).differences[0].schemes["nf4"].kl_divergence
    assert change.baseline.value > 0
    assert (change.other, change.difference, change.clear) == (None, None, None)


def test_labels_tell_reports_apart(baseline, other):
    first, second = side(baseline, "0123456789abcdef0123456789abcdef"), side(other, "same")
    assert labels([first, second]) == ["example/tiny-llama (89abcdef)", "example/tiny-llama (same)"]
    assert labels([second, second]) == ["example/tiny-llama (same) #1", "example/tiny-llama (same) #2"]
    restate(other, lambda report: report["model"].update(revision="0011223344556677"))
    assert labels([first, side(other)]) == ["example/tiny-llama", "example/tiny-llama@00112233"]


def test_a_definition_that_one_report_lacks_is_not_compared(baseline, other):
    relative = {"thresholds": {}, "dimensions": []}
    restate(other, lambda report: report["outliers"].update(llm_int8_relative=relative))
    restate(baseline, lambda report: report["outliers"].pop("llm_int8_relative", None))
    (difference,) = compared(baseline, other).differences
    assert "llm_int8_relative" not in difference.outliers
    reasons = {left_out.name: left_out.reason for left_out in difference.not_compared}
    assert reasons["outliers.llm_int8_relative"] == "one of the reports is older than this definition"
    restate(baseline, lambda report: report["outliers"].update(llm_int8_relative=relative))
    assert compared(baseline, other).differences[0].outliers["llm_int8_relative"].gained == ()
