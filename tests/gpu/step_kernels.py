"""Holds the Triton kernels against plain torch: a table of checks, a table of inputs.

What is no sum must be equal to the bit. A sum of n terms may be off by (n + 8) * 2^-53 of the sum of their
magnitudes, and so may plain torch's. In a dry run the kernels run in Triton's interpreter.

    N sequences of S tokens, d channels; T tokens
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from step_support import Context, Skip, run

import torch  # isort: skip - the path is in place now

THRESHOLD = 6.0
SPECIAL = (torch.nan, torch.inf, -torch.inf, -0.0, 1e-40, -1e-45, 2.0**-24, 65504.0, 65505.0, -70000.0, 6.0, -6.0)
"""What is easily treated wrongly: not finite, zero of either sign, subnormals, the edges of fp16 and of the limit."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = ((1, 1, 1), (3, 17, 5), (2, 130, 300), (1, 300, 513), (2, 2100, 64), (5, 1, 4097), (2, 2048, 4096))
DRY_SHAPES = ((1, 1, 1), (2, 11, 5), (1, 4, 300))
Tensors = Mapping[str, torch.Tensor]
LAYOUTS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as made": lambda x: x,
    "columns of a wider tensor": lambda x: torch.cat([x, x, x], dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "every other token": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "channels apart": lambda x: x.repeat_interleave(3, dim=2)[..., ::3],
}
"""Each holds the same values, with other strides."""


class Bound(NamedTuple):
    """How far a sum may be from another one of the same terms."""

    terms: int
    magnitudes: torch.Tensor
    """The sums of the terms' magnitudes."""


@dataclass(frozen=True)
class Check:
    """One kernel: what it makes of a tensor [N, S, d], and which of its figures are sums."""

    name: str
    figures: Callable[[Any, torch.Tensor], Tensors]
    """From the module that has it (`triton_kernels` or `plain`) and the tensor."""
    bounds: Callable[[torch.Tensor], Mapping[str, Bound]] = lambda _: {}


def reduction(module: Any, x: torch.Tensor) -> Tensors:
    """Return the figures of a reduction, the histogram among them."""
    from workers.measurement.statistics import plain

    figures: Tensors = module.reduce(x, plain.typical(x), THRESHOLD)._asdict()
    return figures


def power_magnitudes(x: torch.Tensor) -> Mapping[str, Bound]:
    """Return how large the terms of the power sums are."""
    from workers.measurement.statistics import plain

    v = torch.where(x.isfinite(), x.double() - plain.typical(x).double()[:, None], 0).abs()
    sums = torch.stack([(v**power).sum(dim=1) for power in (1, 2, 3, 4)], dim=1)
    return {"power_sums": Bound(x.shape[1], sums)}


def compared(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens [T, d], and what a scheme in bfloat16 might make of them."""
    y = x.flatten(0, 1)
    return y, (y.float() * 1.01).bfloat16()


def products(module: Any, x: torch.Tensor) -> Tensors:
    """Return the sums of every token's products, and its largest error."""
    found = module.token_products(*compared(x))
    return {"sums": found[:4], "peak": found[4]}


def product_magnitudes(x: torch.Tensor) -> Mapping[str, Bound]:
    """Return how large the terms of the token products are."""
    y, q = compared(x)
    present = y.isfinite() & q.isfinite()
    a, b = (torch.where(present, part.double(), 0) for part in (y, q))
    sums = torch.stack([(a * a).sum(1), (b * b).sum(1), (a * b).abs().sum(1), ((a - b) ** 2).sum(1)])
    return {"sums": Bound(x.shape[2], sums)}


CHECKS = (
    Check("reduction and histogram", reduction, power_magnitudes),
    Check("token products", products, product_magnitudes),
)
"""A kernel more is an entry more."""


def inputs(shapes: tuple[tuple[int, int, int], ...], device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors of every shape and type with special values among others, and small ones in every layout."""
    for number, shape in enumerate(shapes):
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(shape, generator=generator) * torch.exp(3 * torch.randn(shape, generator=generator))
            if x.numel() > 2 * len(SPECIAL):
                places = torch.randperm(x.numel(), generator=generator)[: len(SPECIAL)]
                x.view(-1)[places] = torch.tensor(SPECIAL)
                x[0, 0] = torch.nan  # a token without any finite value
            for layout, lay_out in LAYOUTS.items() if number == 1 else (("as made", LAYOUTS["as made"]),):
                yield f"{list(shape)} {dtype} {layout}", lay_out(x.to(dtype).to(device))


def faults(check: Check, module: Any, oracle: Any, x: torch.Tensor) -> tuple[list[str], float]:
    """Return which figures of a kernel differ from the oracle's, and the largest part of an allowance that was used."""
    found, wanted, bounds = check.figures(module, x), check.figures(oracle, x), check.bounds(x)
    differing, most = [], 0.0
    for name, expected in wanted.items():
        if name in bounds:
            allowed = 2 * (bounds[name].terms + 8) * 2.0**-53 * bounds[name].magnitudes
            used = ((found[name] - expected).abs() / allowed.clamp_min(torch.finfo(torch.float64).tiny)).max().item()
            most = max(most, used)
            if not used <= 1:
                differing.append(f"{name} is off by {used:.3g} of what is allowed")
        elif not same(found[name], expected):
            differing.append(f"{name} differs")
    return differing, most


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors hold the same, NaN in the same places."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def check_all(context: Context) -> None:
    """Hold every kernel against plain torch on every input."""
    if importlib.util.find_spec("triton") is None:
        raise Skip("triton is not installed, so plain torch runs in place of the kernels")
    from workers.measurement.statistics import plain, triton_kernels

    for check in CHECKS:
        most, tensors = 0.0, 0
        for described, x in inputs(DRY_SHAPES if context.dry else SHAPES, context.device):
            differing, used = faults(check, triton_kernels, plain, x)
            most, tensors = max(most, used), tensors + 1
            for fault in differing:
                context.problem(f"{check.name}, {described}: {fault}")
            context.figure(f"{check.name}: tensors compared", tensors)
            context.figure(f"{check.name}: used of the rounding that a sum may have", most, at_most=1.0)


if __name__ == "__main__":
    run(check_all)
