"""The same model on 8 and on 32 sequences of one text is the same model: no scheme is better or worse in either."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from service.comparison.comparable_report import ComparableReport
from service.comparison.compare import compare
from service.contracts.comparison import Difference
from service.contracts.report import Report
from service.contracts.request import MeasurementRequest
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.samples import CALIBRATION, MODEL


def measured(out: Path, sequences: int, seed: int = 0) -> ComparableReport:
    """Measure the sample model under nf4; what is measured of a sequence does not depend on the others."""
    asked = {
        "model": {"path": str(MODEL)},
        "calibration": {"path": str(CALIBRATION)},
        "schemes": ["nf4"],
        "sequences": sequences,
        "sequence_length": 64,
        "batch_sequences": 8,
        "seed": seed,
    }
    measure(MeasurementRequest.model_validate(asked), out, ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((out / "report.json").read_bytes())

    def read(table: str, columns: tuple[str, ...]) -> dict[str, list[object]]:
        rows: dict[str, list[object]] = pq.read_table(
            out / f"tables/{table}.parquet", columns=list(columns)
        ).to_pydict()
        return rows

    return ComparableReport(out.name, report, read)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> ComparableReport:
    return measured(tmp_path_factory.mktemp("eight") / "eight", 8)


def difference(baseline: ComparableReport, other: ComparableReport) -> Difference:
    [found] = compare([baseline, other], "0.1.0").differences
    return found


def test_more_sequences_of_one_text_change_nothing(eight: ComparableReport, tmp_path: Path) -> None:
    more = measured(tmp_path / "more", 32)
    found = difference(eight, more)
    nf4 = found.schemes["nf4"]
    assert nf4.kl_divergence.other != nf4.kl_divergence.baseline
    for change in (nf4.kl_divergence, nf4.perplexity_ratio, nf4.same_top_token, found.reference_perplexity):
        assert (change.paired, change.sequences, change.positions) == (True, 8, 8 * 63)
        assert change.difference is not None
        assert change.difference.value == pytest.approx(0, abs=1e-6)
        assert change.clear is False
        assert (change.difference.units, change.difference.degrees_of_freedom) == ("sequences", 7)


def test_sequences_of_another_seed_are_another_text(eight: ComparableReport, tmp_path: Path) -> None:
    other = measured(tmp_path / "other", 8, seed=5)
    own, theirs = ({tuple(ids) for ids in _sequences(side)} for side in (eight, other))
    change = difference(eight, other).schemes["nf4"].kl_divergence
    shared = len(own & theirs)
    assert change.sequences == (shared or None)
    assert (change.clear is None) is (shared == 0)


def _sequences(side: ComparableReport) -> list[list[object]]:
    rows = side.read("tokens", ("token_id",))
    assert rows is not None
    ids = list(rows["token_id"])
    return [ids[start : start + 64] for start in range(0, len(ids), 64)]
