"""The whole of a recommendation: what is measured, what is chosen, and when nothing can be recommended."""

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_models import request_for

from service.contracts.harm.recommendation import Recommendation
from service.contracts.report import Report
from service.contracts.request import MeasurementRequest
from workers.measurement.errors import BadRequest
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.samples import CALIBRATION, MODEL

HARM = {"exact": "modules", "draws": 2, "top_modules": 3, "random_modules": 2}


def run(request: MeasurementRequest, out: Path) -> Report:
    measure(request, out, ProgressReporter(out=io.StringIO()))
    return Report.model_validate_json((out / "report.json").read_bytes())


def asked(model: Path, text: Path, **settings: Any) -> MeasurementRequest:
    common = {"sequences": 8, "sequence_length": 48, "schemes": ["nf4"], "harm": HARM, "recommend": {"enabled": True}}
    return request_for(model, text, **(common | settings))


def recommended(report: Report, scheme: str = "nf4") -> Recommendation:
    assert report.recommendation is not None
    return report.recommendation[scheme]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("recommended") / "out"
    return out, run(asked(MODEL, CALIBRATION, schemes=["nf4", "mxfp4"]), out)


def test_mixes_and_controls_are_measured_under_the_target(measured: tuple[Path, Report]) -> None:
    out, report = measured
    for scheme in ("nf4", "mxfp4"):
        section = recommended(report, scheme)
        assert section.held_out_sequences == 8
        assert section.target is not None
        assert section.target.kind == "knee"
        names = [mix.name for mix in section.mixes]
        assert names[-5:] == ["uniform", "first-last", "largest-error", "random", "attn-v"]
        assert {mix.name for mix in section.mixes if mix.control} == set(names[-5:])
        assert all(mix.bytes <= section.target.bytes for mix in section.mixes)
        uniform = section.mix("uniform")
        assert uniform.bytes == report.schemes[scheme].model_bytes == section.frontier[0].bytes
        assert uniform.skip_modules == ()
        assert uniform.predicted_kl == pytest.approx(uniform.kl.value) == section.frontier[0].predicted_kl
        assert section.difference is not None
        best = min(mix.kl.value for mix in section.mixes if mix.control)
        mix = section.mix(section.difference.mix)
        assert section.difference.value == pytest.approx(mix.kl.value - best)
        rows = pq.read_table(out / "tables/mixes.parquet", filters=[("scheme", "==", scheme)]).to_pylist()
        assert [(row["mix"], row["kl"], row["modules"].split()) for row in rows] == [
            (mix.name, mix.kl.value, list(mix.skip_modules)) for mix in section.mixes
        ]
    assert "mixes" in [table.name for table in report.tables]


def test_a_configuration_is_verified_and_a_simulation_has_none(measured: tuple[Path, Report]) -> None:
    section = recommended(measured[1])
    assert section.config is not None
    assert section.config_verified
    assert not section.analysis_only
    kept = section.mix(section.chosen).skip_modules if section.chosen else ()
    assert set(section.config["llm_int8_skip_modules"]) == {"lm_head", *kept}
    simulated = recommended(measured[1], "mxfp4")
    assert (simulated.analysis_only, simulated.config) == (True, None)


def test_a_target_that_no_mix_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"recommend\.max_bytes: 1,000 is not allowed; the smallest mix of nf4 takes"):
        run(asked(MODEL, CALIBRATION, recommend={"enabled": True, "max_bytes": 1000}), tmp_path / "out")


def test_a_scheme_that_is_larger_than_the_target_has_no_mix(tmp_path: Path) -> None:
    size = 4_600_000  # of the sample's mixes of nf4, and less than int8 takes
    harm = {"exact": "none", "estimate": True, "draws": 1}
    request = asked(
        MODEL, CALIBRATION, schemes=["nf4", "int8"], harm=harm, recommend={"enabled": True, "max_bytes": size}
    )
    report = run(request, tmp_path / "out")
    assert all(mix.bytes <= size for mix in recommended(report).mixes)
    larger = recommended(report, "int8")
    assert (larger.mixes, larger.chosen, larger.config_verified) == ((), None, True)
    assert larger.reason.startswith("The target lies outside the sizes of its mixes, the smallest of which takes ")


def test_a_reference_that_guesses_gets_no_recommendation(
    checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path
) -> None:
    harm = {"exact": "none", "estimate": True, "draws": 1}
    report = run(asked(checkpoints["llama"], calibration_text, harm=harm), tmp_path / "out")
    section = recommended(report)
    assert (section.chosen, section.mixes, section.target) == (None, (), None)
    assert "no better than a random guess" in section.reason
    assert section.config_verified
    assert section.config is not None
    assert section.config["llm_int8_skip_modules"] == ["lm_head"]
    assert pq.read_table(tmp_path / "out/tables/mixes.parquet").num_rows == 0
