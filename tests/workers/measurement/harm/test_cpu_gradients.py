"""Gradients through linear modules and attention on a CPU, in float32 where it has no instructions for their type."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from workers.measurement.harm.gradients import cpu_gradients
from workers.measurement.harm.gradients.cpu_gradients import fast_gradients, multiplies_fast

CPU = torch.device("cpu")


def gradient(module: nn.Module, x: torch.Tensor, at_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    return output, torch.autograd.grad(output, leaf, at_output)[0]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_gradients, "multiplies_fast", lambda dtype: dtype == torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("slow")
def test_gradients_are_the_float64_ones_rounded_once(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(96, 200, bias=bias).to(dtype).requires_grad_(False)
    x, at_output = torch.randn(2, 7, 96).to(dtype), torch.randn(2, 7, 200).to(dtype)
    with fast_gradients(dtype, CPU):
        output, found = gradient(module, x, at_output)
    assert torch.equal(output, module(x))
    assert found.dtype == dtype
    exact = at_output.double() @ module.weight.double()
    # Half a unit in the last place, and what float32 sums are off by.
    unit = torch.finfo(dtype).eps * exact.abs() / 2
    assert ((found.double() - exact).abs() <= unit + 1e-5 * exact.abs().max()).all()


@pytest.mark.usefixtures("slow")
def test_gradients_go_through_several_modules() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)).bfloat16()
    x, at_output = torch.randn(5, 64).bfloat16(), torch.randn(5, 64).bfloat16()
    with fast_gradients(torch.bfloat16, CPU):
        output, found = gradient(module, x, at_output)
    _, expected = gradient(module.float(), x.float(), at_output.float())
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()
    assert type(output.grad_fn).__name__ == "_LinearBackward"  # its own, not torch's


def test_float32_is_left_as_it_is() -> None:
    assert multiplies_fast(torch.float32)
    module, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(3, 8)
    plain = gradient(module, x, torch.ones(3, 8))
    with fast_gradients(torch.float32, CPU):
        assert torch.equal(gradient(module, x, torch.ones(3, 8))[1], plain[1])


HEADS, TOKENS, WIDTH = 6, 33, 16


def heads(dtype: torch.dtype, of_keys: int, sequences: int = 1) -> list[torch.Tensor]:
    """Queries, keys and values that follow from a seed."""
    torch.manual_seed(1)
    return [torch.randn(sequences, count, TOKENS, WIDTH).to(dtype) for count in (HEADS, of_keys, of_keys)]


def attention_gradients(
    inputs: list[torch.Tensor], options: dict[str, Any]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    leaves = [one.clone().requires_grad_() for one in inputs]
    output = functional.scaled_dot_product_attention(*leaves, **options)
    torch.manual_seed(2)
    return output, torch.autograd.grad(output, leaves, torch.randn(output.shape).to(output.dtype))


def mask_of(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """A causal mask, as models hand it on."""
    if kind == "causal":
        return {"is_causal": True}
    before = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    added = torch.zeros(TOKENS, TOKENS, dtype=dtype).masked_fill(~before, torch.finfo(dtype).min)
    return {"attn_mask": before if kind == "bool" else added}


@pytest.mark.parametrize("mask", ["causal", "bool", "added"])
@pytest.mark.parametrize("of_keys", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("slow")
def test_gradients_of_attention_are_near_the_float64_ones(dtype: torch.dtype, of_keys: int, mask: str) -> None:
    inputs, options = heads(dtype, of_keys), {**mask_of(mask, dtype), "enable_gqa": True, "scale": 0.3}
    with fast_gradients(dtype, CPU):
        output, found = attention_gradients(inputs, options)
    assert torch.equal(output, functional.scaled_dot_product_attention(*inputs, **options))
    wide = {**options, **mask_of(mask, torch.float64)}
    _, exact = attention_gradients([one.double() for one in inputs], wide)
    _, plain = attention_gradients(inputs, options)
    for own, right, usual in zip(found, exact, plain, strict=True):
        assert own.dtype == dtype
        error, usual_error = ((one.double() - right).norm() / right.norm() for one in (own, usual))
        assert error <= torch.finfo(dtype).eps
        assert error <= usual_error


class KeyHeads(TorchFunctionMode):
    """Notes how many heads the keys of attention have."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function is functional.scaled_dot_product_attention:
            self.seen.append(arguments[1].shape[-3])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize("of_keys", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keys_of_few_heads_are_repeated(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, of_keys: int, sequences: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu_gradients, "multiplies_fast", lambda _: True)
    inputs, options = heads(dtype, of_keys, sequences), {"is_causal": True, "enable_gqa": True}
    plain, expected = attention_gradients(inputs, options)
    with KeyHeads() as heads_of_keys, fast_gradients(dtype, CPU):
        output, found = attention_gradients(inputs, options)
    assert heads_of_keys.seen == [HEADS if sequences * of_keys < 3 else of_keys]
    assert torch.equal(output, plain)
    for own, usual in zip(found, expected, strict=True):
        assert own.shape == usual.shape
        assert (own - usual).norm() <= 2 * torch.finfo(dtype).eps * usual.norm()
