"""Variants compute what bitsandbytes computes with the same settings and the same modules kept, bit for bit."""

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import architectures
import bitsandbytes as bnb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import configuration, stored_dtype
from tiny_models import CONFIGS, VOCABULARY, request_for, save_checkpoint
from torch import nn
from transformers import AutoModelForCausalLM

from service.contracts.report import Report
from service.contracts.request import Analysis, schemes_for, variants_for
from service.contracts.schemes import Scheme
from workers.measurement.errors import BadRequest
from workers.measurement.layers.copies.quantize_projection import quantize_projection
from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
from workers.measurement.layers.sweep_state import Batch
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.kept_modules import kept_modules
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import weight_rows
from workers.measurement.program import measure
from workers.measurement.quantization import projection
from workers.measurement.quantization.projection import row_ranges
from workers.measurement.quantization.resolving import resolved
from workers.measurement.runtime.progress import ProgressReporter

TOKEN_IDS = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(5))
DTYPES = ("bfloat16", "float16", "float32")


@pytest.fixture(params=["as the processor has it", "plain"])
def path_of_4_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of bitsandbytes' Linear4bit on a CPU, for what is tested and what it is held against."""
    if request.param == "plain":
        monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: False)


def asked(*schemes: object, **settings: object) -> Analysis:
    return Analysis.model_validate({"schemes": schemes, **settings})


def opened(path: Path, scratch: Path) -> Decoder:
    return load_decoder(open_checkpoint(path), torch.device("cpu"), scratch)


def swept_logits(path: Path, analysis: Analysis, scratch: Path) -> dict[str, torch.Tensor]:
    decoder = opened(path, scratch / "offloaded")
    state = prepare_sweep(
        decoder,
        [Batch(TOKEN_IDS)],
        schemes_for(analysis),
        analysis,
        budget_bytes=2**30,
        directory=scratch / "streams",
        kept=kept_modules(analysis.schemes, decoder),
    )
    for _ in sweep_layers(state):
        pass
    return {name: architectures.swept_logits(state, name) for name in state.streams.names}


def whole_logits(path: Path, scheme: str, **settings: Any) -> torch.Tensor:
    told = configuration(path, scheme, **settings)
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=told).eval()
    with torch.no_grad():
        return model(input_ids=TOKEN_IDS, use_cache=False).logits


def with_biases(model: Path, dtype: str) -> Path:
    """A checkpoint whose biases are not zero, so that the type in which they are added shows."""
    torch.manual_seed(3)
    path = save_checkpoint(model, CONFIGS["gpt_neox"](), getattr(torch, dtype))
    loaded = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape))
    loaded.save_pretrained(path)
    return path


@pytest.mark.usefixtures("path_of_4_bits")
@pytest.mark.parametrize("dtype", DTYPES)
def test_4_bits_compute_in_the_type_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    path = with_biases(tmp_path / "model", dtype)
    analysis = asked("nf4", *(f"{name}:compute_dtype={kind}" for name in ("nf4", "fp4") for kind in DTYPES))
    found = swept_logits(path, analysis, tmp_path)
    for name, kind in itertools.product(("nf4", "fp4"), DTYPES):
        expected = whole_logits(path, name, bnb_4bit_compute_dtype=getattr(torch, kind))
        assert torch.equal(found[f"{name}-compute-dtype-{kind}"], expected), (name, kind)
    assert stored_dtype(path) == getattr(torch, dtype)
    assert torch.equal(found["nf4"], found[f"nf4-compute-dtype-{dtype}"])
    if not bnb.nn.modules.has_avx512bf16():  # whose kernel computes in bfloat16 whatever it is told
        assert len({found[f"nf4-compute-dtype-{kind}"].float().numpy().tobytes() for kind in DTYPES}) == len(DTYPES)


