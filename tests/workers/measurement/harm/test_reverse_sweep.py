"""The streamed reverse sweep is autograd on the whole model, and an exact swap is a model with one module replaced."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.nn import modules
from tiny_models import CONFIGS, VOCABULARY, save_checkpoint
from torch import nn
from transformers import AutoModelForCausalLM

from service.contracts.schemes import SCHEMES
from workers.measurement.harm.copies import LayerCopies, Module, component_of
from workers.measurement.harm.estimates.agreement import spearman
from workers.measurement.harm.estimates.estimate import estimated_harm, interactions, predicted_divergence
from workers.measurement.harm.gradients.head_gradients import draw_tokens
from workers.measurement.harm.products import InnerProducts, load_products
from workers.measurement.harm.reference_states import ReferenceStates, Storage, record_states
from workers.measurement.harm.reverse_sweep import Drawing, reverse_layers, start_gradients
from workers.measurement.harm.swaps import Swap, divergences, rerounded, swap_layers
from workers.measurement.layers.copies.quantize_layer import quantize_layer
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import projections, weight_rows
from workers.measurement.quantization.resolving import resolved

TOKEN_IDS = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(5))
FIRST, DRAWS, SEED = 2, 2, 7
POSITIONS = TOKEN_IDS.shape[1] - 1 - FIRST
NF4 = resolved(SCHEMES["nf4"], torch.float32)


@pytest.fixture(scope="module", autouse=True)
def _plain_path() -> Iterator[None]:
    """Have bitsandbytes compute in the type that it is told to; its packed path computes in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "has_avx512bf16", lambda: False)
        yield


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float32") / request.param
    return save_checkpoint(path, CONFIGS[request.param](), torch.float32)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ReferenceStates:
    scratch = tmp_path_factory.mktemp("scratch")
    decoder = load_decoder(open_checkpoint(checkpoint), torch.device("cpu"), scratch / "offloaded")
    return record_states(decoder, TOKEN_IDS, Storage(1 << 30, scratch / "states"), lambda: None)


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()


def copies(reference: ReferenceStates) -> Callable[[int, nn.Module], LayerCopies]:
    def copy(index: int, layer: nn.Module) -> LayerCopies:
        parts = projections(layer, reference.decoder.layer_config(index))
        return LayerCopies(index, layer, parts, {"nf4": quantize_layer(layer, parts, NF4)})

    return copy


def swept(
    reference: ReferenceStates, directory: Path, draws: int = DRAWS, budget_bytes: int = 1 << 30
) -> InnerProducts:
    directory.mkdir(exist_ok=True)
    drawing = Drawing(draws, FIRST, SEED, step=5)
    gradients = start_gradients(reference, drawing, Storage(budget_bytes, directory / "gradients"))
    width = reference.decoder.config.hidden_size

    def changes(copied: LayerCopies) -> dict[str, dict[str, torch.Tensor]]:
        return {"nf4": copied.weight_changes(NF4, width)}

    for products in reverse_layers(reference, gradients, copies(reference), changes):
        products.save(directory / f"{products.layer}.npz")
    files = [directory / f"{layer}.npz" for layer in range(len(reference.decoder.layers))]
    return load_products(files, ["nf4"], ["nf4"])["nf4"]


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    return bnb.dequantize_4bit(packed, state)


