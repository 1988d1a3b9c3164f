"""Which device a measurement computes on, what the report says of it, and what is said when it is full."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import request_for, words

from service.contracts.request import MeasurementRequest
from workers.measurement import __main__ as main
from workers.measurement import preparation
from workers.measurement.errors import BadRequest, DeviceOutOfMemory
from workers.measurement.layers import advance
from workers.measurement.results.report import timing
from workers.measurement.runtime.device import card_name, choose_device, device_memory, device_name
from workers.measurement.runtime.memory import device_is_full, ran_out
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.workspace import identity_of

FULL = (
    "CUDA out of memory. Tried to allocate 1.95 GiB. GPU 1 has a total capacity of 14.57 GiB of which 1.58 GiB is free."
    " Process 2493055 has 12.02 GiB memory in use. Including non-PyTorch memory, this process has 966.00 MiB memory in "
    "use. Of the allocated memory 734.07 MiB is allocated by PyTorch, and 33.93 MiB is reserved by PyTorch but "
    "unallocated. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True "
    "to avoid fragmentation.  See documentation for Memory Management  "
    "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
HOST = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"
)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Two CUDA devices of different kinds, as far as torch tells; what was set on them is listed."""
    done: list[tuple[str, object]] = []

    def index(device: object) -> int:
        return 0 if device is None else torch.device(str(device)).index

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"Card {index(device)}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 1000 + index(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("current", device)))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: done.append(("reset", device)))
    return done


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_is_made_the_current_one(name: str, number: int, cards: list[Any]) -> None:
    device = torch.device("cuda", number)
    assert choose_device(name) == device
    assert cards == [("current", device), ("reset", device)]


def test_a_cpu_is_left_alone(cards: list[Any]) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert cards == []


def test_a_device_that_is_not_there_is_refused(cards: list[Any]) -> None:
    with pytest.raises(BadRequest, match="device: 'cuda:2' does not exist; this machine has 2 CUDA devices"):
        choose_device("cuda:2")
    assert cards == []


@pytest.mark.usefixtures("cards")
def test_the_card_that_is_measured_on_is_named_and_its_peak_told(tmp_path: Path) -> None:
    second, cpu = torch.device("cuda:1"), torch.device("cpu")
    assert device_name(second) == "cuda:1, Card 1"
    assert device_name(cpu).startswith("cpu (")
    reporter = ProgressReporter(out=io.StringIO())
    peaks = [timing(reporter, device).peak_memory_bytes.device for device in (second, torch.device("cuda:0"), cpu)]
    assert peaks == [1001, 1000, None]
    request = request_for(tmp_path, tmp_path)
    gpus = [identity_of(request, "sha256:0", card_name(device))["software"]["gpu"] for device in (second, cpu)]
    assert gpus == ["Card 1", None]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(FULL),
        RuntimeError(CUBLAS),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_full_device_is_told_by_its_libraries_words(error: RuntimeError) -> None:
    assert device_is_full(error)
    assert ran_out(error)
    with pytest.raises(DeviceOutOfMemory), device_memory(torch.device("cuda:1")):
        raise error


@pytest.mark.parametrize("error", [MemoryError("CUDA out of memory"), RuntimeError(HOST)])
def test_a_full_host_is_not_a_full_device(error: Exception) -> None:
    assert not device_is_full(error)
    assert ran_out(error)
    with pytest.raises(type(error), match=r"memory"), device_memory(torch.device("cuda:1")):
        raise error


def test_other_errors_are_no_lack_of_memory() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert not device_is_full(error)
    assert not ran_out(error)


