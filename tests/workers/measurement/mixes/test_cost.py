"""What a measurement is said to take: the sizes of the model, the disk that streams and checkpoints come to."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGS, save_random
from tiny_models import request_for

from service.contracts.harm.cost import Cost
from service.contracts.report import Report
from service.contracts.request import Analysis, MeasurementRequest
from workers.measurement import __main__ as program
from workers.measurement.errors import BadRequest, MeasurementError
from workers.measurement.harm.expected import expected_replacements
from workers.measurement.harm.plan import DiskTooSmall
from workers.measurement.mixes.cost import check_disk
from workers.measurement.mixes.refusals import check_harm
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.loading import load_decoder
from workers.measurement.preparation import plan
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.workspace import unfinished
from workers.planning import request_of
from workers.samples import CALIBRATION, LABELLED, MODEL

HARM = {"exact": "modules", "draws": 2, "top_modules": 3, "random_modules": 2}


def asked(**settings: Any) -> MeasurementRequest:
    common: dict[str, Any] = {"sequences": 4, "sequence_length": 32, "harm": HARM, "recommend": {"enabled": True}}
    return request_for(MODEL, CALIBRATION, **(common | settings))


def planned(request: MeasurementRequest) -> Cost:
    return plan(request, ProgressReporter(out=io.StringIO()))


class Weighing(ProgressReporter):
    """Notes by stage the most that streams and checkpoints took of the disk when progress was reported."""

    def __init__(self, work: Path) -> None:
        super().__init__(out=io.StringIO())
        self._work = work
        self.most: dict[str, int] = {}
        self.stages: list[str] = []

    def _say(self, line: Any) -> None:
        super()._say(line)
        stage = getattr(line, "stage", None)
        if stage is not None:
            self.stages.append(stage)
            size = sum(file.stat().st_size for file in self._work.glob("**/*.stream"))
            self.most[stage] = max(size, self.most.get(stage, 0))


def test_streams_and_checkpoints_take_what_was_said(tmp_path: Path) -> None:
    request = asked(schemes=["nf4", "int8"], memory_bytes=0, checkpoint_seconds=0)
    cost = planned(request)
    weighing = Weighing(unfinished(tmp_path / "out"))
    measure(request, tmp_path / "out", weighing)
    stated = {stage.stage: stage.streams_bytes + stage.checkpoint_bytes for stage in cost.stages}
    assert list(stated) == ["sweep", "harm", "mixes"]
    # Of the two checkpoints that lie on the disk for a moment, one is left when progress is reported.
    for stage, most in stated.items():
        assert 0.4 * most <= weighing.most[stage] <= most, stage
    assert cost.disk_bytes == max(stated.values())

    report = Report.model_validate_json((tmp_path / "out/report.json").read_bytes())
    sizes = {size.scheme: size for size in cost.sizes}
    for name, facts in report.schemes.items():
        assert sizes[name].smallest == facts.model_bytes
        assert sizes[name].largest == report.model.weight_bytes
    assert report.recommendation is not None
    assert sum(len(one.mixes) for one in report.recommendation.values()) <= cost.mixes
    assert cost.swaps == 1 + report.model.layers + 2 * 5


def test_memory_that_holds_the_streams_leaves_checkpoints_alone_on_the_disk() -> None:
    sweep, harm, mixes = planned(asked(schemes=["nf4"])).stages
    assert (sweep.streams_bytes, harm.streams_bytes, mixes.streams_bytes) == (0, 0, 0)
    assert 0 < sweep.checkpoint_bytes < mixes.checkpoint_bytes


def test_only_what_is_asked_for_is_counted() -> None:
    cost = planned(asked(recommend={"enabled": False}, harm={"estimate": True}))
    assert [stage.stage for stage in cost.stages] == ["sweep", "harm"]
    assert (cost.swaps, cost.further_swaps, cost.mixes, cost.held_out_sequences) == (0, 0, 0, 0)


def test_each_round_of_mixes_leaves_a_checkpoint() -> None:
    once, often = (planned(asked(schemes=["nf4"], recommend={"enabled": True, "rounds": n})).stages[2] for n in (1, 3))
    stream = once.checkpoint_bytes // (2 * 9 + 2)  # reference, 3 mixes and 5 controls, beside 2 of the sweep
    assert once.checkpoint_bytes == stream * (2 * 9 + 2)
    assert often.checkpoint_bytes - once.checkpoint_bytes == stream * 2 * 4


def test_the_modules_of_a_component_are_counted() -> None:
    layers = planned(asked(schemes=["nf4"])).layers
    cost = planned(asked(schemes=["nf4"], harm=HARM | {"component": "mlp.down"}))
    assert (cost.swaps, cost.further_swaps) == (1 + layers + layers + 2, 7 * layers - layers - 2)
    for exact in ("none", "layers"):
        assert planned(asked(schemes=["nf4"], harm={"estimate": True, "exact": exact})).further_swaps == 0


def test_a_plan_is_printed_in_place_of_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(program, "_private_stdout", lambda: said)
    request = asked(schemes=["nf4"])
    (tmp_path / "request.json").write_text(request.model_dump_json())
    assert program.main([str(tmp_path / "request.json"), "--plan"]) == 0
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [line["kind"] for line in lines[-2:]] == ["plan", "finished"]
    assert Cost.model_validate(lines[-2]) == planned(request)
    assert "sweep" not in {line.get("stage") for line in lines}
    assert program.main([str(tmp_path / "request.json"), "out", "--plan"]) == 2


def test_a_job_is_planned_on_the_files_of_this_machine(tmp_path: Path) -> None:
    machine = {"memory_bytes": 5, "device": "cpu"}
    job = {"model": "sample", "schemes": ["nf4"], "recommend": {"enabled": True}}
    sample = request_of({"job": job, "calibration": None, "labelled": None, "machine": machine})
    assert (sample.model.path, sample.model.source, sample.calibration.path) == (MODEL, "sample", CALIBRATION)
    assert sample.labelled is not None
    assert (sample.labelled.path, sample.memory_bytes, sample.harm.exact) == (LABELLED, 5, "modules")
    own = {"job": job | {"model": str(tmp_path)}, "calibration": "/a/text.jsonl", "labelled": None, "machine": {}}
    other = request_of(own)
    assert (other.model.path, other.labelled, other.calibration.format) == (tmp_path, None, "jsonl")


REFUSED = [
    ({"recommend": {"enabled": True, "max_bytes": 1000}}, "the smallest mix of nf4 takes"),
    ({"recommend": {"enabled": True, "max_bytes": "1GB"}}, "and the model in 16 bits"),
    ({"harm": HARM | {"component": "mlp.dwn"}}, r"harm\.component: 'mlp\.dwn' is not allowed; allowed: attn\.k"),
    ({"keep": ["attn.x"]}, "'attn.x' is not a module of the model"),
    ({"keep": [*(f"attn.{c}" for c in "qkvo"), "mlp.gate", "mlp.up", "mlp.down"]}, "keeps every module"),
    ({"keep": ["lm_head"]}, "keeps no module that nf4 would replace"),
    ({"sequences": 100_000}, "fewer than the 100000 sequences and 100000 held-out ones"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_be_had_is_refused_before_the_sweep(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    request = asked(**({"schemes": ["nf4"]} | settings))
    reporter = Weighing(unfinished(tmp_path / "out"))
    with pytest.raises(MeasurementError, match=said) as refused:
        measure(request, tmp_path / "out", reporter)
    assert refused.value.bad_input
    assert "sweep" not in reporter.stages
    with pytest.raises(MeasurementError, match=said):
        planned(request)


def test_a_scheme_without_modules_in_the_layers_is_refused(tmp_path: Path) -> None:
    """OPT-350m's kind has projections outside the layers, which are left when those of the layers are kept."""
    model = save_random(tmp_path / "model", CONFIGS["opt, projected"](), torch.float32)
    decoder = load_decoder(open_checkpoint(model), torch.device("cpu"), tmp_path / "offloaded")
    keep = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"]
    analysis = Analysis.model_validate({"schemes": ["nf4"], "keep": keep, "harm": {"estimate": True}})
    with pytest.raises(BadRequest, match="nf4 replaces no module of the layers"):
        check_harm(analysis, expected_replacements(analysis, decoder))


def test_a_disk_that_is_too_small_is_refused_before_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    reporter = Weighing(unfinished(tmp_path / "out"))
    with pytest.raises(MeasurementError, match=r"hidden states and .* need .* of disk in .* has 1 bytes"):
        measure(asked(schemes=["nf4"]), tmp_path / "out", reporter)
    assert "sweep" not in reporter.stages


def test_what_a_killed_measurement_left_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = planned(asked(schemes=["nf4"], memory_bytes=0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(DiskTooSmall, match="has 1 bytes free"):
        check_disk(cost, tmp_path)
    for directory in ("streams", "harm/states", "checkpoint.000003"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "0.stream").write_bytes(bytes(cost.disk_bytes // 3 + 1))
    check_disk(cost, tmp_path)
