"""The kernels of CUDA where there is no GPU: the C++ sources run on the host, Triton's in its interpreter, and Triton's
are compiled for real devices.

x [N, S, d] with N sequences, S tokens each, d channels; logits [n, V]
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_cuda import COMPILER, build, launcher
from interpreted_triton import Call, call_interpreted
from test_kernels import DTYPES, SHAPES, check_products, check_reduction, random_tensor
from test_reaching import check_channel_products, check_limits
from tiny_models import request_for

import workers.measurement.__main__ as program
from service.contracts.schemes import SCHEMES
from workers.measurement.layers.copies import quantize_projection as kernels
from workers.measurement.results.report_warnings import warn_replaced
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.statistics import backends, plain
from workers.measurement.statistics.cuda import channels, histogram, hits, nvrtc, reduction
from workers.measurement.statistics.kernel_check import run_trials, trials
from workers.measurement.statistics.reduction import SHIFT, Reduction

SMALL = [shape for shape in SHAPES if shape != (1, 2500, 7)]


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Launch the kernels of the C++ sources on the host."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH")
    launch = launcher(build(tmp_path_factory.mktemp("kernels")))
    with pytest.MonkeyPatch.context() as patch:
        for module in (reduction, histogram, hits, channels):
            patch.setattr(module, "launch", launch)
        yield


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_reduction(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = random_tensor(shape, dtype)
    pivot = reduction.pivots(x)
    assert torch.equal(pivot, plain.pivots(x))
    check_reduction(reduction.reduce(x, pivot, 6.0), x, 6.0)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_reduction_of_strided_rows(dtype: torch.dtype) -> None:
    whole = random_tensor((3, 140, 90), dtype)
    for x in (whole[:, ::2, 5:72], whole[1:, :, 1::3], whole.transpose(0, 1)):
        check_reduction(reduction.reduce(x, reduction.pivots(x), 6.0), x, 6.0)


@pytest.mark.usefixtures("on_host")
def test_no_counter_of_a_block_overflows() -> None:
    x = torch.full((1, 3 * nvrtc.RANGE_TOKENS, nvrtc.CHANNELS + 1), 1.5)
    counts = reduction.reduce(x, reduction.pivots(x), 6.0).histogram
    assert counts.sum() == counts.max() == x.numel()
    assert torch.equal(counts, histogram.histogram(x[0]))


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_histograms_and_the_values_of_a_bin(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = random_tensor(shape, dtype).flatten(0, 1)
    assert torch.equal(histogram.histogram(x), plain.histogram(x))
    magnitudes = x.float().abs()
    for number in set((magnitudes[magnitudes.isfinite()].view(torch.int32) >> SHIFT).tolist()[:7]):
        wanted = magnitudes[magnitudes.view(torch.int32) >> SHIFT == number].sort().values
        found = histogram.magnitudes_in_bin(lambda: iter(x.split(100)), number, len(wanted))
        assert torch.equal(found.sort().values, wanted)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("low", "high"), [(2.5, 6.0), (0.0, 0.0), (torch.inf, torch.inf)])
@pytest.mark.parametrize("tokens", [1, 31, 300])
def test_hits(tokens: int, low: float, high: float, dtype: torch.dtype) -> None:
    x = random_tensor((1, tokens, 40), dtype)[0]
    limits = torch.where(torch.arange(tokens) % 3 == 1, low, high)
    for chosen in (x, x.repeat_interleave(2, dim=0)[::2]):
        reached = chosen.float().isfinite() & (chosen.float().abs() >= limits[:, None])
        dimensions = reached.any(dim=0).nonzero().flatten() if low < torch.inf else torch.arange(0, 40, 3)
        assert tokens == 1 or len(dimensions) > (3 if low else 32)
        positions, peaks, keys = hits.note_hits(chosen, dimensions, int(reached.sum()), limits, 20)
        columns = chosen.float()[:, dimensions].numpy()
        assert (positions.numpy() == np.packbits(reached[:, dimensions].numpy().T, axis=1)).all()
        assert (peaks.numpy() == np.where(reached[:, dimensions], np.abs(columns), 0).max(axis=0)).all()
        patterns, where = columns.view(np.uint32) >> np.uint32(12), reached.numpy()
        wanted = [(j << 20) + patterns[where[:, j], k].astype(np.int64) for k, j in enumerate(dimensions.tolist())]
        assert (np.sort(keys.numpy()) == np.sort(np.concatenate([np.empty(0, np.int64), *wanted]))).all()
        plainly = plain.note_hits(chosen, dimensions, int(reached.sum()), limits, 20)
        assert torch.equal(plainly[0], positions)
        assert torch.equal(plainly[1], peaks)
        assert torch.equal(plainly[2].sort().values, keys.sort().values)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_limits_of_tokens_and_what_reaches_them(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for x in (random_tensor(shape, dtype), random_tensor(shape, dtype).repeat(1, 2, 2)[:, ::2, 1:]):
        check_limits(hits, x, 1.5)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_channels(dtype: torch.dtype) -> None:
    for y, q in pairs(dtype):
        check_channel_products(channels.channel_products(y, q), y, q)
    y = random_tensor((1, 300, 40), dtype)[0]
    check_channel_products(channels.channel_products(y, y.flip(0)), y, y.flip(0))


def pairs(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors whose products are taken, [T, d] each: of one type and of two, whole and strided."""
    found = []
    for shape in ((1, 1, 1), (1, 5, 33), (1, 3, 1500)):
        y = random_tensor(shape, dtype)[0]
        found += [(y, random_tensor(shape, torch.bfloat16, seed=3)[0]), (y, y * 1.01)]
    wide = random_tensor((1, 6, 50), dtype)[0]
    return [*found, (wide[::2, 3:40], wide[1::2, 5:42])]