NEEDED = "cuda:1 ran out of memory: tried to allocate 1.95 GiB with 1.58 GiB of 14.57 GiB free"
OTHER = "use a device with more free memory"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (8, 2048),
            f"{NEEDED}, at 8 sequences of 2048 tokens in a batch; set batch_sequences to 4 or less, or a shorter "
            f"sequence_length, or {OTHER}",
        ),
        ((1, 4096), f"{NEEDED}, at 1 sequence of 4096 tokens in a batch; set a shorter sequence_length, or {OTHER}"),
        (None, f"{NEEDED}; {OTHER}"),
    ],
)
def test_what_was_needed_and_what_to_set_is_said(batch: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(DeviceOutOfMemory) as raised, device_memory(torch.device("cuda:1"), batch):
        raise torch.OutOfMemoryError(FULL)
    assert str(raised.value) == message
    assert raised.value.batch_sequences == (batch[0] if batch else None)


def test_a_library_that_tells_no_sizes_is_quoted() -> None:
    with pytest.raises(DeviceOutOfMemory) as raised, device_memory(torch.device("cuda:0"), (2, 16)):
        raise RuntimeError(CUBLAS)
    assert str(raised.value).startswith(f"cuda:0 ran out of memory: {CUBLAS}, at 2 sequences of 16 tokens in a batch; ")


Run = Callable[[MeasurementRequest], tuple[int, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program; returns its exit status and its last line."""

    def run_program(request: MeasurementRequest) -> tuple[int, dict[str, Any]]:
        told = io.StringIO()
        monkeypatch.setattr(main, "_private_stdout", lambda: told)
        (tmp_path / "request.json").write_text(request.model_dump_json())
        status = main.main([str(tmp_path / "request.json"), str(tmp_path / "out")])
        return status, json.loads(told.getvalue().splitlines()[-1])

    return run_program


@pytest.mark.parametrize("schemes", [[], ["int8", "nf4"]])
def test_half_the_batch_fits_where_the_whole_does_not(
    run: Run, checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path, monkeypatch: Any, schemes: list[str]
) -> None:
    run_layer = advance.run_layer

    def in_small_memory(module: Any, hidden: torch.Tensor, arguments: Any) -> torch.Tensor:
        if len(hidden) > 2:
            raise torch.OutOfMemoryError(FULL)
        return run_layer(module, hidden, arguments)

    monkeypatch.setattr(advance, "run_layer", in_small_memory)
    request = request_for(checkpoints["llama"], calibration_text, schemes=schemes)
    status, last = run(request)
    assert (status, last["kind"], last["code"], last["bad_input"]) == (1, "failed", "device-out-of-memory", False)
    assert last["batch_sequences"] == request.sequences == 5
    assert "at 5 sequences of 48 tokens in a batch; set batch_sequences to 2 or less" in last["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["request.json"]
    status, last = run(request.model_copy(update={"batch_sequences": last["batch_sequences"] // 2}))
    assert (status, last["kind"]) == (0, "finished")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["calibration"]["batch_sequences"], report["analysis"]["batch_sequences"]) == (2, 2)
    assert report["timing"]["peak_memory_bytes"]["device"] is None


def test_a_device_that_is_full_while_the_model_is_loaded_knows_no_batch(
    run: Run, checkpoints: dict[str, Path], calibration_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(preparation, "load_decoder", full)
    status, last = run(request_for(checkpoints["llama"], calibration_text))
    assert (status, last["code"], last["batch_sequences"]) == (1, "device-out-of-memory", None)
    assert last["message"].endswith(f"of 14.57 GiB free; {OTHER}")


def test_a_host_that_is_full_is_told_apart(
    run: Run, checkpoints: dict[str, Path], calibration_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(HOST)

    monkeypatch.setattr(advance, "run_layer", full)
    status, last = run(request_for(checkpoints["llama"], calibration_text))
    assert (status, last["code"], last["batch_sequences"]) == (1, "out-of-memory", None)


def test_labelled_prompts_keep_to_the_batch_that_was_asked_for(
    run: Run, checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"prompt": words(3 + i % 3, seed=i), "label": bool(i % 2)} for i in range(24)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sizes: list[int] = []
    run_layer = advance.run_layer

    def watched(module: Any, hidden: torch.Tensor, arguments: Any) -> torch.Tensor:
        sizes.append(hidden.shape[0] * hidden.shape[1])
        return run_layer(module, hidden, arguments)

    monkeypatch.setattr(advance, "run_layer", watched)
    settings = {"schemes": [], "sequences": 3, "sequence_length": 8, "batch_sequences": 2}
    asked = request_for(checkpoints["llama"], calibration_text, **settings).model_dump(mode="json")
    labelled = {"path": str(tmp_path / "labelled.jsonl")}
    status, last = run(MeasurementRequest.model_validate(asked | {"labelled": labelled}))
    assert (status, last["kind"]) == (0, "finished")
    assert max(sizes) == 16
