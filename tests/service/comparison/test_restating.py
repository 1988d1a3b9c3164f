"""Reports of earlier versions are given errors by sequence, from their own table of tokens."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from stored_reports import copy, edit, restate

from service.contracts.report import Report
from service.evaluation.restating import predates_intervals, restated
from service.evaluation.scored import COLUMNS
from service.evaluation.stored_report import read_report

SCHEMES = ("int8", "nf4", "w8a8-tensor")


@pytest.fixture
def stored(tmp_path):
    """The example, with a vocabulary so large that its reference does not count as guessing."""
    directory = copy(tmp_path / "stored")
    restate(directory, lambda report: report["model"].update(vocabulary=10**6))
    return directory


def naive(directory):
    return Report.model_validate_json((directory / "report.json").read_bytes())


def again(directory):
    return read_report(directory / "report.json", directory / "tables" / "tokens.parquet")


def by_block(directory, scheme, *names):
    """Return the scored positions' figures in 8 blocks: 4 sequences, each cut in two."""
    rows = pq.read_table(directory / "tables" / "tokens.parquet", filters=[("scheme", "==", scheme)]).to_pylist()
    blocks = []
    for sequence in range(4):
        scored = [row for row in rows if row["sequence"] == sequence and row["kl_divergence"] is not None]
        scored.sort(key=lambda row: row["position"])
        half = len(scored) // 2
        blocks += [
            np.array([[row[name] for name in names] for row in part], float) for part in (scored[:half], scored[half:])
        ]
    return blocks


def expected(blocks):
    sums, counts = np.array([b.sum() for b in blocks]), np.array([b.size for b in blocks])
    m = sums.sum() / counts.sum()
    error = math.sqrt(8 / 7 * ((sums - counts * m) ** 2).sum()) / counts.sum()
    return m, error, stats.t.ppf(0.975, 7) * error


@pytest.mark.parametrize("scheme", SCHEMES)
def test_errors_follow_from_the_table(stored, scheme):
    before, after = naive(stored).schemes[scheme], again(stored).schemes[scheme]
    kl = [b[:, 0] for b in by_block(stored, scheme, "kl_divergence")]
    log_ratio = [b[:, 0] - b[:, 1] for b in by_block(stored, scheme, "nll_scheme", "nll_reference")]
    same = [b[:, 0] for b in by_block(stored, scheme, "same_top")]
    m, error, reach = expected(kl)
    assert after.kl_divergence.standard_error == pytest.approx(error)
    assert after.kl_divergence.standard_error != before.kl_divergence.standard_error
    assert after.kl_divergence.interval == pytest.approx((m - reach, m + reach))
    assert expected(same)[1] == pytest.approx(after.same_top_token.standard_error)
    m, error, reach = expected(log_ratio)
    assert after.perplexity_ratio.standard_error == pytest.approx(math.exp(m) * error)
    assert after.perplexity_ratio.interval == pytest.approx((math.exp(m - reach), math.exp(m + reach)))
    for name in ("kl_divergence", "perplexity_ratio", "same_top_token", "perplexity"):
        figure = getattr(after, name)
        assert (figure.units, figure.unit_count, figure.degrees_of_freedom) == ("blocks", 8, 7)
    assert (after.kl_divergence.mean, after.kl_divergence.p99) == (before.kl_divergence.mean, before.kl_divergence.p99)


def test_the_reference_is_restated_and_the_reader_told(stored):
    report = again(stored)
    m, error, reach = expected([b[:, 0] for b in by_block(stored, "int8", "nll_reference")])
    perplexity = report.reference.perplexity
    assert perplexity.standard_error == pytest.approx(math.exp(m) * error)
    assert perplexity.interval == pytest.approx((math.exp(m - reach), math.exp(m + reach)))
    (warning,) = (warning for warning in report.warnings if warning.code == "few-sequences")
    assert warning.message.startswith("The calibration text has 4 sequences, so errors are estimated from 8 blocks.")
    assert warning.advice == "Rerun with --sequences 8 or more."


def test_every_scheme_has_a_verdict(stored):
    schemes = again(stored).schemes
    assert all(facts.verdict is None for facts in naive(stored).schemes.values())
    for facts in schemes.values():
        assert "95% interval" in facts.verdict.reasons[0]


@pytest.mark.parametrize("how", ["missing", "damaged", "without a column", "empty"])
def test_without_a_usable_table_there_is_no_error(stored, how):
    path = stored / "tables" / "tokens.parquet"
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "without a column":
        pq.write_table(pq.read_table(path).drop_columns(["token_id"]), path)
    else:
        edit(stored, "tokens", list.clear)
    report = again(stored)
    facts = report.schemes["nf4"]
    for figure in (facts.kl_divergence, facts.perplexity, facts.perplexity_ratio, facts.same_top_token,
                   report.reference.perplexity):  # fmt: skip
        assert (figure.standard_error, figure.interval, figure.units, figure.unit_count) == (None,) * 4
    assert facts.kl_divergence.mean == naive(stored).schemes["nf4"].kl_divergence.mean
    assert [warning.code for warning in report.warnings][-1] == "no-intervals"
    assert facts.verdict.not_ruled_out == ()
    assert facts.verdict.reasons[-1] == "These values have no 95% interval, so other levels are possible."


def test_reports_of_today_are_taken_as_they_are(stored):
    own = {"level": "severe", "reasons": ["It was judged so."], "not_ruled_out": []}

    def modernise(report):
        report["schema_version"] = "1.2"
        report["schemes"]["nf4"]["verdict"] = own

    restate(stored, modernise)
    before = naive(stored)

    def unread():
        raise AssertionError("the table is not needed")

    after = restated(before, unread)
    assert after.schemes["nf4"] == before.schemes["nf4"]
    assert after.schemes["nf4"].verdict.level == "severe"
    assert after.schemes["int8"].verdict is not None


def test_positions_without_a_finite_prediction_are_left_out(stored):
    def silence(rows):
        for row in rows:
            if row["scheme"] == "nf4" and row["position"] < 10:
                row["kl_divergence"] = row["same_top"] = None
                row["nll_scheme"] = math.inf

    edit(stored, "tokens", silence)
    found = again(stored).schemes["nf4"].kl_divergence
    assert found.standard_error == pytest.approx(
        expected([b[:, 0] for b in by_block(stored, "nf4", "kl_divergence")])[1]
    )
    assert set(COLUMNS) <= set(pq.read_schema(stored / "tables" / "tokens.parquet").names)


@pytest.mark.parametrize(
    ("version", "older"), [("1.0", True), ("1.1", True), ("1.2", False), ("1.10", False), ("2.0", False)]
)
def test_which_reports_are_older(version, older):
    assert predates_intervals(version) is older
