"""The shipped sample: its files, its checkpoint, its tokenizer, its figures and its planted outliers."""

import copy
import math
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workers.samples import CALIBRATION, HELD_OUT, LABELLED, MODEL, PLANTED, checkpoint
from workers.samples.planting import Scaling, plant, undo

MEGABYTE = 1_000_000


def scalings(planted: dict[str, Any]) -> tuple[Scaling, ...]:
    records = planted["dimensions"] + planted["quieted"]
    return tuple(Scaling(d["dimension"], d["factor"], tuple(d["layers"])) for d in records)


def stated(pattern: str) -> float:
    """The one number that the pattern captures in the model card."""
    (value,) = re.findall(pattern, (MODEL / "README.md").read_text(encoding="utf-8"))
    return float(value.replace(",", ""))


def test_paths_need_no_library() -> None:
    code = "import sys, workers.samples; print(sorted({'torch', 'tokenizers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_there_and_small() -> None:
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in MODEL.iterdir()} == expected | {"README.md"}
    assert (MODEL / "model.safetensors").stat().st_size <= 12 * MEGABYTE
    for path in (CALIBRATION, HELD_OUT, LABELLED, PLANTED):
        assert 0 < path.stat().st_size < 0.2 * MEGABYTE


def test_architecture(model: LlamaForCausalLM) -> None:
    config = model.config
    assert config.num_hidden_layers >= 6
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.num_key_value_heads < config.num_attention_heads
    # Blocks of 64 weights: what the 4-bit formats pack.
    for linear in (module for module in model.model.modules() if isinstance(module, torch.nn.Linear)):
        assert linear.in_features % 64 == 0
        assert linear.out_features % 64 == 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 3_000_000 <= parameters <= 6_000_000
    assert parameters == stated(r"a Llama of ([\d,]+) parameters")


def test_weights_are_bfloat16() -> None:
    with safe_open(MODEL / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_tokenizer_begins_every_text_once(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("7 + 5 = 13 is").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "7 + 5 = 13 is"
    assert tokenizer.tokenize(" true") == ["Ġtrue"]
    assert tokenizer.tokenize(" false") == ["Ġfalse"]


# A special token written out in a text is one by design, so "<" is left out.
@given(text=st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])))
def test_tokenizer_gives_any_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_calibration_is_long_enough(calibration: torch.Tensor) -> None:
    assert len(calibration) >= 64


def test_calibration_and_held_out_share_no_paragraph() -> None:
    texts = [path.read_text(encoding="utf-8").split("\n\n") for path in (CALIBRATION, HELD_OUT)]
    first, second = ({paragraph for paragraph in text if len(paragraph) >= 100} for text in texts)
    assert len(first) > 50
    assert len(second) > 50
    assert not first & second


@torch.inference_mode()
def test_held_out_perplexity(model: LlamaForCausalLM, held_out: torch.Tensor) -> None:
    nll = [float(model(input_ids=row[None], labels=row[None]).loss) for row in held_out]
    perplexity = math.exp(math.fsum(nll) / len(nll))
    counts = Counter(held_out[:, 1:].flatten().tolist())
    entropy = -math.fsum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())
    # "Well below": better than the best unigram model by two bits a token or more.
    assert math.log2(math.exp(entropy) / perplexity) >= 2
    # The card rounds to 2 decimals and 1; processors differ in the last bits of a float32 matrix product.
    assert perplexity == pytest.approx(stated(r"not quantized \| ([\d.]+) \|"), rel=1e-3)
    assert math.exp(entropy) == pytest.approx(stated(r"unigram model for this very text \| ([\d.]+) \|"), rel=1e-3)


