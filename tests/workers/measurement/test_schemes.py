"""Every scheme as a record and as a kernel: what real ones compute, what simulated ones compute, what none takes."""

import json
import math
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from service.contracts.request import Analysis, schemes_for
from service.contracts.schemes import SCHEMES, Scheme
from workers.measurement.errors import CannotQuantize
from workers.measurement.layers.copies import quantize_projection as kernels
from workers.measurement.layers.copies.quantize_layer import quantize_layer
from workers.measurement.layers.copies.quantize_projection import KERNELS, quantize_projection
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.decoder import run_layer
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import Projection, projections, weight_rows
from workers.measurement.quantization import projection
from workers.measurement.quantization.projection import QuantizedProjection, row_ranges
from workers.measurement.quantization.resolving import resolved
from workers.samples import CALIBRATION, MODEL, PLANTED

FOUR_BITS = [name for name in SCHEMES if name.startswith(("nf4", "fp4"))]


def linear(in_features: int, out_features: int, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(in_features * 1000 + out_features)
    return nn.Linear(in_features, out_features, bias=bias).to(dtype)


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11)).to(dtype)


def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(x)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def whole_weight(quantized: QuantizedProjection, original: nn.Module) -> torch.Tensor:
    """What the stored weight stands for, [out, in], put together from its ranges of rows."""
    return torch.cat([quantized.dequantized(rows) for rows in row_ranges(weight_rows(original))])


def known(name: str, dtype: torch.dtype = torch.float32) -> Scheme:
    """A scheme for a model of the given type."""
    return resolved(SCHEMES[name], dtype)


def variant(text: str, dtype: torch.dtype = torch.float32) -> Scheme:
    """A variant, as it is typed, for a model of the given type."""
    (scheme,) = schemes_for(Analysis.model_validate({"schemes": [text]}))
    return resolved(scheme, dtype)


def with_threshold(threshold: float) -> Scheme:
    (scheme,) = schemes_for(Analysis.model_validate({"schemes": ["int8"], "int8_threshold": threshold}))
    return scheme


# Records


def test_a_job_gets_the_schemes_it_asks_for_with_its_threshold() -> None:
    analysis = Analysis.model_validate({"schemes": ["nf4", "int8", "w8a8-token"], "int8_threshold": 4.5})
    nf4, int8, w8a8 = schemes_for(analysis)
    assert (nf4, w8a8) == (SCHEMES["nf4"], SCHEMES["w8a8-token"])
    assert int8.settings == {"threshold": 4.5}
    assert SCHEMES["int8"].settings == {"threshold": 6.0}
    assert [scheme.name for scheme in schemes_for(Analysis())] == ["int8", "nf4"]


@pytest.mark.parametrize("threshold", [-1, math.nan, math.inf])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    with pytest.raises(ValidationError, match="int8_threshold"):
        Analysis(int8_threshold=threshold)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_record_says_whether_its_scheme_is_simulated(name: str) -> None:
    scheme = SCHEMES[name]
    assert scheme.kernel in KERNELS
    assert scheme.simulated == scheme.kernel.startswith("simulated") == ("simulated" in scheme.title)
    assert scheme.title.startswith(f"{name} (")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_gives_nearly_what_the_projection_gives(name: str, dtype: torch.dtype) -> None:
    original = linear(256, 96, dtype)
    x = tokens(2, 7, 256, dtype=dtype)
    quantized = quantize_projection(original, known(name, dtype))
    output, reference = run(quantized.module, x), run(original, x)
    assert output.dtype == dtype
    assert output.shape == reference.shape
    bits = SCHEMES[name].weight_bits
    assert 0.001 < relative(output, reference) < {4: 0.2, 8: 0.06}[bits]
    assert 0.001 < relative(whole_weight(quantized, original), original.weight) < {4: 0.2, 8: 0.04}[bits]
    assert 256 * 96 * bits / 8 < quantized.nbytes < 256 * 96 * (bits + 1) / 8


@pytest.mark.parametrize("name", SCHEMES)
def test_a_conv1d_is_the_linear_of_its_transpose(name: str) -> None:
    original = linear(64, 96)
    conv = Conv1D(96, 64)
    with torch.no_grad():
        conv.weight.copy_(original.weight.T)
        conv.bias.copy_(original.bias)
    x = tokens(2, 3, 64)
    found, expected = (quantize_projection(module, known(name)) for module in (conv, original))
    assert torch.equal(run(found.module, x), run(expected.module, x))
    assert found.nbytes == expected.nbytes