def unusual_logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two models' logits, [9, 5003], and next tokens: with NaN, infinities, ties and tokens that are ruled out."""
    generator = torch.Generator().manual_seed(0)
    p = 4 * torch.randn(9, 5003, generator=generator)
    q = p + 0.3 * torch.randn(9, 5003, generator=generator)
    p[0, 7], p[1, 7], q[2, 9] = torch.nan, torch.inf, torch.nan
    p[3, :4100] = q[3, :4100] = -torch.inf  # whole blocks
    q[4, 5] = -torch.inf  # a token that the reference has and the scheme rules out
    p[5] = 0
    p[5, 100] = p[5, 200] = 3
    p[6], q[7] = -60000, 60000
    p[8] = q[8]
    return p.to(dtype), q.to(dtype), torch.arange(9)


def check_divergence(score: torch.Tensor, comparison: torch.Tensor, dtype: torch.dtype, tolerance: float) -> None:
    """Hold the figures of `unusual_logits` against float64 by torch."""
    p, q, next_ids = unusual_logits(dtype)
    log_p, log_q = (torch.log_softmax(logits.double(), dim=-1) for logits in (p, q))
    terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
    for figures, logits, log_softmax in ((score, p, log_p), (comparison, q, log_q)):
        known = ~log_softmax.isnan().any(dim=1)
        assert figures[0].isnan().tolist() == (~known).tolist()
        own = log_softmax[torch.arange(9), next_ids]
        finite = known & own.isfinite()
        assert (figures[0] - figures[2] + own)[finite].abs().max() <= tolerance
        assert figures[1][known].tolist() == logits.double().max(dim=-1).indices[known].tolist()
        assert (figures[1][~known] == -1).all()
        assert torch.equal(figures[2].nan_to_num(9.0), logits.double()[torch.arange(9), next_ids].nan_to_num(9.0))
    kl = terms.sum(dim=-1)
    finite = kl.isfinite()
    assert comparison[3].isfinite().tolist() == finite.tolist()
    assert finite.tolist() == [False, False, False, True, False, True, True, True, True]
    assert (comparison[3] - kl)[finite].abs().max() <= tolerance
    assert comparison[3][8].abs() <= tolerance