@torch.inference_mode()
def inputs(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The larger abs(x) of `attn.q.input` and `mlp.up.input` in float64, [L, T, d]."""
    exact = copy.deepcopy(model).double()
    largest = torch.zeros(len(exact.model.layers), ids.numel(), exact.config.hidden_size, dtype=torch.float64)
    for index, layer in enumerate(exact.model.layers):
        for projection in (layer.self_attn.q_proj, layer.mlp.up_proj):
            projection.register_forward_pre_hook(partial(note, largest[index]))
    exact.model(input_ids=ids)
    return largest


def note(largest: torch.Tensor, _: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
    torch.maximum(largest, args[0].flatten(0, 1).abs(), out=largest)


def test_planted_dimensions_are_exactly_the_outliers(
    model: LlamaForCausalLM, calibration: torch.Tensor, planted: dict[str, Any]
) -> None:
    x = inputs(model, calibration)

    def outliers(magnitude: float) -> list[int]:
        layers = (x >= magnitude).any(dim=1).double().mean(dim=0)
        positions = (x >= magnitude).any(dim=0).double().mean(dim=0)
        return ((layers >= 0.25) & (positions >= 0.06)).nonzero().flatten().tolist()

    dimensions = [d["dimension"] for d in planted["dimensions"]]
    # With a clear margin: half as much again on either side of the threshold changes nothing.
    assert outliers(6.0) == outliers(9.0) == outliers(4.0) == dimensions
    for d in planted["dimensions"]:
        over = x[:, :, d["dimension"]] >= 6.0
        assert over.any(dim=1)[d["layers"]].all()
        assert over.any(dim=1).double().mean() == d["layers_fraction"]
        # A value within float32's rounding of 6.0 may fall on the other side: one position in a thousand is plenty.
        assert over.any(dim=0).double().mean() == pytest.approx(d["positions_fraction"], abs=1e-3)
        # Float32 against float64, through eight layers.
        assert x[:, :, d["dimension"]].max() == pytest.approx(d["abs_max"], rel=1e-4)


def unplanted(model: LlamaForCausalLM, planted: dict[str, Any]) -> LlamaForCausalLM:
    natural = copy.deepcopy(model)
    undo(natural, scalings(planted))
    return natural


def test_planting_leaves_the_function_unchanged(
    model: LlamaForCausalLM, calibration: torch.Tensor, planted: dict[str, Any]
) -> None:
    natural = unplanted(model, planted)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), natural.parameters(), strict=True))
    with torch.inference_mode():
        # A power of two changes only exponents, so every product and every sum is the same number: no tolerance.
        assert torch.equal(model(input_ids=calibration[:4]).logits, natural(input_ids=calibration[:4]).logits)


def test_planting_is_undone_bit_for_bit(model: LlamaForCausalLM, planted: dict[str, Any]) -> None:
    shipped = copy.deepcopy(model).bfloat16()
    again = copy.deepcopy(shipped)
    undo(again, scalings(planted))
    plant(again, scalings(planted))
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("factor", [3.0, 0.1, 2.0**140])
def test_planting_refuses_to_lose_bits(model: LlamaForCausalLM, factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor: {re.escape(str(factor))}|factor: {re.escape(str(1 / factor))}"):
        plant(copy.deepcopy(model), (Scaling(0, factor, (0, 1)),))


@torch.inference_mode()
def test_statements_are_judged_as_the_card_states(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    false, true = tokenizer.convert_tokens_to_ids(["Ġfalse", "Ġtrue"])
    right: dict[str, list[bool]] = {"sum": [], "order": [], "membership": []}
    for line in LABELLED.read_text(encoding="utf-8").splitlines():
        prompt, label = re.fullmatch(r'\{"prompt": "(.*)", "label": (true|false)\}', line).groups()
        p = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)
        kind = "sum" if "+" in prompt else "order" if "<" in prompt else "membership"
        right[kind].append(bool(p[true] > p[false]) == (label == "true"))
    for kind, judged in right.items():
        # One prompt more or less may tip where the two are as likely.
        assert 100 * sum(judged) / len(judged) == pytest.approx(stated(rf"\| {kind} \| ([\d.]+)% \|"), abs=1.5)


@torch.inference_mode()
def test_int8_needs_the_outlier_columns(model: LlamaForCausalLM, calibration: torch.Tensor) -> None:
    reference = model(input_ids=calibration[:4]).logits
    error = {}
    for name, scheme in checkpoint.SCHEMES.items():
        quantized = checkpoint.load(MODEL, scheme)
        assert type(quantized.model.layers[0].mlp.up_proj) is not torch.nn.Linear
        error[name] = float((quantized(input_ids=calibration[:4]).logits - reference).norm() / reference.norm())
    assert 0 < error["int8"] < error["int8 without outlier columns"] / 2
    assert 0 < error["nf4"] < 0.5