@pytest.mark.parametrize("in_features", [64, 40, 33])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_weight_in_many_ranges_of_rows_is_the_same_as_in_one(
    name: str, in_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = linear(in_features, 301, torch.bfloat16)
    x = tokens(2, 3, in_features, dtype=torch.bfloat16)
    scheme = known(name, torch.bfloat16)
    whole = quantize_projection(original, scheme)
    weight = whole_weight(whole, original)
    errors = quantize_layer(nn.Sequential(original), [Projection("0", {"a": slice(None)}, "a", True)], scheme)
    monkeypatch.setitem(projection._RANGE_ELEMENTS, "cpu", 1)
    assert [rows.start for rows in row_ranges(weight)] == [0, 64, 128, 192, 256]
    pieces = quantize_projection(original, scheme)
    assert torch.equal(run(pieces.module, x), run(whole.module, x))
    assert torch.equal(whole_weight(pieces, original), weight)
    assert pieces.nbytes == whole.nbytes
    again = quantize_layer(nn.Sequential(original), [Projection("0", {"a": slice(None)}, "a", True)], scheme)
    assert again.weight_errors == errors.weight_errors == {"a": pytest.approx(relative(weight, original.weight))}


# Real kernels


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bit_codes_and_scales_are_those_of_bitsandbytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(projection._RANGE_ELEMENTS, "cpu", 1)
    original, settings = linear(96, 160, torch.bfloat16), known(name).settings
    expected = bnb.nn.Params4bit(
        original.weight.detach(), compress_statistics=settings["double_quantisation"], quant_type=name[:3]
    ).to("cpu")
    found = KERNELS[SCHEMES[name].kernel](original.weight.detach(), None, settings).module.weight
    assert torch.equal(found.data, expected.data)
    stored, wanted = found.quant_state.as_dict(), expected.quant_state.as_dict()
    assert stored.keys() == wanted.keys()
    for key, value in wanted.items():
        same = torch.equal(stored[key], value) if isinstance(value, torch.Tensor) else stored[key] == value
        assert same, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_codes_and_scales_are_those_of_bitsandbytes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(projection._RANGE_ELEMENTS, "cpu", 1)
    original = linear(96, 160, dtype)
    expected = bnb.nn.Int8Params(original.weight.detach(), requires_grad=False, has_fp16_weights=False).to("cpu")
    found = KERNELS[SCHEMES["int8"].kernel](original.weight.detach(), None, SCHEMES["int8"].settings).module.weight
    assert torch.equal(found.CB, expected.CB)
    assert torch.equal(found.SCB, expected.SCB)
    assert torch.equal(found.data, expected.data)


def quantized_logits(path: Path, token_ids: torch.Tensor, scheme: Scheme, scratch: Path) -> torch.Tensor:
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), scratch)
    hidden, arguments = decoder.record(token_ids)
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            copied = quantize_layer(layer, projections(layer, decoder.config), scheme)
            hidden = run_layer(copied.module, hidden, arguments[index])
    return decoder.logits(hidden)


def four_bit_config(quant_type: str, *, double: bool) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double)


@pytest.mark.parametrize(
    ("scheme", "config"),
    [
        (known("fp4"), four_bit_config("fp4", double=False)),
        (known("nf4-dq"), four_bit_config("nf4", double=True)),
        (known("fp4-dq"), four_bit_config("fp4", double=True)),
        (with_threshold(0), BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)),
        (with_threshold(2.5), BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=2.5)),
    ],
    ids=["fp4", "nf4-dq", "fp4-dq", "int8 without outlier columns", "int8 at 2.5"],
)
def test_logits_are_those_of_the_model_that_transformers_quantizes(
    scheme: Scheme, config: BitsAndBytesConfig, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    token_ids = torch.randint(300, (3, 40), generator=torch.Generator().manual_seed(3))
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], quantization_config=config)
    expected = run(model.eval(), token_ids).logits
    assert torch.equal(quantized_logits(checkpoints["llama"], token_ids, scheme, tmp_path), expected)


def four_bit_oracle(weight: torch.Tensor, quant_type: str) -> np.ndarray:
    """Flat blocks of 64, each divided by its largest magnitude, nearest of the format's 16 codes."""
    codes = bnb.functional.get_4bit_type(quant_type, device="cpu").numpy()
    flat = weight.numpy().reshape(-1)
    expected = np.empty_like(flat)
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        abs_max = np.abs(block).max()
        expected[start : start + 64] = codes[np.abs(block[:, None] / abs_max - codes).argmin(axis=1)] * abs_max
    return expected.reshape(weight.shape)


