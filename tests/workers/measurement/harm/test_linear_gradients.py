"""Gradients through linear modules in float32 where the processor has no instructions for their type."""

import pytest
import torch
from torch import nn

from workers.measurement.harm.gradients import linear_gradients
from workers.measurement.harm.gradients.linear_gradients import fast_linear_gradients, multiplies_fast

CPU = torch.device("cpu")


def gradient(module: nn.Module, x: torch.Tensor, at_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    return output, torch.autograd.grad(output, leaf, at_output)[0]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_gradients, "multiplies_fast", lambda dtype: dtype == torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("slow")
def test_gradients_are_the_float64_ones_rounded_once(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(96, 200, bias=bias).to(dtype).requires_grad_(False)
    x, at_output = torch.randn(2, 7, 96).to(dtype), torch.randn(2, 7, 200).to(dtype)
    with fast_linear_gradients(dtype, CPU):
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
    with fast_linear_gradients(torch.bfloat16, CPU):
        _, found = gradient(module, x, at_output)
    _, expected = gradient(module.float(), x.float(), at_output.float())
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()
    # It is not what torch gives in bf16.
    assert not torch.equal(found, gradient(module.bfloat16(), x, at_output)[1])


def test_float32_is_left_as_it_is() -> None:
    assert multiplies_fast(torch.float32)
    module, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(3, 8)
    plain = gradient(module, x, torch.ones(3, 8))
    with fast_linear_gradients(torch.float32, CPU):
        assert torch.equal(gradient(module, x, torch.ones(3, 8))[1], plain[1])
