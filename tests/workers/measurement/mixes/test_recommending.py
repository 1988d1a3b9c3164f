"""The whole of a recommendation: what is measured, what is chosen, and when nothing can be recommended."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import request_for

from service.contracts.harm.recommendation import Recommendation
from service.contracts.progress import Progress
from service.contracts.report import Report
from service.contracts.request import MeasurementRequest
from workers.measurement.errors import BadRequest, ModelChanged
from workers.measurement.harm import estimation
from workers.measurement.harm.reverse_sweep import start_gradients
from workers.measurement.layers.streams import Streams
from workers.measurement.mixes import recommendation
from workers.measurement.mixes.plan import Plan
from workers.measurement.mixes.prediction import Prediction
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


class Killed(KeyboardInterrupt):
    """Stands for the end of the process: the program leaves its work as it is, as it does at an interrupt."""


class Mortal(ProgressReporter):
    """Dies when so many layers of mixes are done; notes at which layer each of its stages of mixes began."""

    def __init__(self, death: int | None) -> None:
        super().__init__(out=io.StringIO())
        self._death = death
        self.resumed: list[int] = []
        self._stage = ""

    def _say(self, line: Any) -> None:
        super()._say(line)
        if isinstance(line, Progress):
            if line.stage == "mixes" != self._stage:
                self.resumed.append(line.done)
            self._stage = line.stage
            if line.stage == "mixes" and line.done == self._death:
                raise Killed


SMALL = {
    "sequences": 2,
    "sequence_length": 24,
    "harm": {"exact": "none", "estimate": True, "draws": 2},
    "recommend": {"enabled": True, "max_bytes": 4_700_000, "whole_groups": False},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("small") / "out"
    return out, run(asked(MODEL, CALIBRATION, **SMALL), out)


def test_mixes_go_on_from_a_layer_and_are_the_same(small: tuple[Path, Report], tmp_path: Path) -> None:
    request = asked(MODEL, CALIBRATION, **SMALL, checkpoint_seconds=0, memory_bytes=0)
    dies, goes_on = Mortal(3), Mortal(None)
    with pytest.raises(Killed):
        measure(request, tmp_path / "out", dies)
    measure(request, tmp_path / "out", goes_on)
    # The layer at whose end it died was not kept yet: progress is reported before the checkpoint.
    assert (dies.resumed, goes_on.resumed) == ([0], [2])
    report = Report.model_validate_json((tmp_path / "out/report.json").read_bytes())
    assert report.recommendation == small[1].recommendation
    assert len(recommended(report).mixes) > 5
    tables = [pq.read_table(out / "tables/mixes.parquet") for out in (tmp_path / "out", small[0])]
    assert tables[0].equals(tables[1])


def test_what_a_second_round_selects_is_measured_too(
    small: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_more(plan: Plan, measured: dict[str, float], *, whole_groups: bool) -> Plan:
        """Keep one module more than nothing, and say that half of the divergence is left."""
        assert measured.keys() == set(plan.names)
        assert not whole_groups
        alone = np.arange(len(plan.inputs.modules)) == 5
        half = Prediction(plan.prediction.matrix / 2)
        return replace(plan, mixes={**plan.mixes, "mix-9": alone}, later={"mix-9": half})

    monkeypatch.setattr(recommendation, "refined", one_more)
    request = asked(MODEL, CALIBRATION, **SMALL)
    twice = request.model_copy(update={"recommend": request.recommend.model_copy(update={"rounds": 2})})
    second, first = recommended(run(twice, tmp_path / "out")), recommended(small[1])
    others = [mix for mix in second.mixes if mix.name != "mix-9"]
    assert others == list(first.mixes)
    more, uniform = second.mix("mix-9"), second.mix("uniform")
    assert len(more.skip_modules) == 1
    assert uniform.bytes < more.bytes
    assert more.kl.value != uniform.kl.value
    assert more.predicted_kl < 0.6 * uniform.predicted_kl


@pytest.mark.parametrize("overflowing", [1, 8])
def test_sequences_without_finite_gradients_select_nothing(
    overflowing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*of: Any) -> Streams:
        gradients = start_gradients(*of)
        for number in range(overflowing):
            gradients.put("0", number, torch.full_like(gradients.get("0", number), float("nan")))
        return gradients

    monkeypatch.setattr(estimation, "start_gradients", overflow)
    section = recommended(run(asked(MODEL, CALIBRATION), tmp_path / "out"))
    if overflowing == 1:
        assert len(section.mixes) > 5
    else:
        assert section.reason == "Harm could not be estimated: no sequence has finite gradients."


def test_other_weights_than_the_named_ones_are_refused(tmp_path: Path) -> None:
    request = asked(MODEL, CALIBRATION)
    named = request.model_copy(update={"model": request.model.model_copy(update={"fingerprint": "sha256:0"})})
    with pytest.raises(ModelChanged, match=r"has other weights, sha256:.*; needed: sha256:0") as refused:
        run(named, tmp_path / "out")
    assert (refused.value.code, refused.value.bad_input) == ("model-changed", True)
