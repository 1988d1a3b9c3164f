"""Where estimated harms do not add up to the whole, all modules are measured, and these select the mixes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import request_for

from service.contracts.report import Report
from service.evaluation import additivity
from service.evaluation.additivity import adds_up
from service.evaluation.decision import decision
from workers.measurement.harm.estimates.agreement import measured_over_estimated
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.samples import CALIBRATION, MODEL

BOUNDS = (3.0, 4.0)
HARM = {"exact": "modules", "draws": 2, "top_modules": 3, "random_modules": 4}


def run(out: Path, **settings: Any) -> Report:
    common = {"sequences": 8, "sequence_length": 48, "harm": HARM, "schemes": ["fp4:block_size=4096"]}
    request = request_for(MODEL, CALIBRATION, **(common | settings))
    measure(request, out, ProgressReporter(out=io.StringIO()))
    return Report.model_validate_json((out / "report.json").read_bytes())


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A report whose estimates count as not additive, on every processor: the bounds lie above what any gives."""
    out = tmp_path_factory.mktemp("apart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(additivity, "ADDITIVE", BOUNDS)
        return out, run(out, recommend={"enabled": True})


def test_all_modules_are_measured_and_the_report_says_so(apart: tuple[Path, Report]) -> None:
    out, report = apart
    (scheme,) = report.schemes
    rows = pq.read_table(out / "tables/harm.parquet").to_pylist()
    assert all(row["harm"] is not None for row in rows)
    assert sum(row["at_random"] for row in rows) == 4
    (warning,) = (warning for warning in report.warnings if warning.code == "harm-all-measured")
    assert f"all its {len(rows)} modules were replaced alone" in warning.message
    assert report.harm is not None
    assert report.harm[scheme].additivity_of == "modules"
    assert report.recommendation is not None
    section = report.recommendation[scheme]
    assert section.selected_by == "measured"
    assert section.reason.endswith(f"the mixes were selected by the measured harms of all {len(rows)} modules.")
    assert "measured harms of all" in " ".join(decision(report))


def test_the_additivity_is_that_of_the_scaled_estimates(apart: tuple[Path, Report]) -> None:
    out, report = apart
    rows = pq.read_table(out / "tables/harm.parquet").to_pylist()
    (facts,) = report.schemes.values()
    assert facts.kl_divergence is not None
    drawn = [row for row in rows if row["at_random"]]
    net = sum(max(0.0, row["harm"] - row["noise_floor"]) for row in drawn)
    scale = net / sum(row["estimated_harm"] for row in drawn)
    found = facts.kl_divergence.mean / (scale * sum(row["estimated_harm"] for row in rows))
    assert found < BOUNDS[0]
    (warning,) = (warning for warning in report.warnings if warning.code == "harm-all-measured")
    assert f"is {found:.3g} times the sum" in warning.message


def test_predictions_are_made_of_the_measured_harms(apart: tuple[Path, Report]) -> None:
    """From the tables alone: measured harms, a quarter of the interactions in proportion, one factor for all."""
    out, report = apart
    rows = pq.read_table(out / "tables/harm.parquet").to_pylist()
    place = {row["module"]: number for number, row in enumerate(rows)}
    matrix = np.zeros((len(rows), len(rows)))
    for pair in pq.read_table(out / "tables/interactions.parquet").to_pylist():
        matrix[place[pair["module_a"]], place[pair["module_b"]]] = pair["value"]
    net = np.array([max(0.0, row["harm"] - row["noise_floor"]) for row in rows])
    factors = np.sqrt(net / np.diag(matrix))
    matrix *= 0.25 * np.outer(factors, factors)
    np.fill_diagonal(matrix, net)
    assert report.recommendation is not None
    (section,) = report.recommendation.values()
    whole = section.mix("uniform").kl.value
    assert len(section.mixes) > 5
    for mix in section.mixes:
        replaced = np.array([row["module"] not in mix.skip_modules for row in rows], dtype=float)
        assert mix.predicted_kl == pytest.approx(replaced @ matrix @ replaced * whole / matrix.sum(), rel=1e-6)


def test_estimates_are_scaled_by_those_drawn_at_random() -> None:
    nan = np.nan
    net, estimated = np.array([4.0, 1.0, nan, nan]), np.array([2.0, 1.0, 3.0, nan])
    assert measured_over_estimated(net, estimated, np.array([False, True, True, False])) == 1
    assert measured_over_estimated(net, estimated, np.zeros(4, dtype=bool)) == pytest.approx(5 / 3)
    assert measured_over_estimated(np.full(4, nan), estimated, np.ones(4, dtype=bool)) is None
    assert [adds_up(one) for one in (None, 0.8, 1.25, 0.79, 1.26)] == [True, True, True, False, False]