WIDTHS = [(160, 48), (160, 360), (360, 160), (48, 96), (32, 7), (33, 7), (20, 32), (63, 1), (64, 33), (1, 5)]
"""(in, out): what bitsandbytes' packed CPU path refuses, one way or another."""


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize(("in_features", "out_features"), WIDTHS)
def test_four_bits_of_any_width_are_blocks_of_64(in_features: int, out_features: int, quant_type: str) -> None:
    original = linear(in_features, out_features)
    quantized = quantize_projection(original, known(quant_type))
    expected = four_bit_oracle(original.weight.detach(), quant_type)
    np.testing.assert_allclose(whole_weight(quantized, original).numpy(), expected, rtol=1e-6, atol=0)
    x = tokens(2, 3, in_features)
    output = x.double() @ torch.from_numpy(expected).double().T + original.bias.double()
    assert quantized.path == ("cpu, dequantized as one row" if in_features % 64 else "cpu")
    np.testing.assert_allclose(run(quantized.module, x).numpy(), output.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FOUR_BITS)
def test_blocks_across_rows_compute_what_the_plain_path_does_where_it_is_right(name: str) -> None:
    """A width of 40 is no multiple of 16, so bitsandbytes dequantizes it element by element, and rightly."""
    original = linear(40, 24, torch.bfloat16)
    settings = SCHEMES[name].settings
    plain = bnb.nn.Linear4bit(
        40, 24, compute_dtype=torch.float32, compress_statistics=settings["double_quantisation"], quant_type=name[:3]
    )
    plain.load_state_dict(original.state_dict())
    plain.weight = bnb.nn.Params4bit(
        original.weight.detach(), compress_statistics=settings["double_quantisation"], quant_type=name[:3], module=plain
    ).to("cpu")
    plain.support_avx512bf16_for_cpu = False
    x = tokens(2, 3, 40, dtype=torch.bfloat16)
    quantized = quantize_projection(original, known(name))
    assert type(quantized.module) is not bnb.nn.Linear4bit
    assert torch.equal(run(quantized.module, x), run(plain.eval(), x))


@pytest.mark.parametrize(("in_features", "out_features"), [*WIDTHS[:-1], (2, 3)])
@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_int8_of_any_width_is_what_the_paper_says(in_features: int, out_features: int, threshold: float) -> None:
    original = linear(in_features, out_features)
    original.weight.data = original.weight.data.half().float()
    x = tokens(2, 6, in_features).half().float()
    x[0, 1, 0] = 8.0
    columns = (x.abs() >= threshold).flatten(0, 1).any(0) if threshold else torch.zeros(in_features, dtype=torch.bool)
    weight, rest = original.weight.detach().double(), torch.where(columns, 0.0, x.double())
    weight_scale, row_scale = weight.abs().amax(1, keepdim=True) / 127, rest.abs().amax(-1, keepdim=True) / 127
    weight = (weight / weight_scale).round() * weight_scale
    rounded = torch.where(row_scale > 0, (rest / row_scale).round() * row_scale, 0.0)
    kept = torch.where(columns, x.double(), 0.0)
    expected = (rounded + kept) @ weight.T + original.bias.detach().double()
    quantized = quantize_projection(original, with_threshold(threshold))
    assert relative(run(quantized.module, x), expected) < 1e-3


# Simulated kernels


def test_simulated_int8_by_token_agrees_with_the_real_kernel_without_outlier_columns() -> None:
    """Every row's largest magnitude is 127 times a power of two, so that neither rounds a scale."""
    original = linear(128, 96)
    x = tokens(2, 9, 128).clamp(-3.9, 3.9).half().float()
    with torch.no_grad():
        original.weight.copy_(original.weight.half())
        original.weight[:, 0] = 127 / 1024
    x[..., 1] = -127 / 32
    real = run(quantize_projection(original, with_threshold(0)).module, x)
    simulated = run(quantize_projection(original, known("w8a8-token")).module, x)
    assert relative(simulated, real) < 3e-5  # bitsandbytes writes 1 / 127^2 as 6.200124e-05, 2e-5 too much
    assert relative(simulated, run(original, x)) > 3e-3


@pytest.mark.parametrize("name", ["w8a8-tensor", "w8a8-token", "fp8-e4m3"])
def test_a_large_token_coarsens_others_only_under_one_scale_for_the_tensor(name: str) -> None:
    original = linear(64, 32)
    x = tokens(2, 5, 64)
    louder = x.clone()
    louder[0, 0] *= 100
    module = quantize_projection(original, known(name)).module
    others = run(module, x)[1], run(module, louder)[1]
    assert torch.equal(*others) == (name != "w8a8-tensor")


@pytest.mark.parametrize("name", ["int4-group128", "int4-group128-sym", "mxfp4"])
def test_schemes_of_weights_alone_leave_inputs_as_they_are(name: str) -> None:
    original = linear(64, 32, bias=False)
    quantized = quantize_projection(original, known(name))
    assert torch.equal(run(quantized.module, torch.eye(64)[None])[0].T, whole_weight(quantized, original))


# What no path takes


