"""Holds the CUDA kernels against plain torch: a table of checks, a table of inputs.

What is no sum must be equal to the bit. A sum of n terms may be off by (n + 8) * 2^-53 of the sum of their
magnitudes, and so may plain torch's; what stands on sums of exponentials, by 1e-9 nats. In a dry run Triton's kernels
run in its interpreter, and the C++ sources on the host, where there is a compiler.

    N sequences of S tokens, d channels; T tokens
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

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


@dataclass(frozen=True)
class Check:
    """What kernels make of a tensor [N, S, d], and how far which of their figures may be from plain torch's."""

    name: str
    kernels: tuple[str, ...]
    """As `backends.CUDA_KERNELS` calls them."""
    figures: Callable[[Any, torch.Tensor], Tensors]
    """From what has the kernels, or `plain`, and the tensor."""
    allowed: Callable[[torch.Tensor], Tensors] = lambda _: {}
    """From the tensor; figures that are not named must be the same."""


def rounding(terms: int, magnitudes: torch.Tensor) -> torch.Tensor:
    """Return how far two sums of the same terms may be apart; magnitudes: the sums of the terms'."""
    return 2 * (terms + 8) * 2.0**-53 * magnitudes


def reduction(module: Any, x: torch.Tensor) -> Tensors:
    """Return the figures of a reduction, the histogram among them."""
    from workers.measurement.statistics import plain

    figures: Tensors = module.reduce(x, plain.pivots(x), THRESHOLD)._asdict()
    return figures


def power_rounding(x: torch.Tensor) -> Tensors:
    """Return how far power sums may be apart."""
    from workers.measurement.statistics import plain

    v = torch.where(x.isfinite(), x.double() - plain.pivots(x).double()[:, None], 0).abs()
    sums = torch.stack([(v**power).sum(dim=1) for power in (1, 2, 3, 4)], dim=1)
    return {"power_sums": rounding(x.shape[1], sums)}


