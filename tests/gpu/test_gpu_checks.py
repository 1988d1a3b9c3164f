"""The checks of the script see what is wrong: each is given something that is."""

import argparse
import contextlib
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import big_models
import device_watch
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import step_correctness
import step_costs
import step_kernels
import torch
from device_watch import busy_seconds, count_waits, dearest
from layer_costs import open_decoder
from measuring_process import differing_tables
from step_support import Context, Skip, median_seconds, tell_replaced
from transformers import AutoModelForCausalLM

from workers.measurement.statistics import backends, plain


def context(scratch: Path) -> Context:
    return Context("cpu", True, scratch, argparse.Namespace(), io.StringIO())


def said(given: Context, kind: str) -> list[Any]:
    assert isinstance(given.out, io.StringIO)
    return [line[kind] for line in map(json.loads, given.out.getvalue().splitlines()) if kind in line]


def reduce(*arguments: Any) -> Any:
    found = plain.reduce(*arguments)
    peaks = found.token_abs_max.nan_to_num(1)
    return found._replace(over=found.over + 1, power_sums=found.power_sums * (1 + 1e-12), token_abs_max=peaks)


WRONG = SimpleNamespace(
    reduce=reduce,
    pivots=lambda x: plain.pivots(x) + 1,
    histogram=lambda x: plain.histogram(x) + 1,
    magnitudes_in_bin=lambda *arguments: plain.magnitudes_in_bin(*arguments) * 2,
    note_hits=lambda *arguments: (*plain.note_hits(*arguments)[:2], plain.note_hits(*arguments)[2] + 1),
    token_limits=lambda *arguments: plain.token_limits(*arguments) * 2,
    count_reaching=lambda *arguments: plain.count_reaching(*arguments) + 1,
    channel_products=lambda y, q: plain.channel_products(y, q) * (1 + 1e-12),
    token_products=lambda y, q: plain.token_products(y, q) * (1 + 1e-12),
    score_logits=lambda *arguments: plain.score_logits(*arguments) + 2e-9,
    compare_logits=lambda *arguments: plain.compare_logits(*arguments) + 2e-9,
)
FAULTS = {
    "reduction": ["power_sums is off", "over differs", "token_abs_max differs"],
    "pivots": ["values differs"],
    "histogram": ["histogram differs", "in a bin differs"],
    "limits of tokens": ["limits differs", "counts differs"],
    "hits": ["keys of few differs", "keys of all differs"],
    "channel products": ["sums is off"],
    "token products": ["sums is off", "peak differs"],
    "divergence": ["exact differs", "log-sum-exp is off", "divergence is off"],
}


@pytest.mark.parametrize("check", step_kernels.CHECKS, ids=lambda check: check.name)
def test_a_kernel_that_is_right_passes_and_a_wrong_one_is_named(check: step_kernels.Check) -> None:
    for described, x in list(step_kernels.inputs(((1, 1, 1), (2, 40, 5), (1, 4, 300)), "cpu"))[3::2]:
        assert step_kernels.faults(check, plain, plain, x) == ([], 0.0), described
        found, _ = step_kernels.faults(check, WRONG, plain, x)
        assert sorted(fault.split(" by ")[0] for fault in found) == sorted(FAULTS[check.name]), described


def test_every_kernel_has_a_check() -> None:
    assert {name for check in step_kernels.CHECKS for name in check.kernels} == set(backends.CUDA_KERNELS)


def test_a_kernel_that_was_replaced_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_replaced", {"reduce": "it gives other figures"})
    given = context(tmp_path)
    tell_replaced(given)
    assert said(given, "problem") == ["plain torch stood in for the kernel reduce: it gives other figures"]


def test_inputs_hold_what_is_easily_treated_wrongly() -> None:
    tensors = [x for _, x in step_kernels.inputs(step_kernels.DRY_SHAPES, "cpu")]
    assert {x.dtype for x in tensors} == {torch.bfloat16, torch.float16, torch.float32}
    large = [x for x in tensors if x.numel() > 100]
    for x in large:
        assert x.isnan().any()
        assert x.isinf().any()
    assert any((x != 0).logical_and(x.abs() < torch.finfo(x.dtype).tiny).any() for x in large)
    assert any(x.stride(-1) != 1 for x in tensors)
    assert any(not x.is_contiguous() and x.stride(-1) == 1 for x in tensors)
    assert any(x.shape[-1] % 2 for x in tensors)


