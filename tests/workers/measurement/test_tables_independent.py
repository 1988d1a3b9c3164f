"""Every table of a whole measurement against an independent float64 computation from fully captured tensors."""

import io
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import bitsandbytes
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import WholeModel, block, components, error_figures, site_figures
from tiny_models import CONFIGS, request_for
from transformers import AutoTokenizer

from service.contracts.report import Report
from service.contracts.tables import TABLES
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

BIN = 1 / 32
"""Relative width of a histogram bin: the stated error of a quantile."""
FROM_BINS = {"median_abs", "p99_abs", "p99_9_abs", "p99_99_abs"}
SCHEMES = ("int8", "nf4")
NEGATIVE = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
NF4 = torch.tensor([*NEGATIVE, 0.0, *POSITIVE])
"""The 16 codes of 4-bit NormalFloat, after QLoRA (arXiv 2305.14314), appendix E."""


class Measured(NamedTuple):
    architecture: str
    path: Path
    out: Path
    report: Report
    token_ids: torch.Tensor
    whole: dict[str | None, WholeModel]

    def table(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.out / "tables" / f"{name}.parquet").to_pylist()

    @property
    def config(self) -> Any:
        return self.whole[None].model.config

    def site(self, component: str, port: str, layer: int, scheme: str | None = None) -> np.ndarray:
        return self.whole[scheme].site(self.architecture, layer, component, port)