def spread_logits(dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A model's logits, those of a scheme near it, of one that is broken, and of one that rules out what is likely."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = 9000
    p = scale * torch.randn(8, vocabulary, generator=generator)
    p[4:, 5:] -= 100  # five tokens have all the probability
    q = p + 0.1 * scale * torch.randn(8, vocabulary, generator=generator)
    q[2:4] = scale * torch.randn(2, vocabulary, generator=generator)
    q[4:6, 0] += 60
    q[6:, 100] += 140
    p[7, 3000:6000] = -torch.inf
    return p.to(dtype), q.to(dtype), torch.arange(8)


def float64_figures(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp of both models' logits and KL(p || q) in nats by torch, [3, n]."""
    p, q = p.double(), q.double()
    log_p, log_q = p.log_softmax(dim=-1), q.log_softmax(dim=-1)
    kl = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(dim=-1)
    return torch.stack([p.logsumexp(dim=-1), q.logsumexp(dim=-1), kl])


def test_divergence_is_exact_however_far_two_models_are_apart(tmp_path: Path) -> None:
    logits = [spread_logits(dtype, scale) for dtype in DTYPES for scale in (1.0, 10.0, 40.0)]
    known = [float64_figures(p, q) for p, q, _ in logits]
    calls: list[Call] = []
    for (p, q, next_ids), exact in zip(logits, known, strict=True):
        calls.append(("divergence", "score_logits", (p, next_ids)))
        calls.append(("divergence", "compare_logits", (p, exact[0], q, next_ids)))
    answers = iter(call_interpreted(calls, tmp_path))
    for exact in known:
        assert exact[2].max() > 30
        score, comparison = next(answers), next(answers)
        assert (torch.stack([score[0], comparison[0], comparison[3]]) - exact).abs().max() <= 1e-9
    for (p, q, next_ids), exact in zip(logits, known, strict=True):
        assert (backends.compare_logits(p, exact[0], q, next_ids)[3] - exact[2]).abs().max() <= 1e-9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_divergence_in_host_memory(dtype: torch.dtype) -> None:
    p, q, next_ids = unusual_logits(dtype)
    for module in (backends, plain):
        score = module.score_logits(p, next_ids)
        check_divergence(score, module.compare_logits(p, score[0], q, next_ids), dtype, tolerance=1e-9)


def test_products_and_divergence_as_triton_interprets_them(tmp_path: Path) -> None:
    of_products = [pair for dtype in DTYPES for pair in pairs(dtype)]
    of_logits = [unusual_logits(dtype) for dtype in DTYPES]
    scores = [backends.score_logits(p, next_ids) for p, _, next_ids in of_logits]
    calls: list[Call] = [("products", "token_products", pair) for pair in of_products]
    calls += [("divergence", "score_logits", (p, next_ids)) for p, _, next_ids in of_logits]
    calls += [
        ("divergence", "compare_logits", (p, score[0], q, next_ids))
        for (p, q, next_ids), score in zip(of_logits, scores, strict=True)
    ]
    answers = iter(call_interpreted(calls, tmp_path))
    for y, q in of_products:
        check_products(next(answers), y, q)
    scored = [next(answers) for _ in DTYPES]
    for dtype, score in zip(DTYPES, scored, strict=True):
        check_divergence(score, next(answers), dtype, tolerance=1e-9)
    assert next(answers, None) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_the_sources_compile_for_a_device(capability: tuple[int, int], dtype: torch.dtype) -> None:
    machine_code = nvrtc.compile_source(nvrtc.source(), dtype, capability)
    assert machine_code.startswith(b"\x7fELF")
    for kernel in re.findall(r"__global__ void (\w+)\(", nvrtc.source()):
        assert f".text.{kernel}\0".encode() in machine_code
    with pytest.raises(nvrtc.KernelFailed, match='"missing" is undefined'):
        nvrtc.compile_source("__device__ int x() { return missing; }", dtype, capability)


@pytest.mark.parametrize("capability", [80, 90])
def test_triton_compiles_its_kernels_for_a_device(capability: int) -> None:
    program = Path(__file__).with_name("compiled_triton.py")
    command = [sys.executable, str(program), str(capability)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, cwd=program.parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_products", "_score", "_compare"]


@pytest.fixture
def nothing_replaced() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_replaced", {})
        yield


CUDA = torch.device("cuda")


@pytest.mark.usefixtures("on_host", "nothing_replaced")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_that_cannot_be_launched_are_replaced_and_named(dtype: torch.dtype) -> None:
    calls = trials(torch.device("cpu"), dtype)
    assert {trial.kernel for trial in calls} == backends.CUDA_KERNELS.keys()
    run_trials(calls, CUDA)
    triton_kernels = {"token_products", "score_logits", "compare_logits"}  # those here need a driver
    assert backends.replaced().keys() == triton_kernels
    assert all(why.count(": ") for why in backends.replaced().values())
    y, q = calls[4].arguments
    check_products(backends.on_device("token_products", CUDA, y, q), y, q)


@pytest.mark.usefixtures("on_host", "nothing_replaced")
@pytest.mark.parametrize("field", Reduction._fields)
def test_a_kernel_that_gives_other_figures_is_replaced(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reduction.reduce

    def wrong(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction:
        found = right(x, pivot, threshold)
        figures = getattr(found, field).clone()
        if figures.is_floating_point():
            figures *= 1 + (1e-9 if figures.dtype == torch.float64 else 1e-6)
        else:
            figures.view(-1)[0] += 1
        return found._replace(**{field: figures})

    monkeypatch.setattr(reduction, "reduce", wrong)
    x = random_tensor((2, 60, 7), torch.bfloat16)
    run_trials(trials(torch.device("cpu"), torch.float32), CUDA)
    assert backends.replaced()["reduce"] == "it gives other figures than plain torch"
    check_reduction(backends.on_device("reduce", CUDA, x, plain.pivots(x), 6.0), x, 6.0)


@pytest.mark.usefixtures("nothing_replaced")
@pytest.mark.parametrize("kernel", ["score_logits", "compare_logits"])
@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_a_wrong_divergence_is_seen(kernel: str, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "score_logits" and row == 3:
        row = -1

    def wrong(*arguments: torch.Tensor) -> torch.Tensor:
        figures = getattr(plain, kernel)(*arguments).clone()
        figures[row, 5:] *= 1 + 1e-8
        return figures

    from workers.measurement.statistics.cuda import divergence

    monkeypatch.setattr(divergence, kernel, wrong)
    run_trials([trial for trial in trials(torch.device("cpu"), torch.bfloat16) if trial.kernel == kernel], CUDA)
    assert backends.replaced() == {kernel: "it gives other figures than plain torch"}


@pytest.mark.usefixtures("nothing_replaced")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_failure_of_the_device_says_nothing_of_a_projection(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(kernels, "KERNELS", dict.fromkeys(kernels.KERNELS, broken))
    with pytest.raises(error):
        kernels.quantize_projection(torch.nn.Linear(8, 8), SCHEMES["int8"])


@pytest.mark.usefixtures("nothing_replaced")
def test_a_report_names_the_kernels_that_were_replaced() -> None:
    reporter = ProgressReporter(out=io.StringIO())
    warn_replaced(reporter)
    assert reporter.warnings == []
    backends.replace_kernel("reduce", "KernelFailed: no such architecture")
    warn_replaced(reporter)
    (warning,) = reporter.warnings
    assert (warning.code, warning.where) == ("kernel-replaced", "reduce")
    assert "KernelFailed: no such architecture" in warning.message


@pytest.mark.usefixtures("nothing_replaced")
def test_no_memory_left_is_no_reason_to_replace_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(reduction, "pivots", full)
    with pytest.raises(torch.OutOfMemoryError):
        backends.on_device("pivots", CUDA, torch.zeros(1, 2, 3))
    assert backends.replaced() == {}


@pytest.mark.usefixtures("nothing_replaced")
def test_where_the_device_fails_the_measurement_begins_anew_without_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = request_for(tmp_path, tmp_path / "text")
    (tmp_path / "request.json").write_text(request.model_dump_json())
    arguments = [str(tmp_path / "request.json"), str(tmp_path / "out")]
    begun: list[tuple[list[str], str]] = []

    class Replaced(BaseException):
        """The process has become another."""

    def broken(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def become(_: str, command: list[str], environment: dict[str, str]) -> None:
        begun.append((command, environment[program._WITHOUT_KERNELS]))
        raise Replaced

    monkeypatch.setattr(program, "measure", broken)
    monkeypatch.setattr(program, "_private_stdout", lambda: sys.__stdout__)
    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(Replaced):
        program.main(arguments)
    why = "CUDA error: an illegal memory access was encountered"
    assert begun == [([sys.executable, "-m", "workers.measurement", *arguments], why)]
    monkeypatch.setenv(program._WITHOUT_KERNELS, why)
    assert program.main(arguments) == 1  # a second time it is not the kernels
    assert backends.replaced() == dict.fromkeys(backends.CUDA_KERNELS, why)
    assert "illegal memory access" in capfd.readouterr().out.splitlines()[-1]