def test_another_models_logits_and_a_wrong_figure_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import oracle

    right = step_correctness.configuration
    of_int8 = {"threshold": 0.0}
    monkeypatch.setattr(step_correctness, "configuration", lambda s: right(of_int8 if "threshold" in s else s))
    figures = oracle.site_figures
    monkeypatch.setattr(oracle, "site_figures", lambda x: figures(x) | {"abs_max": figures(x)["abs_max"] * 1.001})
    given = context(tmp_path)
    step_correctness.check_model(given, "llama")
    problems = said(given, "problem")
    assert any(p.startswith("llama: int8 logits differ by") for p in problems), problems
    assert any("abs_max is 0.0009" in p for p in problems), problems
    assert any(p.startswith("llama: the mean KL divergence of int8 is") for p in problems), problems
    assert not any("nf4" in p or "reference" in p for p in problems), problems


def test_what_the_device_does_not_repeat_is_named_and_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = step_correctness.Measured(tmp_path, tmp_path, {"schemes": {}}, None, {}, {"reference": True, "int8": False})
    monkeypatch.setattr(step_correctness, "measured", lambda *_: found)
    monkeypatch.setattr(step_correctness, "predictions_differ", lambda *_: ["int8 logits differ by 1e-3"])
    monkeypatch.setattr(step_correctness, "site_differences", lambda *_: [("(0, 'block', 'output') mean", 1e-12)])
    monkeypatch.setattr(step_correctness, "kl_differences", lambda _: ["the mean KL divergence is off"])
    given = context(tmp_path)
    step_correctness.check_model(given, "llama")
    assert said(given, "problem") == ["llama: the mean KL divergence is off"]
    assert ["int8"] in said(given, "value")
    assert "but int8 logits differ by 1e-3" in said(given, "value")


@pytest.mark.parametrize(
    ("name", "own", "value", "off"),
    [
        ("mean", 1.0, 1.0, 0.0),
        ("mean", 1.01, 1.0, 0.01),
        ("median_abs", 1.03, 1.0, 0.0),
        ("median_abs", 1.05, 1.0, 0.05 - 1 / 32),
        ("range_bits", 5.0, 5.03, 0.0),
        ("range_bits", 5.0, 5.5, 0.5 - 0.044394),
        ("kurtosis", None, 3.0, float("inf")),
    ],
)
def test_how_far_a_figure_is_off(name: str, own: float | None, value: float, off: float) -> None:
    assert step_correctness.difference(name, own, value) == pytest.approx(off, abs=1e-6)


def test_tables_that_differ_are_named_by_their_columns(tmp_path: Path) -> None:
    for directory, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / directory / "tables").mkdir(parents=True)
        for table, rms in (("sites", value), ("heads", 1.0)):
            columns = pa.table({"layer": [0], "rms": [rms]})
            pq.write_table(columns, tmp_path / directory / "tables" / f"{table}.parquet")
    assert differing_tables(tmp_path / "a", tmp_path / "b") == ["sites (rms)"]
    assert differing_tables(tmp_path / "a", tmp_path / "a") == []


def test_busy_time_is_that_of_the_union() -> None:
    assert busy_seconds([]) == 0
    assert busy_seconds([(5, 7), (0, 2), (1, 3), (1, 2), (7, 8)]) == 6


def test_waits_are_counted_by_their_place() -> None:
    modes: list[str] = []

    def run() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("another one", UserWarning, stacklevel=1)

    found = count_waits(run, modes.append)
    assert modes == ["warn", "default"]
    assert found.total() == 3
    assert [place.split(":")[0] for place in found] == ["test_gpu_checks.py"]


def test_the_dearest_operations_come_first() -> None:
    operations = [
        SimpleNamespace(key=f"operation {n}", count=1, self_cpu_time_total=1000.0 * n, self_device_time_total=-1.0 * n)
        for n in range(12)
    ]
    assert [one["name"] for one in dearest(operations, on_cuda=False)][:2] == ["operation 11", "operation 10"]
    assert dearest(operations, on_cuda=True)[0]["name"] == "operation 0"
    assert dearest(operations, on_cuda=False)[0]["milliseconds"] == 11.0