def test_a_weight_over_fp16_is_refused_by_name_for_int8_alone() -> None:
    original = linear(64, 32)
    with torch.no_grad():
        original.weight[3, 4] = -70000.0
    with pytest.raises(CannotQuantize, match=r"70000; at most 65504.* \(it has 64 inputs and 32 outputs\)$") as refused:
        quantize_projection(original, known("int8"))
    assert (refused.value.code, refused.value.bad_input) == ("bad-model", True)
    for name in SCHEMES.keys() - {"int8"}:
        assert whole_weight(quantize_projection(original, known(name)), original).isfinite().all()


def test_one_input_channel_is_refused_for_int8() -> None:
    with pytest.raises(
        CannotQuantize, match=r"^it has 1 input channel; at least 2 .* \(it has 1 inputs and 5 outputs\)$"
    ):
        quantize_projection(linear(1, 5), SCHEMES["int8"])


BROKEN = (192, 128)
"""Shape of the weights of the Llama's gate and up."""


class Fragile(nn.Module):
    """A quantized module that breaks when it is called."""

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def test_a_module_that_breaks_at_its_first_call_stays_as_it_is(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = KERNELS[SCHEMES["nf4"].kernel]

    def breaking(weight: torch.Tensor, bias: torch.Tensor | None, settings: Any) -> Any:
        quantized = real(weight, bias, settings)
        if weight.shape == BROKEN:
            object.__setattr__(quantized, "module", Fragile())
        return quantized

    monkeypatch.setattr(kernels, "KERNELS", {SCHEMES["nf4"].kernel: breaking})
    monkeypatch.setattr(kernels, "_tried", set())
    decoder = load_decoder(open_checkpoint(checkpoints["llama"]), torch.device("cpu"), tmp_path)
    with decoder.resident(1) as layer:
        parts = projections(layer, decoder.config)
        copied = quantize_layer(layer, parts, known("nf4"))
        broken = {p.name for p in parts if layer.get_submodule(p.name).weight.shape == BROKEN}
        assert broken
        assert copied.left == dict.fromkeys(
            broken, f"AssertionError (it has {BROKEN[1]} inputs and {BROKEN[0]} outputs)"
        )
        for part in parts:
            replaced = copied.module.get_submodule(part.name) is not layer.get_submodule(part.name)
            kept = torch.equal(copied.module.get_submodule(part.name).weight, layer.get_submodule(part.name).weight)
            assert (replaced, kept) == (True, part.name in broken)
            assert (part.parts.keys() <= copied.weight_errors.keys()) == (part.name not in broken)


# The sample's planted outliers


def isolated_errors(
    layer: nn.Module, hidden: torch.Tensor, arguments: Any, names: dict[str, str], schemes: list[Scheme]
) -> tuple[torch.Tensor, dict[tuple[str, str], float]]:
    """Run a layer; return its output, and each scheme's relative error at each module on the layer's own inputs."""
    inputs: dict[str, torch.Tensor] = {}
    for name in names:
        layer.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    output = run_layer(layer, hidden, arguments)
    errors = {}
    for name in names:
        original = layer.get_submodule(name)
        reference = run(original, inputs[name])
        for scheme in schemes:
            quantized = quantize_projection(original, scheme)
            errors[scheme.name, name] = relative(run(quantized.module, inputs[name]), reference)
    return output, errors


def kl_divergence(reference: torch.Tensor, quantized: torch.Tensor) -> float:
    p, q = reference.double().log_softmax(-1), quantized.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_planted_outliers_hurt_a_scale_for_the_whole_tensor_and_not_llm_int8(tmp_path: Path) -> None:
    planted = [set(dimension["layers"]) for dimension in json.loads(PLANTED.read_text())["dimensions"]]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    token_ids = torch.tensor(tokenizer(CALIBRATION.read_text(encoding="utf-8")[:4000]).input_ids[:256]).view(2, 128)
    decoder = load_decoder(open_checkpoint(MODEL), torch.device("cpu"), tmp_path / "scratch")
    schemes = [SCHEMES["int8"], SCHEMES["w8a8-tensor"]]
    names = {"self_attn.q_proj": "attn.q", "mlp.up_proj": "mlp.up"}
    hidden, arguments = decoder.record(token_ids)
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            hidden, errors = isolated_errors(layer, hidden, arguments[index], names, schemes)
        if index in set.intersection(*planted):
            for name in names:
                assert errors["int8", name] < 0.03
                assert errors["w8a8-tensor", name] > 4 * errors["int8", name]
    reference = decoder.logits(hidden)
    int8, tensor = (
        kl_divergence(reference, quantized_logits(MODEL, token_ids, scheme, tmp_path / scheme.name))
        for scheme in schemes
    )
    assert tensor > 10 * int8 > 0