def compared(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens [T, d], and what a scheme in bfloat16 might make of them."""
    y = x.flatten(0, 1)
    return y, (y.float() * 1.01).bfloat16()


def products(module: Any, x: torch.Tensor) -> Tensors:
    """Return the sums of every token's products, and its largest error."""
    found = module.token_products(*compared(x))
    return {"sums": found[:4], "peak": found[4]}


def product_rounding(x: torch.Tensor) -> Tensors:
    """Return how far the sums of token products may be apart."""
    y, q = compared(x)
    present = y.isfinite() & q.isfinite()
    a, b = (torch.where(present, part.double(), 0) for part in (y, q))
    sums = torch.stack([(a * a).sum(1), (b * b).sum(1), (a * b).abs().sum(1), ((a - b) ** 2).sum(1)])
    return {"sums": rounding(x.shape[2], sums)}


def counts(module: Any, x: torch.Tensor) -> Tensors:
    """Return a histogram, and the magnitudes that lie in the bin of one of the values, sorted."""
    from workers.measurement.statistics.reduction import SHIFT

    tokens = x.flatten(0, 1)
    bins = tokens.float().abs().contiguous().view(torch.int32) >> SHIFT
    number = int(bins[-1, -1])
    inside = module.magnitudes_in_bin(lambda: iter(tokens.split(7)), number, int((bins == number).sum()))
    return {"histogram": module.histogram(tokens), "in a bin": inside.sort().values}


def reaching(module: Any, x: torch.Tensor) -> Tensors:
    """Return the limits of tokens, and how many values of each channel reach them."""
    from workers.measurement.statistics import plain

    limits = plain.token_limits(x, 1.5)
    return {"limits": module.token_limits(x, 1.5), "counts": module.count_reaching(x, limits)}


def channel_sums(module: Any, x: torch.Tensor) -> Tensors:
    """Return the sums of every channel's products."""
    return {"sums": module.channel_products(*compared(x))}


def channel_rounding(x: torch.Tensor) -> Tensors:
    """Return how far the sums of channel products may be apart."""
    y, q = compared(x)
    present = y.isfinite() & q.isfinite()
    a, b = (torch.where(present, part.double(), 0) for part in (y, q))
    return {"sums": rounding(len(y), torch.stack([(a * a).sum(0), ((a - b) ** 2).sum(0)]))}


def hits(module: Any, x: torch.Tensor) -> Tensors:
    """Return where values reach the threshold, and where they reach a limit that all do which are finite."""
    tokens, figures = x.flatten(0, 1), {}
    for which, limit in (("few", THRESHOLD), ("all", 0.0)):
        limits = torch.full((len(tokens),), limit, device=x.device)
        reached = tokens.isfinite() & (tokens.float().abs() >= limit)
        dimensions = reached.any(dim=0).nonzero().flatten()
        if len(dimensions):
            positions, peaks, keys = module.note_hits(tokens, dimensions, int(reached.sum()), limits, 20)
            noted = {"positions": positions, "peaks": peaks, "keys": keys.sort().values}
            figures |= {f"{name} of {which}": figure for name, figure in noted.items()}
    return figures


def divergence(module: Any, x: torch.Tensor) -> Tensors:
    """Return what is said of two models' logits, the second near the first; NaN is among them."""
    from workers.measurement.statistics import plain

    p = x.flatten(0, 1).clamp(-30, 30)
    q = p + (0.3 * torch.arange(p.shape[1], device=p.device).sin()).to(p.dtype)
    next_ids = torch.arange(len(p), device=p.device) % p.shape[1]
    known = plain.score_logits(p, next_ids)[0]
    scored, held = module.score_logits(p, next_ids), module.compare_logits(p, known, q, next_ids)
    exact = torch.stack([scored[1], scored[2], held[1], held[2]])
    return {"exact": exact, "log-sum-exp": torch.stack([scored[0], held[0]]), "divergence": held[3]}


def exponentials(x: torch.Tensor) -> Tensors:
    """Return how far what stands on sums of exponentials may be apart, in nats."""
    nats = torch.tensor(1e-9, dtype=torch.float64, device=x.device)
    return {"log-sum-exp": nats, "divergence": nats}


CHECKS = (
    Check("reduction", ("reduce",), reduction, power_rounding),
    Check("pivots", ("pivots",), lambda module, x: {"values": module.pivots(x)}),
    Check("histogram", ("histogram", "magnitudes_in_bin"), counts),
    Check("limits of tokens", ("token_limits", "count_reaching"), reaching),
    Check("hits", ("note_hits",), hits),
    Check("channel products", ("channel_products",), channel_sums, channel_rounding),
    Check("token products", ("token_products",), products, product_rounding),
    Check("divergence", ("score_logits", "compare_logits"), divergence, exponentials),
)
"""A kernel more is an entry more."""
EMULATED = ("reduction", "histogram", "hits", "channels")
"""Modules whose kernels are C++."""


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


def faults(check: Check, kernels: Any, plain: Any, x: torch.Tensor) -> tuple[list[str], float]:
    """Return which figures differ from those of plain torch, and the largest part of an allowance that was used."""
    found, wanted, allowed = check.figures(kernels, x), check.figures(plain, x), check.allowed(x)
    differing, most = [], 0.0
    for name, expected in wanted.items():
        if name not in allowed:
            differing += [] if same(found[name], expected).all() else [f"{name} differs"]
            continue
        apart = torch.where(same(found[name], expected), 0, (found[name] - expected).abs())
        used = (apart / allowed[name].clamp_min(torch.finfo(torch.float64).tiny)).max().item()
        most = max(most, used)
        if not used <= 1:
            differing.append(f"{name} is off by {used:.3g} of what is allowed")
    return differing, most


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Tell where two tensors hold the same, NaN in the same places; nowhere if they are not of one form."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return torch.zeros(1, dtype=torch.bool, device=b.device)
    return (a == b) | (a.isnan() & b.isnan())


def load_kernels(context: Context) -> SimpleNamespace:
    """Return the kernels that can run here, by the names of `backends.CUDA_KERNELS`."""
    from workers.measurement.statistics.backends import CUDA_KERNELS

    folder = "workers.measurement.statistics.cuda"
    modules = {name: importlib.import_module(f"{folder}.{name}") for name in set(CUDA_KERNELS.values())}
    if not context.on_cuda:
        from emulated_cuda import COMPILER, build, launcher

        launch = launcher(build(context.scratch)) if COMPILER else None
        for name in EMULATED:
            vars(modules[name])["launch"] = launch
            if launch is None:
                del modules[name]
    loaded = {name: getattr(modules[place], name) for name, place in CUDA_KERNELS.items() if place in modules}
    return SimpleNamespace(**loaded)


def check_all(context: Context) -> None:
    """Hold every kernel against plain torch on every input."""
    if importlib.util.find_spec("triton") is None:
        raise Skip("triton is not installed, so plain torch runs in place of the kernels")
    from workers.measurement.statistics import plain

    kernels = load_kernels(context)
    for check in CHECKS:
        if not all(hasattr(kernels, name) for name in check.kernels):
            context.figure(f"{check.name}: not run, for there is no C++ compiler", None)
            continue
        try:
            check_one(context, check, kernels, plain)
        except Exception as error:  # compilers and drivers fail in many ways; the other kernels are still to be checked
            context.problem(f"{check.name}: {type(error).__name__}: {error}"[:300])


def check_one(context: Context, check: Check, kernels: Any, plain: Any) -> None:
    """Hold one check's kernels against plain torch, and tell after every tensor how it went so far."""
    most, tensors = 0.0, 0
    for described, x in inputs(DRY_SHAPES if context.dry else SHAPES, context.device):
        differing, used = faults(check, kernels, plain, x)
        most, tensors = max(most, used), tensors + 1
        for fault in differing:
            context.problem(f"{check.name}, {described}: {fault}")
        context.figure(f"{check.name}: tensors compared", tensors)
        context.figure(f"{check.name}: used of what rounding allows", most, at_most=1.0)


if __name__ == "__main__":
    run(check_all)