class Pass:
    """A layer's pass in which the host waits twice for every batch, and three times besides."""

    def __init__(self, state: Any, _index: int, _layer: Any) -> None:
        self._times = 2 * len(state.measured) + 3

    def run(self) -> None:
        for _ in range(self._times):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)


def test_the_waits_of_a_batch_are_those_that_more_batches_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_watch, "LayerPass", Pass)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)
    decoder = SimpleNamespace(resident=lambda _: contextlib.nullcontext())
    small, large = (SimpleNamespace(measured=range(batches), schemes=()) for batches in (2, 4))
    given = Context("cuda:0", False, Path(), argparse.Namespace(), io.StringIO())
    with pytest.warns(UserWarning, match="synchronizing"):  # of the passes that compile
        device_watch.watch_host(given, decoder, small, large)  # type: ignore[arg-type]
    figure, detail = (json.loads(line) for line in given.out.getvalue().splitlines())  # type: ignore[attr-defined]
    assert (figure["value"], figure["at_most"], figure["met"]) == (2.0, 1, False)
    assert list(detail["value"].values()) == [2.0]


def test_on_cuda_the_devices_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Stamped with how many calls were made before; the nth call takes n milliseconds."""

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.calls = len(calls)

        def elapsed_time(self, after: "Event") -> float:
            assert after.calls == self.calls + 1
            return float(after.calls)

    calls: list[int] = []
    waits: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    taken = median_seconds([lambda n=n: calls.append(n) for n in range(3)], "cuda:0", rounds=5)
    assert calls == [0, 1, 0, 1, 2, 0, 1]  # two that compile, then in turn
    assert taken == pytest.approx(5e-3)
    assert waits == ["cuda:0", "cuda:0"]


def test_the_memory_that_is_allowed(tmp_path: Path) -> None:
    given = context(tmp_path)
    sizes = step_costs.SIZES["dry"]
    path, tokens = big_models.checkpoint(given, "8b"), big_models.random_tokens(given, "tokens", sizes.shape)
    request = step_correctness.request_of(path, tokens, sizes.shape, "cpu")
    decoder = open_decoder(path, "cpu", tmp_path / "scratch")
    elements = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64
    ports = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    layers = 2 * 2 * (elements + 2 * 64)
    copies = elements + elements / 2 + 2 * 4 * elements / 64
    outside = 2 * (2 * 512 * 64 + 64)
    batch = 2 * 2 * 2 * 32 * ports
    assert step_costs.memory_limit(decoder, request, sizes) == layers + copies + outside + batch


@pytest.mark.parametrize(
    ("device", "long", "goal"),
    [
        ("NVIDIA H200", True, 60.0),
        ("NVIDIA H200 NVL", True, 60.0),
        ("NVIDIA H200", False, None),
        ("NVIDIA H100 80GB HBM3", True, None),
        ("cpu", True, None),
    ],
)
def test_the_goal_in_seconds_is_set_for_the_long_run_on_an_h200(device: str, long: bool, goal: float | None) -> None:
    assert step_costs.goal_seconds(device, long=long) == goal


@pytest.mark.parametrize("sizes", step_costs.SIZES.values(), ids=step_costs.SIZES.keys())
def test_there_are_batches_enough_to_watch(sizes: step_costs.Sizes) -> None:
    assert sizes.shape[0] % sizes.batch == sizes.timed % sizes.batch == 0
    assert sizes.timed // sizes.batch >= (4 if sizes.shape[0] in (16, 32) else 2)


def test_a_checkpoint_is_made_once_whole_and_with_outliers(tmp_path: Path) -> None:
    given = context(tmp_path)
    path = big_models.checkpoint(given, "1b")
    written = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert big_models.checkpoint(given, "1b") == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == written
    model = AutoModelForCausalLM.from_pretrained(path)
    norm = model.model.layers[1].input_layernorm.weight
    assert norm[3] == 15
    assert norm[4] == 1
    assert model.model.embed_tokens.weight.abs().max() == 300
    for weight in (model.lm_head.weight, model.model.layers[2].mlp.up_proj.weight):
        assert weight.float().std().item() == pytest.approx(0.02, rel=0.05)


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_models.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Skip, match=r"has 0\.0 GB free, 0\.0 are needed; set --scratch"):
        big_models.checkpoint(context(tmp_path), "1b")