@pytest.fixture(scope="module", params=CONFIGS)
def measured(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Path],
    calibration_text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Measured:
    path, out = checkpoints[request.param], tmp_path_factory.mktemp("measured") / request.param
    measure(request_for(path, calibration_text), out, ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((out / "report.json").read_bytes())
    rows = pq.read_table(out / "tables/tokens.parquet", filters=[("scheme", "==", "int8")])
    token_ids = torch.tensor(rows["token_id"].to_pylist()).view(report.calibration.sequences, -1)
    whole = {scheme: WholeModel(path, token_ids, scheme) for scheme in (None, *SCHEMES)}
    return Measured(request.param, path, out, report, token_ids, whole)


def test_the_tokens_are_the_texts(measured: Measured, calibration_text: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(measured.path)
    text = tokenizer(calibration_text.read_text(), add_special_tokens=False).input_ids
    adds_bos = measured.architecture == "llama"
    assert measured.report.calibration.adds_bos is adds_bos
    assert measured.token_ids.shape == (5, 48)
    length = 48 - adds_bos
    windows = {tuple(text[i : i + length]) for i in range(0, len(text) - length + 1, length)}
    for row in measured.token_ids.tolist():
        assert tuple(row[adds_bos:]) in windows
        assert (row[0] == tokenizer.bos_token_id) or not adds_bos
    assert len({tuple(row) for row in measured.token_ids.tolist()}) == 5


def test_sites(measured: Measured) -> None:
    rows = measured.table("sites")
    layers = measured.report.model.layers
    inputs = {"attn.q", "attn.o", "mlp.up", "mlp.down"}
    outputs = set(components(measured.architecture, 0, measured.config)) | {"block"}
    wanted = {(i, c, "input") for i in range(layers) for c in inputs}
    wanted |= {(i, c, "output") for i in range(layers) for c in outputs}
    assert {(r["layer"], r["component"], r["port"]) for r in rows} == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        figures = site_figures(measured.site(row["component"], row["port"], row["layer"]))
        for name, value in figures.items():
            # range_bits is the logarithm of a figure that is off by one bin at the most.
            tolerance = {"max_to_median": {"rel": BIN}, "range_bits": {"abs": math.log2(1 + BIN)}}.get(
                name, {"rel": BIN} if name in FROM_BINS else {"rel": 1e-9, "abs": 1e-12}
            )
            assert row[name] == pytest.approx(value, **tolerance), (row["layer"], row["component"], row["port"], name)


def test_channels(measured: Measured) -> None:
    rows = pq.read_table(measured.out / "tables/channels.parquet").to_pydict()
    places = list(zip(rows["layer"], rows["component"], rows["port"], strict=True))
    for place in dict.fromkeys(places):
        x = measured.site(place[1], place[2], place[0]).astype(np.float64).reshape(measured.token_ids.numel(), -1)
        at = [i for i, p in enumerate(places) if p == place]
        expected = {
            "channel": np.arange(x.shape[1]),
            "min": x.min(axis=0),
            "max": x.max(axis=0),
            "abs_max": np.abs(x).max(axis=0),
            "mean": x.mean(axis=0),
            "variance": x.var(axis=0),
            "over_threshold": (np.abs(x) >= 6.0).sum(axis=0),
        }
        for name, values in expected.items():
            found = np.array([rows[name][i] for i in at])
            np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12, err_msg=f"{place} {name}")


def test_histograms(measured: Measured) -> None:
    rows = measured.table("histograms")
    places = {(r["layer"], r["component"], r["port"]) for r in rows}
    assert places == {(r["layer"], r["component"], r["port"]) for r in measured.table("sites")}
    for layer, component, port in places:
        values = np.sort(measured.site(component, port, layer), axis=None)
        bins = [r for r in rows if (r["layer"], r["component"], r["port"]) == (layer, component, port)]
        assert sum(r["count"] for r in bins) == values.size
        for low, high in itertools.pairwise(bins):
            assert low["bin_high"] < high["bin_low"] or low["bin_high"] == high["bin_low"] == 0
        for r in bins:
            inside = np.searchsorted(values, r["bin_high"], "right") - np.searchsorted(values, r["bin_low"], "left")
            assert inside == r["count"] > 0
            smaller, larger = sorted((abs(r["bin_low"]), abs(r["bin_high"])))
            assert larger <= smaller * (1 + BIN) or smaller < np.finfo(np.float32).tiny


def test_errors(measured: Measured) -> None:
    rows = measured.table("errors")
    assert {(r["scheme"], r["mode"]) for r in rows} == {(s, m) for s in SCHEMES for m in ("isolated", "accumulated")}
    sites = {(r["layer"], r["component"], r["port"]) for r in measured.table("sites")}
    for scheme in SCHEMES:
        found = {(r["layer"], r["component"], r["port"], r["mode"]) for r in rows if r["scheme"] == scheme}
        isolated = {(*s, "isolated") for s in sites if s[2] == "output" and s[1] != "block"}
        assert found == {(*s, "accumulated") for s in sites} | isolated
    for row in rows:
        place = (row["component"], row["port"], row["layer"])
        y = measured.site(*place)
        if row["mode"] == "accumulated":
            q = measured.site(*place, row["scheme"])
            assert row["weight_error"] is None
        else:
            q = isolated_output(measured, row)
            assert row["weight_error"] == pytest.approx(weight_error(measured, row), rel=1e-6)
        assert row["exact"] is bool((y == q).all())
        if not row["exact"]:
            for name, value in error_figures(y, q).items():
                assert row[name] == pytest.approx(value, rel=1e-8, abs=1e-13), (row, name)
        if row["mode"] == "accumulated" and place[:2] == ("block", "output") and not row["exact"]:
            assert row["sqnr_db_typical"] == pytest.approx(row["sqnr_db"], rel=1e-9)  # no dimension is massive here
        else:
            assert row["sqnr_db_typical"] is None


def test_columns_that_int8_computes_in_16_bits(measured: Measured) -> None:
    rows = measured.table("fp16_columns")
    layers = range(measured.report.model.layers)
    names = {(i, c) for i in layers for c in components(measured.architecture, i, measured.config)}
    assert {(r["scheme"], r["layer"], r["component"]) for r in rows} == {("int8", *name) for name in names}
    for row in rows:
        name, _ = components(measured.architecture, row["layer"], measured.config)[row["component"]]
        shares = [outlier_shares(measured.whole[None].inputs[name], n) for n in range(len(measured.token_ids))]
        assert (row["prefill"], row["decode"]) == pytest.approx(tuple(np.mean(shares, axis=0)))
    facts = measured.report.schemes["int8"].fp16_columns
    assert facts is not None
    assert facts.prefill == pytest.approx(np.mean([r["prefill"] for r in rows]))
    assert facts.decode == pytest.approx(np.mean([r["decode"] for r in rows]))
    assert facts.largest.prefill == max(r["prefill"] for r in rows)
    assert facts.components.keys() == {component for _, component in names}
    for component, share in facts.components.items():
        assert share == pytest.approx(np.mean([r["prefill"] for r in rows if r["component"] == component]))
    assert measured.report.schemes["nf4"].fp16_columns is None


def outlier_shares(x: torch.Tensor, sequence: int) -> tuple[float, float]:
    """The share of the columns that bitsandbytes takes out of a call of a sequence, and of calls of its tokens."""
    tokens = x.view(len(x), -1, x.shape[-1])[sequence].half()

    def share(call: torch.Tensor) -> float:
        _, _, columns = bitsandbytes.functional.int8_vectorwise_quant(call.clone(), threshold=6.0)
        return (0 if columns is None else len(columns)) / x.shape[-1]

    return share(tokens), float(np.mean([share(token[None]) for token in tokens]))


def isolated_output(measured: Measured, row: dict[str, Any]) -> np.ndarray:
    name, part = components(measured.architecture, row["layer"], measured.config)[row["component"]]
    module = measured.whole[row["scheme"]].model.get_submodule(name)
    with torch.no_grad():
        return part(module(measured.whole[None].inputs[name])).float().numpy()


def weight_error(measured: Measured, row: dict[str, Any]) -> float:
    """By the formulas of the real kernels, from the checkpoint's weights alone."""
    name, part = components(measured.architecture, row["layer"], measured.config)[row["component"]]
    module = measured.whole[None].model.get_submodule(name)
    weight = module.weight.detach().T if type(module).__name__ == "Conv1D" else module.weight.detach()
    if row["scheme"] == "int8":
        w = weight.half().float()
        scale = w.abs().amax(dim=1, keepdim=True) / 127
        stands_for = torch.round(w / scale) * scale
    else:
        blocks = weight.float().reshape(-1, 64)
        scale = blocks.abs().amax(dim=1, keepdim=True)
        nearest = (blocks / scale).unsqueeze(-1).sub(NF4).abs().argmin(dim=-1)
        stands_for = (NF4[nearest] * scale).to(weight.dtype).float().reshape(weight.shape)
    # `part` divides the last axis; the output channels are the weight's first.
    y, q = (part(w.double().T).numpy() for w in (weight, stands_for))
    return float(np.sqrt(((y - q) ** 2).sum() / (y**2).sum()))


def test_predictions(measured: Measured) -> None:
    ids = measured.token_ids
    following = ids[:, 1:].unsqueeze(-1)
    log_p = torch.log_softmax(measured.whole[None].logits.float().double(), dim=-1)[:, :-1]
    nll_p = -log_p.gather(-1, following).squeeze(-1)
    n = nll_p.numel()
    reference = measured.report.reference.perplexity
    assert reference is not None
    # The head's matrix product is chunked by positions here and whole there: the same up to its rounding in bf16.
    assert reference.value == pytest.approx(nll_p.mean().exp().item(), rel=1e-3)
    assert reference.scored_tokens == n
    for scheme in SCHEMES:
        facts = measured.report.schemes[scheme]
        log_q = torch.log_softmax(measured.whole[scheme].logits.float().double(), dim=-1)[:, :-1]
        nll_q = -log_q.gather(-1, following).squeeze(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        rows = [r for r in measured.table("tokens") if r["scheme"] == scheme]
        assert [(r["sequence"], r["position"], r["token_id"]) for r in rows] == [
            (s, p, int(ids[s, p])) for s in range(ids.shape[0]) for p in range(ids.shape[1])
        ]
        assert all((r["kl_divergence"] is None) == (r["position"] == ids.shape[1] - 1) for r in rows)
        scored = [r for r in rows if r["kl_divergence"] is not None]
        np.testing.assert_allclose([r["nll_scheme"] for r in scored], nll_q.flatten(), rtol=1e-2)
        np.testing.assert_allclose([r["kl_divergence"] for r in scored], kl.flatten(), rtol=0.05, atol=2e-5)
        assert facts.kl_divergence is not None
        assert facts.kl_divergence.mean == pytest.approx(kl.mean().item(), rel=0.05, abs=1e-6)
        check_summaries(facts, scored)


def check_summaries(facts: Any, scored: list[dict[str, Any]]) -> None:
    """The report's summaries follow from the rows of its own `tokens` table."""
    kl = np.array([r["kl_divergence"] for r in scored])
    p, q = (np.array([r[name] for r in scored]) for name in ("nll_reference", "nll_scheme"))
    n = len(scored)
    assert facts.perplexity.value == pytest.approx(np.exp(q.mean()))
    assert facts.perplexity_ratio.value == pytest.approx(np.exp(q.mean()) / np.exp(p.mean()))
    assert facts.kl_divergence.mean == pytest.approx(kl.mean())
    same = np.array([r["same_top"] for r in scored], float)
    for figure, values, factor in (
        (facts.perplexity, q, np.exp(q.mean())),
        (facts.perplexity_ratio, q - p, np.exp((q - p).mean())),
        (facts.kl_divergence, kl, 1.0),
        (facts.same_top_token, same, 1.0),
    ):
        assert figure.standard_error == pytest.approx(factor * block_error(values))
        assert (figure.units, figure.unit_count, figure.degrees_of_freedom) == ("blocks", 10, 9)
    ordered = np.sort(kl)
    for name, f in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99_9", 0.999)):
        rank = f * (n - 1)
        below = math.floor(rank)
        expected = ordered[below] + (rank - below) * (ordered[min(below + 1, n - 1)] - ordered[below])
        assert getattr(facts.kl_divergence, name) == pytest.approx(expected)
    assert facts.kl_divergence.max == ordered[-1]
    assert facts.same_top_token.value == pytest.approx(same.mean())
    change = np.exp(-q) - np.exp(-p)
    assert facts.delta_p.mean == pytest.approx(change.mean())
    assert facts.delta_p.rms == pytest.approx(np.sqrt((change**2).mean()))


def block_error(values: np.ndarray) -> float:
    """Standard error of the mean over 5 sequences of 47 positions, each in 2 blocks."""
    blocks = [part for one in values.reshape(5, 47) for part in (one[:23], one[23:])]
    sums, counts = np.array([part.sum() for part in blocks]), np.array([len(part) for part in blocks])
    return math.sqrt(10 / 9 * ((sums - counts * values.mean()) ** 2).sum()) / len(values)


def test_profile(measured: Measured) -> None:
    last = measured.report.model.layers - 1
    x = np.abs(measured.site("block", "output", last).astype(np.float64))
    ratios = x.max(axis=-1) / np.median(x, axis=-1)
    sequence, position = np.unravel_index(ratios.argmax(), ratios.shape)
    facts = measured.report.profile
    assert (facts.layer, facts.sequence, facts.position) == (last, sequence, position)
    assert facts.token_id == int(measured.token_ids[sequence, position])
    vector = measured.site("block", "output", last)[sequence, position]
    rows = measured.table("profile")
    assert [r["dimension"] for r in rows] == list(range(vector.size))
    assert [r["value"] for r in rows] == vector.tolist()
    assert facts.max_to_median == pytest.approx(ratios.max())
    assert facts.median_abs == pytest.approx(np.median(np.abs(vector)))
    v = vector.astype(np.float64)
    assert facts.kurtosis == pytest.approx(((v - v.mean()) ** 4).mean() / v.var() ** 2)


def test_model_sizes(measured: Measured) -> None:
    whole = measured.whole[None].model
    facts = measured.report.model
    assert facts.parameters == sum(p.numel() for p in whole.parameters())
    assert facts.weight_bytes == 2 * facts.parameters
    matrices = [
        p.numel() for n, p in whole.named_parameters() if p.ndim == 2 and block(measured.architecture, 0)[:-1] in n
    ]
    rows = {
        n: m.weight.shape[1 if type(m).__name__ == "Conv1D" else 0]
        for n, m in whole.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and block(measured.architecture, 0)[:-1] in n
    }
    kept = facts.weight_bytes - 2 * sum(matrices)
    assert measured.report.schemes["int8"].model_bytes == kept + sum(matrices) + 4 * sum(rows.values())
    assert measured.report.schemes["nf4"].model_bytes == kept + sum(m // 2 + 4 * m // 64 for m in matrices)
    outside = {
        p.data_ptr(): 2 * p.numel()
        for n, p in whole.named_parameters()
        if p.ndim == 2 and block(measured.architecture, 0)[:-1] not in n
    }
    for scheme in measured.report.schemes.values():
        assert scheme.not_quantised_bytes == sum(outside.values())


def test_every_table_has_the_contracts_columns(measured: Measured) -> None:
    files = {file.name for file in (measured.out / "tables").iterdir()}
    assert files == {f"{name}.parquet" for name in TABLES}
    for name, table in TABLES.items():
        schema = pq.read_schema(measured.out / "tables" / f"{name}.parquet")
        assert [(f.name, str(f.type)) for f in schema] == [
            (c.name, {"float32": "float", "float64": "double"}.get(c.type, c.type)) for c in table.columns_for(SCHEMES)
        ]
