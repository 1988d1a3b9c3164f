"""Gradients of a float16 model are those of its float32 copy, however small or large they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, VOCABULARY, save_checkpoint
from transformers import AutoModelForCausalLM

from workers.measurement.harm.copies import LayerCopies
from workers.measurement.harm.gradients.head_gradients import draw_tokens
from workers.measurement.harm.gradients.loss_scaling import gradient_type, gradients_at
from workers.measurement.harm.reference_states import ReferenceStates, Storage, record_states
from workers.measurement.harm.reverse_sweep import Drawing, reverse_layers, start_gradients
from workers.measurement.layers.streams import Streams
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.loading import load_decoder

TOKEN_IDS = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(5))
DRAWS, SEED, STEP = 2, 7, 5

Weights = dict[str, torch.Tensor]


def _vanishing(weights: Weights) -> None:
    weights["lm_head.weight"] *= 2.0**-12
    weights["model.norm.weight"] *= 2.0**-6


def _overflowing(weights: Weights) -> None:
    """Make the residual stream small, so that norms multiply gradients."""
    weights["model.embed_tokens.weight"] *= 2.0**-12
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 2.0**-12
    weights["model.norm.weight"] *= 16


@pytest.fixture(scope="module", params=[_vanishing, _overflowing], ids=["small", "large"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    change: Callable[[Weights], None] = request.param
    path = save_checkpoint(tmp_path_factory.mktemp("float16") / "llama", CONFIGS["llama"](), torch.float16)
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def swept(reference: ReferenceStates, scratch: Path) -> list[Streams]:
    """Return the gradients after the last layer, and before the first."""
    ends = []
    for name in ("after", "before"):
        gradients = start_gradients(reference, Drawing(DRAWS, 0, SEED, STEP), Storage(1 << 30, scratch / name))
        ends.append(gradients)
    layers = len(reference.decoder.layers)
    nothing = list(reverse_layers(reference, ends[1], lambda i, layer: LayerCopies(i, layer, [], {}), lambda _: {}))
    assert len(nothing) == layers
    return ends


def test_they_are_those_of_the_float32_copy(checkpoint: Path, tmp_path: Path) -> None:
    decoder = load_decoder(open_checkpoint(checkpoint), torch.device("cpu"), tmp_path / "offloaded")
    assert decoder.dtype == torch.float16
    reference = record_states(decoder, TOKEN_IDS, Storage(1 << 30, tmp_path / "states"), lambda: None)
    after, before = swept(reference, tmp_path)
    copy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
    for number, token_ids in enumerate(TOKEN_IDS):
        embedded = copy.model.embed_tokens(token_ids[None]).detach().requires_grad_()
        output = copy.model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
        logits = copy.lm_head(output.last_hidden_state)[0, :-1]
        # The same tokens are drawn: from the float16 model's own predictions.
        own = decoder.logits(reference.at(len(decoder.layers), number)[:, :-1])[0].float()
        generator = np.random.default_rng((SEED, number))
        uniform = [torch.from_numpy(generator.random((len(part), DRAWS))) for part in own.split(STEP)]
        tokens = draw_tokens(torch.softmax(own, dim=-1), torch.cat(uniform))
        for draw in range(DRAWS):
            loss = torch.nn.functional.cross_entropy(logits, tokens[:, draw], reduction="sum")
            (expected,) = torch.autograd.grad(loss, embedded, retain_graph=True)
            found = before.get(str(draw), number)
            assert found.dtype == torch.float32
            assert after.get(str(draw), number).dtype == torch.float32
            # float16 has 11 bits, which every layer rounds to; what vanished or overflowed would be off by all of it.
            assert float((found - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**40])
@pytest.mark.parametrize("growth", [2.0**-8, 1.0, 2.0**12])
def test_a_gradient_of_any_size_passes_a_layer_that_changes_it(scale: float, growth: float) -> None:
    taken = torch.ones(8, dtype=torch.float16, requires_grad=True)
    output = taken * growth
    gradient = torch.linspace(-1, 1, 8) * scale
    found, beside = gradients_at(output, [taken, torch.ones(1, requires_grad=True)], gradient, retain_graph=False)
    assert found is not None
    assert beside is None
    assert torch.allclose(found, gradient * growth, rtol=2e-3, atol=0)


def test_a_gradient_that_no_scale_holds_is_not_finite() -> None:
    taken = torch.ones(2, dtype=torch.float16, requires_grad=True)
    (found,) = gradients_at(taken * 1.0, [taken], torch.tensor([torch.inf, 1.0]), retain_graph=False)
    assert found is not None
    assert not found.isfinite().all()


def test_other_types_keep_their_own() -> None:
    assert [gradient_type(one) for one in (torch.float16, torch.bfloat16, torch.float32)] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
