"""The sweep computes what the whole model computes, bit for bit: as it came, and as bitsandbytes quantizes it."""

from pathlib import Path

import pytest
import torch
from oracle import configuration
from tiny_models import CONFIGS, VOCABULARY, save_checkpoint
from transformers import AutoModelForCausalLM

from service.contracts.request import Analysis
from service.contracts.schemes import SCHEMES, Scheme
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
from workers.measurement.layers.sweep_state import Batch, SweepState
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.loading import load_decoder


def whole_model_logits(path: Path, token_ids: torch.Tensor, scheme: str | None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=configuration(path, scheme))
    with torch.no_grad():
        return model.eval()(input_ids=token_ids, use_cache=False).logits


def swept_logits(path: Path, token_ids: torch.Tensor, scratch: Path) -> dict[str | None, torch.Tensor]:
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), scratch)
    state = sweep_of(decoder, token_ids, [SCHEMES["int8"], SCHEMES["nf4"]], scratch)
    assert [found.layer for found in sweep_layers(state)] == list(range(len(decoder.layers)))
    return {
        None if name == REFERENCE else name: state.decoder.logits(state.streams.get(name, 0))
        for name in state.streams.names
    }


def sweep_of(decoder: Decoder, token_ids: torch.Tensor, schemes: list[Scheme], directory: Path) -> SweepState:
    return prepare_sweep(
        decoder, [Batch(token_ids)], schemes, Analysis(), budget_bytes=2**30, directory=directory / "streams"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_sweep_gives_the_whole_models_logits(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model", CONFIGS[architecture](), dtype)
    token_ids = torch.randint(VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(3))
    swept = swept_logits(path, token_ids, tmp_path / "scratch")
    for scheme, logits in swept.items():
        assert torch.equal(logits, whole_model_logits(path, token_ids, scheme)), scheme
    assert not torch.equal(swept[None], swept["int8"])
    assert not torch.equal(swept["int8"], swept["nf4"])


def test_a_checkpoint_in_several_files_is_swept_the_same(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model", CONFIGS["llama"](), max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    token_ids = torch.arange(60).view(2, 30)
    swept = swept_logits(path, token_ids, tmp_path / "scratch")
    assert torch.equal(swept[None], whole_model_logits(path, token_ids, None))


def test_only_one_layer_is_in_memory_at_a_time(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    decoder = load_decoder(open_checkpoint(checkpoints["llama"]), torch.device("cpu"), tmp_path)

    def resident() -> list[int]:
        return [i for i, layer in enumerate(decoder.layers) if any(not p.is_meta for p in layer.parameters())]

    assert resident() == []
    with decoder.resident(2):
        assert resident() == [2]
    assert resident() == []
    with pytest.raises(RuntimeError, match="in the middle"), decoder.resident(1):
        raise RuntimeError("in the middle")
    assert resident() == []


def test_widths_that_the_packed_kernel_refuses_run_through_the_plain_one(tmp_path: Path) -> None:
    config = CONFIGS["llama"]()
    config.update({"hidden_size": 160, "intermediate_size": 360, "num_attention_heads": 4, "head_dim": 40})
    path = save_checkpoint(tmp_path / "model", config)
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), tmp_path / "scratch")
    state = sweep_of(decoder, torch.arange(40).view(2, 20), [SCHEMES["nf4"]], tmp_path)
    for found in sweep_layers(state):
        relative = {site: s.deviation().relative_l2 for site, s in found.schemes["nf4"].isolated.items()}
        assert all(0.01 < error < 0.3 for error in relative.values() if error is not None)
        assert len(relative) == 7