def noted(calls: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str) -> Callable[..., None]:
    """Return a hook that notes what enters and leaves a module."""

    def hook(_: nn.Module, taken: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[name] = taken[0].detach(), output

    return hook


def by_autograd(whole: nn.Module, names: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the inner products by hooks on the whole model, with the same draws: [N, draws, M], and of each module
    that has so many inputs those by input, [N, draws, M, width].
    """
    products = np.zeros((len(TOKEN_IDS), DRAWS, len(names)))
    by_input = np.zeros((*products.shape, width))
    for number, token_ids in enumerate(TOKEN_IDS):
        calls: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        handles = [whole.get_submodule(name).register_forward_hook(noted(calls, name)) for name in names]
        logits = whole(input_ids=token_ids[None], use_cache=False).logits[0, FIRST:-1]
        for handle in handles:
            handle.remove()
        generator = np.random.default_rng((SEED, number))
        uniform = [torch.from_numpy(generator.random((len(part), DRAWS))) for part in logits.split(5)]
        tokens = draw_tokens(torch.softmax(logits.detach(), dim=-1), torch.cat(uniform))
        for draw in range(DRAWS):
            loss = nn.functional.cross_entropy(logits, tokens[:, draw], reduction="sum")
            gradients = torch.autograd.grad(loss, [calls[name][1] for name in names], retain_graph=True)
            for place, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
                weight, (taken, _) = weight_rows(whole.get_submodule(name)), calls[name]
                changed = dequantized(weight) - weight
                products[number, draw, place] = float((gradient * nn.functional.linear(taken, changed)).sum())
                if taken.shape[-1] == width:
                    by_input[number, draw, place] = torch.einsum("bto,oi,bti->i", gradient, changed, taken)
    return products, by_input


def full_names(reference: ReferenceStates, products: InnerProducts) -> list[str]:
    return [f"{reference.decoder.prefix}{module.layer}.{module.name}" for module in products.modules]


def test_streamed_gradients_are_those_of_the_whole_model(
    reference: ReferenceStates, whole: nn.Module, tmp_path: Path
) -> None:
    products = swept(reference, tmp_path)
    width = reference.decoder.config.hidden_size
    expected, by_input = by_autograd(whole, full_names(reference, products), width)
    scale = np.abs(expected).max(axis=(0, 1))
    assert np.all(np.abs(products.matrix() - expected).max(axis=(0, 1)) <= 1e-4 * scale)
    assert len(products.modules) == len(set(products.modules)) > 0

    reading = [reads_the_stream(reference, module) for module in products.modules]
    assert 0 < sum(reading) < len(reading)
    channels = (by_input * expected[..., None])[:, :, reading].sum(axis=2).mean(axis=1)
    assert products.channels == pytest.approx(channels, abs=1e-3 * np.abs(channels).max())
    others = np.square(expected)[:, :, ~np.array(reading)].sum(axis=2).mean(axis=1)
    assert products.others == pytest.approx(others, rel=1e-3)


def reads_the_stream(reference: ReferenceStates, module: Module) -> bool:
    """Whether a module takes the residual stream after a norm: what its component says, fused ones among them."""
    layer = reference.decoder.layers[module.layer]
    parts = {part.name: part for part in projections(layer, reference.decoder.layer_config(module.layer))}
    return component_of(parts[module.name]) in ("attn.q", "attn.k", "attn.v", "attn.qkv", "mlp.gate", "mlp.up")


def test_gradients_in_files_are_those_in_memory(reference: ReferenceStates, tmp_path: Path) -> None:
    held = swept(reference, tmp_path / "held").matrix()
    assert np.array_equal(swept(reference, tmp_path / "files", budget_bytes=0).matrix(), held)
    assert any((tmp_path / "files").iterdir())


def test_a_sequence_without_finite_gradients_is_left_out(reference: ReferenceStates, tmp_path: Path) -> None:
    every = swept(reference, tmp_path / "every").matrix()
    end = str(len(reference.decoder.layers))
    kept = reference.states.get(end, 1)
    reference.states.put(end, 1, torch.full_like(kept, float("nan")))
    try:
        products = swept(reference, tmp_path / "without")
    finally:
        reference.states.put(end, 1, kept)
    assert np.array_equal(products.matrix(), every[[0, 2]])
    assert products.channels is not None
    assert len(products.channels) == products.sequences == 2


def kl_of(reference_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    log_p, log_q = (torch.log_softmax(one.double(), dim=-1) for one in (reference_logits, logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def swap_all(reference: ReferenceStates, swaps: Sequence[Swap], storage: Storage) -> dict[str, np.ndarray]:
    """Return every swap's KL divergence, [N, n], by its key."""
    streams = reference.streams([swap.key for swap in swaps], storage)
    assert list(swap_layers(reference, swaps, streams, copies(reference), SEED))[-1] == len(reference.decoder.layers)
    by_sequence = list(divergences(reference, streams, FIRST, step=5))
    return {swap.key: np.stack([of_sequence[swap.key] for of_sequence in by_sequence]) for swap in swaps}


def test_a_swap_is_a_model_with_one_module_replaced(
    reference: ReferenceStates, whole: nn.Module, tmp_path: Path
) -> None:
    name = projections(reference.decoder.layers[1], reference.decoder.layer_config(1))[-1].name
    nothing, module = Swap(0, "nothing"), Swap(1, "module", "nf4", name)
    harms = swap_all(reference, [nothing, module], Storage(1 << 30, tmp_path))
    with torch.no_grad():
        plain = whole(input_ids=TOKEN_IDS, use_cache=False).logits[:, FIRST:-1]
        replaced = whole.get_submodule(f"{reference.decoder.prefix}1.{name}")
        kept = replaced.weight.data
        changed_weight = dequantized(weight_rows(replaced))
        replaced.weight.data = changed_weight if changed_weight.shape == kept.shape else changed_weight.T
        changed = whole(input_ids=TOKEN_IDS, use_cache=False).logits[:, FIRST:-1]
        replaced.weight.data = kept
    assert np.all(harms[nothing.key] == 0)
    assert harms[module.key] == pytest.approx(kl_of(plain, changed).numpy(), rel=1e-3, abs=1e-9)


def test_estimates_agree_with_exact_swaps_within_their_errors(reference: ReferenceStates, tmp_path: Path) -> None:
    products = swept(reference, tmp_path / "gradients", draws=64)
    harms = estimated_harm(products.matrix(), POSITIONS)
    swaps = [Swap(module.layer, "module", "nf4", module.name) for module in products.modules]
    exact = swap_all(reference, swaps, Storage(1 << 30, tmp_path / "swaps"))
    measured = np.array([exact[swap.key].mean() for swap in swaps])
    estimated = np.array([harm.value for harm in harms])
    # A random model is far from linear in errors of 10%: its largest harms are told in order, and within a factor.
    assert estimated.sum() == pytest.approx(measured.sum(), rel=0.35)
    assert spearman(measured, estimated) > 0.9


def test_rerounding_moves_every_element_by_one_representable_value() -> None:
    hidden = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    moved = rerounded(hidden, torch.Generator().manual_seed(1))
    patterns = hidden.view(torch.int16).int(), moved.view(torch.int16).int()
    steps = (patterns[1] - patterns[0]) * hidden.sign()
    assert set(steps.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float((steps > 0).float().mean()) - 0.5) < 0.15


def test_interactions_sum_to_the_predicted_divergence() -> None:
    products = np.random.default_rng(3).normal(size=(5, 4, 6))
    matrix = interactions(products, 10)
    chosen = np.array([True, False, True, True, False, False])
    assert matrix[np.ix_(chosen, chosen)].sum() == pytest.approx(predicted_divergence(products, 10, chosen).value)
    assert np.diag(matrix) == pytest.approx([harm.value for harm in estimated_harm(products, 10)])
    one = np.square(products[:, :, 0]).mean(axis=1) / 20
    assert estimated_harm(products, 10)[0].standard_error == pytest.approx(one.std(ddof=1) / np.sqrt(5))


def test_drawn_tokens_have_the_frequencies_of_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5)[None] / 100_000
    probabilities = torch.softmax(logits, dim=-1)
    counts = torch.bincount(draw_tokens(probabilities, uniform)[0], minlength=4) / 100_000
    assert torch.allclose(counts, probabilities[0], atol=1e-4)