def test_double_quantisation_and_thresholds_are_those_of_the_variant(checkpoints: dict[str, Path], tmp_path: Path):
    path = checkpoints["llama"]
    analysis = asked("nf4:double_quantisation=true", "plain=nf4-dq:double_quantisation=false", "nf4-dq", "int8",
                     "int8:threshold=0", "low=int8:threshold=2.5")  # fmt: skip
    found = swept_logits(path, analysis, tmp_path)
    assert torch.equal(found["nf4-double-quantisation-true"], whole_logits(path, "nf4", bnb_4bit_use_double_quant=True))
    assert torch.equal(found["nf4-double-quantisation-true"], found["nf4-dq"])
    assert torch.equal(found["plain"], whole_logits(path, "nf4"))
    for name, threshold in (("int8", 6.0), ("int8-threshold-0", 0.0), ("low", 2.5)):
        assert torch.equal(found[name], whole_logits(path, "int8", llm_int8_threshold=threshold)), name


# Other block sizes


def scheme_of(text: str, dtype: torch.dtype) -> Scheme:
    return resolved(schemes_for(asked(text))[0], dtype)


def linear(in_features: int, out_features: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    return nn.Linear(in_features, out_features).to(dtype)


def by_hand(original: nn.Linear, block: int, dtype: torch.dtype, *, double: bool) -> Any:
    """Bitsandbytes' Linear4bit with blocks of another size, which Params4bit makes."""
    module = bnb.nn.Linear4bit(
        original.in_features, original.out_features, compute_dtype=dtype, compress_statistics=double, quant_type="nf4"
    )
    module.load_state_dict(original.state_dict())
    module.weight = bnb.nn.Params4bit(
        original.weight.detach().clone(),
        blocksize=block,
        compress_statistics=double,
        quant_type="nf4",
        module=module,
    ).to("cpu")
    return module.eval().requires_grad_(False)


@pytest.mark.usefixtures("path_of_4_bits")
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [32, 64, 128, 256, 512])
def test_blocks_of_another_size_are_those_of_params4bit(
    block: int, dtype: str, double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(projection._RANGE_ELEMENTS, "cpu", 1)
    kind = getattr(torch, dtype)
    original = linear(1024, 96, kind)
    expected = by_hand(original, block, kind, double=double)
    text = f"b=nf4:block_size={block},double_quantisation={'true' if double else 'false'}"
    found = quantize_projection(original, scheme_of(text, kind))
    x = torch.randn(2, 5, 1024, generator=torch.Generator().manual_seed(1)).to(kind)
    with torch.no_grad():
        assert torch.equal(found.module(x), expected(x))
    stored, wanted = found.module.weight.quant_state.as_dict(), expected.weight.quant_state.as_dict()
    assert stored.keys() == wanted.keys()
    assert torch.equal(found.module.weight.data, expected.weight.data)


@pytest.mark.parametrize("block", [32, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize(("in_features", "out_features"), [(192, 96), (40, 301), (33, 70), (1376, 9)])
def test_blocks_that_run_over_rows_are_as_the_format_says(
    in_features: int, out_features: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against numpy: flat blocks, each divided by its largest magnitude, and the nearest of 16 codes."""
    original = linear(in_features, out_features, torch.float32)
    codes = bnb.functional.get_4bit_type("nf4", device="cpu").numpy()
    flat = original.weight.detach().numpy().reshape(-1)
    expected = np.empty_like(flat)
    for start in range(0, len(flat), block):
        values = flat[start : start + block]
        abs_max = np.abs(values).max()
        expected[start : start + block] = codes[np.abs(values[:, None] / abs_max - codes).argmin(axis=1)] * abs_max
    expected = expected.reshape(original.weight.shape)
    whole = quantize_projection(original, scheme_of(f"b=nf4:block_size={block}", torch.float32))
    monkeypatch.setitem(projection._RANGE_ELEMENTS, "cpu", 1)
    pieces = quantize_projection(original, scheme_of(f"b=nf4:block_size={block}", torch.float32))
    assert torch.equal(pieces.module.weight.data, whole.module.weight.data)
    ranges = [*row_ranges(weight_rows(original))]
    assert len(ranges) == -(-out_features // 64)
    weight = torch.cat([pieces.dequantized(rows) for rows in ranges])
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=0)
    x = torch.randn(2, 3, in_features, generator=torch.Generator().manual_seed(1))
    output = x.double() @ torch.from_numpy(expected).double().T + original.bias.double()
    with torch.no_grad():
        found = whole.module(x).numpy()
    packed = whole.path == "cpu, packed for AVX512-BF16"  # which rounds inputs and scales to bfloat16
    np.testing.assert_allclose(found, output.detach().numpy(), rtol=0, atol=0.03 if packed else 1e-5)


# Modules that are kept


def deep_llama(path: Path) -> Path:
    """A Llama of 12 layers, so that names of layers 1 and 11 can be taken for one another."""
    config = CONFIGS["llama"]()
    config.update({"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 64})
    return save_checkpoint(path, config)


def test_a_variant_that_keeps_modules_is_the_model_that_skips_them(tmp_path: Path) -> None:
    path = deep_llama(tmp_path / "model")
    values = [f"model.layers.{layer}.self_attn.v_proj" for layer in range(12)]
    keeping: dict[str, tuple[str, list[str]]] = {
        "a=nf4:keep=attn.v": ("nf4", values),
        "b=nf4:keep=layers.1.mlp.down": ("nf4", ["model.layers.1.mlp.down_proj"]),
        "c=int8:keep=model.layers.11.mlp.gate_proj,keep=layers.0.attn.q": (
            "int8",
            ["model.layers.11.mlp.gate_proj", "model.layers.0.self_attn.q_proj"],
        ),
        "d=nf4:keep=lm_head,keep=layers.3.attn.o,keep=layers.3.attn.o": ("nf4", ["model.layers.3.self_attn.o_proj"]),
    }
    found = swept_logits(path, asked(*keeping, "nf4", "int8"), tmp_path)
    for text, (scheme, modules) in keeping.items():
        expected = whole_logits(path, scheme, llm_int8_skip_modules=["lm_head", *modules])
        assert torch.equal(found[text[0]], expected), text
        assert not torch.equal(found[text[0]], found[scheme]), text


@pytest.mark.parametrize(
    ("architecture", "patterns", "module"),
    [
        ("gpt2", ["attn.q", "attn.k", "attn.v"], "attn.c_attn"),
        ("gpt2", ["mlp.up"], "mlp.c_fc"),
        ("gpt_neox", ["attn.v", "attn.k", "attn.q"], "attention.query_key_value"),
    ],
)
def test_a_fused_module_is_kept_by_all_of_its_components(
    architecture: str, patterns: list[str], module: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = checkpoints[architecture]
    decoder = opened(path, tmp_path / "scratch")
    names = [f"{decoder.prefix}{layer}.{module}" for layer in range(len(decoder.layers))]
    (kept,) = kept_modules(asked({"name": "a", "scheme": "nf4", "keep": patterns}).schemes, decoder).values()
    assert kept == set(names)
    found = swept_logits(path, asked({"name": "a", "scheme": "nf4", "keep": patterns}), tmp_path)
    head = decoder.model.get_output_embeddings()
    names += [name for name, module in decoder.model.named_modules() if module is head]
    assert torch.equal(found["a"], whole_logits(path, "nf4", llm_int8_skip_modules=names))


def test_a_part_of_a_fused_module_is_refused_with_the_group(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    decoder = opened(checkpoints["gpt2"], tmp_path)
    for keep, blamed, layer in ((["attn.v"], "attn.v", 0), (["mlp.up", "layers.1.attn.k"], "layers.1.attn.k", 1)):
        with pytest.raises(BadRequest, match=r"keep all of them \(keep=.*\) or none$") as refused:
            kept_modules(asked({"name": "a", "scheme": "nf4", "keep": keep}).schemes, decoder)
        said = str(refused.value)
        assert said.startswith(f"schemes: a: keep: '{blamed}' is a part of transformer.h.{layer}.attn.c_attn, which")
        assert "computes attn.q, attn.k, attn.v together" in said
        before = "layers.1." if layer else ""
        assert f"(keep={before}attn.q,keep={before}attn.k,keep={before}attn.v)" in said


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("mlp.dwn", "mlp.down"),
        ("layers.4.mlp.down", "layers.3.mlp.down"),
        ("model.layers.3.mlp.down", "model.layers.3.mlp.down_proj"),
        ("mlp", "mlp.up"),
        ("1.mlp.down_proj", "down_proj"),
        (".*", "allowed: "),
    ],
)
def test_an_unknown_module_is_refused_with_the_nearest(
    pattern: str, nearest: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    decoder = opened(checkpoints["llama"], tmp_path)
    given = [{"name": "a", "scheme": "nf4", "keep": ["attn.v", pattern]}]
    if pattern == ".*":
        given[0]["keep"] = ["attn.v", ".-"]
    with pytest.raises(
        BadRequest, match=r"is not a module of the model; allowed: attn\.k, attn\.o, attn\.q"
    ) as refused:
        kept_modules(asked(*given).schemes, decoder)
    assert nearest in str(refused.value)
    assert "after layers.0. to layers.3." in str(refused.value)


# Whole measurements


def measured(path: Path, text: Path, out: Path, **settings: Any) -> Report:
    measure(
        request_for(path, text, sequences=2, sequence_length=16, **settings), out, ProgressReporter(out=io.StringIO())
    )
    return Report.model_validate_json((out / "report.json").read_bytes())


def test_variants_are_measured_side_by_side(
    checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path
) -> None:
    schemes = ["int8", "int8:threshold=0", "nf4", "nf4:compute_dtype=float32", "nf4:block_size=128",
               "nf4:keep=mlp.down", "lossless=int8:threshold=4"]  # fmt: skip
    names = ["int8", "int8-threshold-0", "nf4", "nf4-compute-dtype-float32", "nf4-block-size-128",
             "nf4-keep-mlp-down", "lossless"]  # fmt: skip
    report = measured(checkpoints["llama"], calibration_text, tmp_path / "out", schemes=schemes, int8_threshold=5)
    assert list(report.schemes) == names
    assert [facts.scheme for facts in report.schemes.values()] == [
        "int8", "int8", "nf4", "nf4", "nf4", "nf4", "int8"
    ]  # fmt: skip
    assert [name for name, facts in report.schemes.items() if facts.analysis_only] == ["nf4-block-size-128"]
    four_bits = {"quant_type": "nf4", "block_size": 64, "double_quantisation": False, "compute_dtype": "bfloat16"}
    assert [facts.settings for facts in report.schemes.values()] == [
        {"threshold": 5.0},
        {"threshold": 0.0},
        four_bits,
        four_bits | {"compute_dtype": "float32"},
        four_bits | {"block_size": 128},
        four_bits,
        {"threshold": 4.0},
    ]
    assert [str(variant) for variant in report.analysis.schemes] == schemes
    assert set(report.environment.kernels) == set(names)
    kl = {name: facts.kl_divergence.mean for name, facts in report.schemes.items()}
    assert len({kl[name] for name in ("nf4", "nf4-block-size-128", "nf4-keep-mlp-down")}) == 3
    assert kl["lossless"] != kl["int8-threshold-0"]
    for table in ("errors", "tokens"):
        assert set(pq.read_table(tmp_path / f"out/tables/{table}.parquet")["scheme"].to_pylist()) == set(names)
    heads = pq.read_schema(tmp_path / "out/tables/heads.parquet").names
    assert [name for name in heads if name.startswith("sqnr_db_")] == [f"sqnr_db_{name}" for name in names]


def test_what_is_kept_is_named_and_not_warned_of(
    checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path
) -> None:
    patterns = "keep=mlp.down,keep=layers.2.attn.v,keep=lm_head"
    report = measured(checkpoints["llama"], calibration_text, tmp_path / "out", schemes=["nf4", f"kept=nf4:{patterns}"])
    plain, kept = report.schemes["nf4"], report.schemes["kept"]
    modules = [f"model.layers.{layer}.mlp.down_proj" for layer in range(4)]
    modules.insert(2, "model.layers.2.self_attn.v_proj")
    assert kept.not_quantised == (*plain.not_quantised, *modules)
    assert not [warning for warning in report.warnings if warning.where == "kept"]
    assert plain.quantised_share == 1
    sizes = {"q": 128 * 128, "k": 32 * 128, "v": 32 * 128, "o": 128 * 128, "mlp": 3 * 128 * 192}
    whole = 4 * sum(sizes.values())
    assert kept.quantised_share == pytest.approx(1 - (4 * 128 * 192 + sizes["v"]) / whole)
    saved = (plain.model_bytes, kept.model_bytes)
    bits = 4 + 32 / 64  # codes, and a float32 for every 64 of them
    assert saved[1] - saved[0] == (4 * 128 * 192 + sizes["v"]) * (16 - bits) / 8
    rows = pq.read_table(tmp_path / "out/tables/errors.parquet").to_pylist()
    down = [row for row in rows if row["scheme"] == "kept" and row["component"] == "mlp.down"]
    isolated = [row for row in down if row["mode"] == "isolated"]
    assert len(isolated) == 4
    assert all(row["exact"] and row["weight_error"] is None and row["relative_l2"] == 0 for row in isolated)
    assert all(row["relative_l2"] > 0 for row in down if row["mode"] == "accumulated" and row["port"] == "output")


EVERY = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")


@pytest.mark.parametrize(
    ("patterns", "common", "said"),
    [
        (EVERY, (), "keeps every module that int8 would replace"),
        (EVERY[:3], EVERY[3:], "keeps every module that int8 would replace"),
        (["lm_head"], (), "'lm_head' keeps no module that int8 would replace; allowed: patterns that keep some"),
    ],
)
def test_keeping_everything_or_nothing_is_refused(
    patterns: Sequence[str], common: Sequence[str], said: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    analysis = asked({"name": "all", "scheme": "int8", "keep": patterns}, keep=common)
    with pytest.raises(BadRequest, match=f"^schemes: all: keep: .*{said}"):
        kept_modules(variants_for(analysis), opened(checkpoints["llama"], tmp_path))


def test_what_a_job_keeps_is_kept_under_every_scheme(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    analysis = asked("nf4", "b=int8:keep=layers.1.mlp.down", keep=["attn.v"])
    kept = kept_modules(variants_for(analysis), opened(checkpoints["llama"], tmp_path))
    values = {f"model.layers.{layer}.self_attn.v_proj" for layer in range(4)}
    assert kept == {"nf4": values, "b": values | {"model.layers.1.mlp.down_proj"}}


def test_an_unknown_module_fails_the_measurement_before_it_begins(
    checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path
) -> None:
    told = io.StringIO()
    request = request_for(checkpoints["llama"], calibration_text, schemes=["nf4:keep=mlp.dwn"])
    with pytest.raises(BadRequest, match=r"schemes: nf4-keep-mlp-dwn: keep: 'mlp\.dwn' is not a module"):
        measure(request, tmp_path / "out", ProgressReporter(out=told))
    stages = {json.loads(line).get("stage") for line in told.getvalue().splitlines()}
    assert "sweep" not in stages
    assert not (tmp_path / "out").exists()


def test_a_projection_outside_the_layers_can_be_kept(tmp_path: Path) -> None:
    path = architectures.save_random(tmp_path / "model", architectures.CONFIGS["opt, projected"](), torch.bfloat16)
    found = swept_logits(path, asked("nf4", "kept=nf4:keep=model.decoder.project_in"), tmp_path)
    decoder = opened(path, tmp_path / "again")
    kept = kept_modules(asked("kept=nf4:keep=model.decoder.project_in").schemes, decoder)
    assert kept == {"kept": {"model.decoder.project_in"}}
    skipped = ["lm_head", "model.decoder.project_in"]
    told = configuration(path, "nf4", llm_int8_skip_modules=skipped)
    with torch.no_grad():
        expected = architectures.whole_model(path, told)(input_ids=TOKEN_IDS, use_cache=False).logits
    assert torch.equal(found["kept"], expected)
    assert not torch.equal(found["kept"], found["nf4"])
