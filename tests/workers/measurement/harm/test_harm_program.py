"""The harm stage of a measurement: its tables and section, what it refuses, and that it goes on where it was killed."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_other_decoders import OTHERS
from tiny_models import CONFIGS, request_for, save_checkpoint

from service.contracts.harm.facts import HarmFacts
from service.contracts.progress import Progress
from service.contracts.report import Report
from service.contracts.request import MeasurementRequest
from workers.measurement import program
from workers.measurement.errors import BadRequest, MeasurementError
from workers.measurement.harm import estimation, measuring
from workers.measurement.harm.reverse_sweep import NoGradient, start_gradients
from workers.measurement.layers.streams import Streams
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

LAYERS = 4
MODULES = 7
EVERYTHING = {"exact": "modules", "dimensions": True, "draws": 3, "top_modules": 5, "random_modules": 4}


class Killed(KeyboardInterrupt):
    """Stands for the end of the process: the program leaves its work as it is, as it does at an interrupt."""


class Mortal(ProgressReporter):
    """Dies when the harm stage has come so far."""

    def __init__(self, done: int) -> None:
        super().__init__(out=io.StringIO())
        self._death = done

    def _say(self, line: Any) -> None:
        super()._say(line)
        if isinstance(line, Progress) and line.stage == "harm" and line.done >= self._death:
            raise Killed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("harm") / "llama", CONFIGS["llama"](), torch.float32)


def asked(model: Path, text: Path, harm: dict[str, Any], **settings: Any) -> MeasurementRequest:
    return request_for(model, text, harm=harm, checkpoint_seconds=0, sequences=8, sequence_length=24, **settings)


def run(request: MeasurementRequest, out: Path) -> Report:
    measure(request, out, ProgressReporter(out=io.StringIO()))
    return Report.model_validate_json((out / "report.json").read_bytes())


def rows(out: Path, table: str, **only: Any) -> list[dict[str, Any]]:
    filters = [(column, "==", value) for column, value in only.items()]
    return pq.read_table(out / f"tables/{table}.parquet", filters=filters or None).to_pylist()


@pytest.fixture(scope="module")
def everything(model: Path, calibration_text: Path) -> MeasurementRequest:
    return asked(model, calibration_text, EVERYTHING)


@pytest.fixture(scope="module")
def measured(everything: MeasurementRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("measured") / "out"
    return out, run(everything, out)


def facts(report: Report, scheme: str = "nf4") -> HarmFacts:
    assert report.harm is not None
    return report.harm[scheme]


def test_every_module_has_an_estimate_and_the_chosen_ones_are_measured(measured: tuple[Path, Report]) -> None:
    out, report = measured
    of_nf4 = rows(out, "harm", scheme="nf4")
    assert len(of_nf4) == LAYERS * MODULES == len({row["module"] for row in of_nf4})
    assert all(row["estimated_harm"] > 0 and row["estimated_standard_error"] > 0 for row in of_nf4)
    chosen = [row for row in of_nf4 if row["harm"] is not None]
    assert len(chosen) == 9
    assert sum(row["at_random"] for row in chosen) == 4
    ranked = sorted(of_nf4, key=lambda row: -row["estimated_harm"])
    assert all(row["harm"] is not None and not row["at_random"] for row in ranked[:5])
    assert all(row["noise_floor"] >= 0 for row in chosen)
    assert {row["noise_floor"] for row in of_nf4 if row["harm"] is None} == {None}
    net = [row["estimated_harm"] if row["harm"] is None else max(row["harm"] - row["noise_floor"], 0) for row in of_nf4]
    worst = sorted(zip(net, of_nf4, strict=True), key=lambda pair: -pair[0])[:10]
    assert [one.module for one in facts(report).modules] == [row["module"] for _, row in worst]


def test_saved_bytes_are_those_of_the_scheme(measured: tuple[Path, Report]) -> None:
    out, report = measured
    for scheme, of_scheme in report.schemes.items():
        saved = sum(row["bytes_saved"] for row in rows(out, "harm", scheme=scheme))
        assert report.model.weight_bytes - saved == of_scheme.model_bytes


def test_interactions_are_symmetric_and_predict_the_whole(measured: tuple[Path, Report]) -> None:
    out, report = measured
    for scheme in report.schemes:
        found = rows(out, "interactions", scheme=scheme)
        values = {(row["module_a"], row["module_b"]): row["value"] for row in found}
        assert len(values) == len(found) == (LAYERS * MODULES) ** 2
        assert all(values[b, a] == pytest.approx(value, rel=1e-12) for (a, b), value in values.items())
        predicted = facts(report, scheme).predicted_whole
        assert predicted is not None
        assert sum(values.values()) == pytest.approx(predicted.value)
        for row in rows(out, "harm", scheme=scheme):
            assert values[row["module"], row["module"]] == pytest.approx(row["estimated_harm"])


def test_shares_of_dimensions_add_up_and_are_of_weight_only_schemes(measured: tuple[Path, Report]) -> None:
    out, report = measured
    of_nf4 = rows(out, "dimension_harm")
    assert {row["scheme"] for row in of_nf4} == {"nf4"}
    assert facts(report, "int8").dimensions is None
    assert [row["dimension"] for row in of_nf4] == [*range(report.model.hidden_size), None]
    assert sum(row["share"] for row in of_nf4) == pytest.approx(1)
    shares = facts(report).dimensions
    assert shares is not None
    flagged = [row for row in of_nf4 if row["definitions"]]
    assert shares.flagged_dimensions == len(flagged)
    assert shares.flagged.value == pytest.approx(sum(row["share"] for row in flagged))
    assert shares.flagged.value + shares.unflagged.value + shares.other_inputs.value == pytest.approx(1)


def test_the_section_follows_from_the_table(measured: tuple[Path, Report]) -> None:
    out, report = measured
    section, of_nf4 = facts(report), rows(out, "harm", scheme="nf4")
    kl = report.schemes["nf4"].kl_divergence
    assert kl is not None
    assert section.whole is not None
    assert section.predicted_whole is not None
    assert section.check is not None
    assert (section.whole.value, section.whole.standard_error) == (kl.mean, kl.standard_error)
    assert section.scale_factor == pytest.approx(kl.mean / section.predicted_whole.value)
    net = {row["module"]: max(0, row["harm"] - row["noise_floor"]) for row in of_nf4 if row["harm"] is not None}
    at_random = [row for row in of_nf4 if row["at_random"]]
    ratio = sum(net[row["module"]] for row in at_random) / sum(row["estimated_harm"] for row in at_random)
    assert section.check.measured_over_estimated == pytest.approx(ratio)
    assert section.additivity_of == "estimates"
    parts = ratio * sum(row["estimated_harm"] for row in of_nf4)
    assert section.additivity == pytest.approx(kl.mean / parts)


def test_harms_that_do_not_add_up_are_warned_of(measured: tuple[Path, Report]) -> None:
    warned = {warning.where for warning in measured[1].warnings if warning.code == "harm-not-additive"}
    apart = {name for name, of in (measured[1].harm or {}).items() if not 0.8 <= (of.additivity or 1) <= 1.25}
    assert warned == apart


@pytest.mark.parametrize(("done", "memory_bytes"), [(0, 0), (22, 2**31), (31, 0), (60, 2**31), (75, 0)])
def test_tables_are_the_same_after_a_kill(
    done: int, memory_bytes: int, everything: MeasurementRequest, measured: tuple[Path, Report], tmp_path: Path
) -> None:
    request = everything.model_copy(update={"memory_bytes": memory_bytes})
    with pytest.raises(Killed):
        measure(request, tmp_path / "out", Mortal(done))
    report = run(request, tmp_path / "out")
    assert report.harm == measured[1].harm
    assert report.timing.resumed_at_layer == LAYERS
    for table in ("harm", "interactions", "dimension_harm"):
        assert rows(tmp_path / "out", table) == rows(measured[0], table)


def test_layers_alone_need_no_gradients(model: Path, calibration_text: Path, tmp_path: Path) -> None:
    report = run(asked(model, calibration_text, {"exact": "layers"}, schemes=["nf4"]), tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out/tables").iterdir()} & {"interactions", "dimension_harm"} == set()
    found = [row for row in rows(tmp_path / "out", "harm") if row["component"] == "block"]
    assert [row["layer"] for row in found] == list(range(LAYERS))
    assert all(row["harm"] > row["noise_floor"] >= 0 for row in found)
    section = facts(report)
    assert section.additivity_of == "layers"
    assert section.additivity == pytest.approx(
        report.schemes["nf4"].kl_divergence.mean / sum(row["harm"] - row["noise_floor"] for row in found)
    )
    assert (section.predicted_whole, section.check, section.scale_factor) == (None, None, None)


def test_a_component_is_measured_whole(model: Path, calibration_text: Path, tmp_path: Path) -> None:
    harm = {"exact": "modules", "component": "mlp.down", "draws": 1}
    run(asked(model, calibration_text, harm, schemes=["nf4"]), tmp_path / "out")
    found = [row for row in rows(tmp_path / "out", "harm") if row["harm"] is not None]
    assert [row["component"] for row in found if not row["at_random"]] == ["mlp.down"] * LAYERS
    assert len([row for row in found if row["at_random"] and row["component"] != "mlp.down"]) == 12
    with pytest.raises(BadRequest, match=r"harm\.component: 'mlp\.dwn' is not allowed; allowed: attn\.k, .*mlp\.down"):
        run(asked(model, calibration_text, harm | {"component": "mlp.dwn"}), tmp_path / "other")


def test_a_scheme_that_replaces_nothing_has_no_harm(
    model: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = program.replaced_modules
    monkeypatch.setattr(program, "replaced_modules", lambda *of: replaced(*of) | {"int8": {}})
    report = run(asked(model, calibration_text, {"estimate": True, "draws": 1}), tmp_path / "out")
    assert report.harm is not None
    assert set(report.harm) == {"nf4"}
    assert [warning.where for warning in report.warnings if warning.code == "harm-nothing-replaced"] == ["int8"]


def test_without_gradients_layers_are_measured_instead(
    model: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NoGradient("layer 3: its output has no gradient with respect to its input")

    monkeypatch.setattr(measuring, "estimate", refuse)
    report = run(asked(model, calibration_text, {"estimate": True}, schemes=["nf4"]), tmp_path / "out")
    (warning,) = (warning for warning in report.warnings if warning.code == "harm-no-gradient")
    assert "layer 3: its output has no gradient" in warning.message
    assert "that of the layers was measured instead" in warning.message
    assert facts(report).no_estimate is not None
    assert facts(report).additivity_of == "layers"
    assert rows(tmp_path / "out", "interactions") == []


def test_modules_that_run_without_gradients_have_no_estimated_harm(calibration_text: Path, tmp_path: Path) -> None:
    """The indexer of DeepSeek 3.2 chooses tokens, through which no gradient goes."""
    path = save_checkpoint(tmp_path / "model", OTHERS["deepseek_v32"](), torch.float32)
    run(asked(path, calibration_text, {"estimate": True, "draws": 1}, schemes=["nf4"]), tmp_path / "out")
    found = {row["component"]: row["estimated_harm"] for row in rows(tmp_path / "out", "harm")}
    without = {component for component, harm in found.items() if harm == 0}
    assert without == {"self_attn.indexer.wq_b", "self_attn.indexer.wk"}
    assert all(harm > 0 for component, harm in found.items() if component not in without)


def test_a_sequence_without_finite_gradients_is_left_out(
    model: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*of: Any) -> Streams:
        gradients = start_gradients(*of)
        gradients.put("1", 5, torch.full_like(gradients.get("1", 5), float("inf")))
        return gradients

    monkeypatch.setattr(estimation, "start_gradients", overflow)
    report = run(asked(model, calibration_text, EVERYTHING, schemes=["nf4"]), tmp_path / "out")
    (warning,) = (warning for warning in report.warnings if warning.code == "harm-nonfinite-gradients")
    assert "not finite in 1 of 8 sequences" in warning.message
    assert all(row["estimated_harm"] > 0 for row in rows(tmp_path / "out", "harm"))
    assert sum(row["share"] for row in rows(tmp_path / "out", "dimension_harm")) == pytest.approx(1)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_measured(
    model: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    request = asked(model, calibration_text, {"estimate": True}, memory_bytes=0)
    with pytest.raises(MeasurementError, match=r"harm: hidden states and .* need .* of disk in .* has 1 bytes free"):
        run(request, tmp_path / "out")


def test_what_it_takes_is_said_first(everything: MeasurementRequest, tmp_path: Path) -> None:
    said = io.StringIO()
    with pytest.raises(Killed):
        measure(everything, tmp_path / "out", Mortal(0))
    measure(everything, tmp_path / "out", ProgressReporter(out=said))
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    of_harm = [line for line in lines if line.get("stage") == "harm"]
    assert "harm takes about" in of_harm[0]["cost"]
    assert " of disk" in of_harm[0]["cost"]
    done = [line["done"] for line in of_harm]
    assert done == sorted(done)
    assert done[-1] == of_harm[0]["total"]
    assert done[-2] >= 0.9 * done[-1]  # what was announced is what the work adds up to


def test_noise_of_float32_is_far_below_every_harm(measured: tuple[Path, Report]) -> None:
    floor = facts(measured[1]).noise_floor
    assert floor is not None
    least = min(row["harm"] for row in rows(measured[0], "harm", scheme="nf4") if row["harm"] is not None)
    assert np.max(np.array(floor)) < 1e-3 * least
