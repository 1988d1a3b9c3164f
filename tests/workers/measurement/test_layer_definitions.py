"""Definitions that look at one layer, and heads, against independent computations on a model that has all of them."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from device_twin import copies_from_device
from oracle import WholeModel, head_figures, layerwise, massive
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, request_for, save_checkpoint

from service.contracts.report import Report
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.statistics.outliers.layerwise import median_quantile_dimensions, variance_dimensions
from workers.measurement.statistics.outliers.massive import Limits, MassiveActivation, massive_activations
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.transfers import HostCopies

LAYERS, HEADS = 4, 8
SCHEMES = ("int8", "nf4")
LIMITS = {"massive": {"magnitude": 20.0, "ratio": 50.0}, "heads": {"relative_peak": 6.0, "damaged_sqnr_db": 10.0}}


class Outlying(NamedTuple):
    out: Path
    report: Report
    token_ids: np.ndarray
    whole: dict[str | None, WholeModel]
    weights: dict[str, torch.Tensor]

    def rows(self, table: str) -> list[dict[str, Any]]:
        return pq.read_table(self.out / "tables" / f"{table}.parquet").to_pylist()

    def block(self, layer: int) -> np.ndarray:
        return self.whole[None].outputs[f"model.layers.{layer}"].float().numpy()

    def z(self, layer: int, scheme: str | None = None) -> np.ndarray:
        return self.whole[scheme].inputs[f"model.layers.{layer}.self_attn.o_proj"].float().numpy()


@pytest.fixture(scope="module")
def outlying(calibration_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outlying:
    """A Llama with a strong BOS token, a loud residual channel and a loud value channel."""
    root = tmp_path_factory.mktemp("outlying")
    path = save_checkpoint(root / "model", CONFIGS["llama"](), adds_bos=True)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][0, 17] = 400.0
    weights["model.embed_tokens.weight"][5:60, 40] += 12.0
    weights["model.layers.1.mlp.down_proj.weight"][90] *= 60.0
    weights["model.layers.2.self_attn.v_proj.weight"][20] *= 12.0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    measure(request_for(path, calibration_text, **LIMITS), root / "out", ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((root / "out/report.json").read_bytes())
    ids = pq.read_table(root / "out/tables/tokens.parquet", filters=[("scheme", "==", "int8")])["token_id"].to_numpy()
    token_ids = torch.from_numpy(ids.reshape(report.calibration.sequences, -1).copy())
    whole = {scheme: WholeModel(path, token_ids, scheme) for scheme in (None, *SCHEMES)}
    return Outlying(root / "out", report, token_ids.numpy(), whole, weights)


def test_massive_activations(outlying: Outlying) -> None:
    rows = outlying.rows("massive_activations")
    limits = outlying.report.analysis.massive
    expected = {
        (layer, *place): ratios
        for layer in range(LAYERS)
        for place, ratios in massive(outlying.block(layer), limits.magnitude, limits.ratio).items()
    }
    assert len(expected) > 5
    assert {(r["layer"], r["sequence"], r["position"], r["dimension"]) for r in rows} == set(expected)
    for r in rows:
        place = (r["layer"], r["sequence"], r["position"], r["dimension"])
        assert (r["ratio_tensor"], r["ratio_token"]) == pytest.approx(expected[place], rel=1e-6)
        assert r["value"] == outlying.block(place[0])[place[1:]]
        assert r["token_id"] == outlying.token_ids[place[1], place[2]]
    assert {r["token"] for r in rows if r["token_id"] == 0} == {"<s>"}
    magnitudes = [abs(r["value"]) for r in rows]
    assert magnitudes == sorted(magnitudes, reverse=True)
    summary = outlying.report.massive_activations
    assert [m.model_dump() for m in summary] == rows[:100]


def test_dimensions_by_layer(outlying: Outlying) -> None:
    rows = [r for r in outlying.rows("outlier_dimensions") if r["layer"] is not None]
    limits = outlying.report.analysis.massive
    seen = set()
    for layer in range(LAYERS):
        x = outlying.block(layer)
        expected = layerwise(x)
        found = massive(x, limits.magnitude, limits.ratio)
        expected["massive_tensor"] = sorted({j for (_, _, j), (a, _) in found.items() if a >= limits.ratio})
        expected["massive_token"] = sorted({j for (_, _, j), (_, b) in found.items() if b >= limits.ratio})
        for definition, dimensions in expected.items():
            here = [r for r in rows if (r["definition"], r["layer"]) == (definition, layer)]
            assert [r["dimension"] for r in here] == dimensions, (definition, layer)
            seen |= {definition} if dimensions else set()
            for r in here:
                assert r["abs_max"] == np.abs(x[..., r["dimension"]]).max()
    assert seen == {"median_quantile", "variance", "massive_tensor", "massive_token"}


def test_dimensions_over_all_layers(outlying: Outlying) -> None:
    rows = outlying.rows("outlier_dimensions")
    for definition in ("median_quantile", "variance", "massive_tensor", "massive_token"):
        by_layer = [r for r in rows if r["definition"] == definition and r["layer"] is not None]
        overall = {
            j: (
                len([r for r in by_layer if r["dimension"] == j]) / LAYERS,
                max(r["abs_max"] for r in by_layer if r["dimension"] == j),
            )
            for j in {r["dimension"] for r in by_layer}
        }
        stated = getattr(outlying.report.outliers, definition).dimensions
        assert {d.dimension: (d.layers_fraction, d.abs_max) for d in stated} == overall
        whole = [r for r in rows if r["definition"] == definition and r["layer"] is None]
        assert {r["dimension"]: (r["layers_fraction"], r["abs_max"]) for r in whole} == overall


def test_heads(outlying: Outlying) -> None:
    rows = outlying.rows("heads")
    assert [(r["layer"], r["head"]) for r in rows] == [(i, h) for i in range(LAYERS) for h in range(HEADS)]
    limits = outlying.report.analysis.heads
    for layer in range(LAYERS):
        here = rows[layer * HEADS : (layer + 1) * HEADS]
        for row, figures in zip(here, head_figures(outlying.z(layer), HEADS), strict=True):
            for name, figure in figures.items():
                assert row[name] == pytest.approx(figure, rel=1e-9), name
            assert row["predicted_peak"] is row["predicted_outlier"] is None
            assert row["measured_outlier"] is (row["relative_peak"] >= limits.relative_peak)
            for scheme in SCHEMES:
                y, q = (
                    np.split(z.astype(np.float64), HEADS, axis=-1)[row["head"]]
                    for z in (outlying.z(layer), outlying.z(layer, scheme))
                )
                sqnr = 10 * math.log10((y**2).sum() / ((y - q) ** 2).sum())
                assert row[f"sqnr_db_{scheme}"] == pytest.approx(sqnr, rel=1e-5)
    facts = outlying.report.heads
    assert facts.heads == LAYERS * HEADS
    assert facts.measured_outliers == sum(r["measured_outlier"] for r in rows) > 0
    for scheme in SCHEMES:
        damaged = [r for r in rows if r[f"sqnr_db_{scheme}"] is not None and r[f"sqnr_db_{scheme}"] < 10]
        assert facts.schemes[scheme].damaged == len(damaged)
        assert facts.schemes[scheme].damaged_outliers == sum(r["measured_outlier"] for r in damaged)
    assert 0 < facts.schemes["nf4"].damaged < facts.heads
    assert facts.schemes["nf4"].damaged_outliers > 0


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_median_quantile_against_sorting(tokens: int, quantile: float) -> None:
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, 30)).astype(np.float32)
    x[:, 4] *= 30
    x[:, 9] = np.round(x[:, 9])  # ties and zeros
    x[:, 14] += 2.5  # about as large as the higher quantiles
    x[0, 20] = 1e4  # one token alone
    parts = [torch.from_numpy(part) for part in np.array_split(x, min(3, tokens))]
    statistics = SiteStatistics(30, threshold=6.0)
    for part in parts:
        statistics.add(part.numpy())
    expected = np.flatnonzero(np.median(np.abs(x), axis=0) > np.quantile(np.abs(x.astype(np.float64)), quantile))
    channels = statistics.channels()
    mean_square = channels.variance + channels.mean**2
    found = median_quantile_dimensions(lambda: parts, statistics.histogram, mean_square, quantile)
    assert found == expected.tolist()


def test_median_quantile_leaves_out_what_is_not_finite() -> None:
    x = np.random.default_rng(3).standard_normal((40, 30)).astype(np.float32)
    x[:, 4] += 30
    x[:24, 4] = np.nan  # most of a large dimension
    x[:24, 7] = np.inf  # most of a usual one
    x[:, 9] = np.nan
    statistics = SiteStatistics(30, threshold=6.0)
    statistics.add(x)
    channels = statistics.channels()
    parts = [torch.from_numpy(part) for part in np.split(x, 2)]
    found = median_quantile_dimensions(
        lambda: parts, statistics.histogram, channels.variance + channels.mean**2, quantile=0.9
    )
    known = np.where(np.isfinite(x), np.abs(x.astype(np.float64)), np.nan)
    medians = np.nanmedian(np.delete(known, 9, axis=1), axis=0)
    assert found == [4]
    assert np.flatnonzero(medians > np.nanquantile(known, 0.9)).tolist() == found


def test_variance_of_silence_flags_nothing() -> None:
    assert variance_dimensions(np.zeros(5), 5.0) == []
    assert variance_dimensions(np.full(5, np.nan), 5.0) == []
    assert variance_dimensions(np.array([0.0, 0, 0, 0, 0, 0, 0, 1]), 5.0) == [7]


def massive_values(
    x: torch.Tensor, peaks: np.ndarray, magnitude: float, ratio: float, copies: HostCopies | None = None
) -> list[MassiveActivation]:
    """Return the massive activations of x [S, d]."""
    copies = copies or HostCopies()
    found: list[list[MassiveActivation]] = []
    massive_activations(x, peaks, Limits(magnitude, ratio), copies, found.append)
    copies.finish()
    (activations,) = found
    return activations


def test_massive_activations_at_their_edges() -> None:
    x = torch.zeros(2, 6)
    x[0, 2], x[1, 3], x[1, 0] = 150.0, float("nan"), 100.0
    token_abs_max = np.array([150, 100], np.float32)
    (found,) = massive_values(x, token_abs_max, 100.0, 1000.0)
    assert (found.position, found.dimension, found.value) == (0, 2, 150.0)
    assert found.ratio_tensor is found.ratio_token is None
    assert found.massive_tensor
    assert found.massive_token


def massive_one_by_one(x: np.ndarray, magnitude: float, ratio: float) -> dict[tuple[int, int], tuple[bool, bool]]:
    """Return whether each value of [S, d] over the magnitude is massive by either median; those that are by one."""
    known = np.where(np.isfinite(x), np.abs(x.astype(np.float64)), np.nan)
    of_all = np.nanmedian(known)
    found = {}
    for s, j in zip(*np.nonzero(known > magnitude), strict=True):
        by = (bool(known[s, j] >= ratio * of_all), bool(known[s, j] >= ratio * np.nanmedian(known[s])))
        if any(by):
            found[int(s), int(j)] = by
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [7, 64])
@pytest.mark.parametrize("scale", [0.1, 30.0], ids=["quiet", "loud everywhere"])
def test_massive_activations_are_those_of_each_value_by_itself(
    dtype: torch.dtype, width: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(width)
    x = scale * torch.randn(21, width, generator=generator)
    x[3, 5], x[3, 6], x[4, 0], x[9] = 40 * scale, -5000 * scale, 900 * scale, 0
    x[9, 1], x[11, 2] = 1000 * scale, torch.inf  # the only value of its token, and one that is none
    x[12], x[12, 0], x[13] = torch.nan, 800 * scale, 500 * scale  # likewise, and a token that is loud as a whole
    x = x.to(dtype)
    narrow = x.float().numpy()
    peaks = np.where(np.isfinite(narrow), np.abs(narrow), 0).max(axis=1)
    for ratio in (1e-30, 1.0, 300.0, 1e300):
        found = massive_values(x, peaks, scale, ratio)
        assert massive_values(x, peaks, scale, ratio, copies_from_device(monkeypatch)) == found
        wanted = massive_one_by_one(narrow, scale, ratio)
        assert {(m.position, m.dimension): (m.massive_tensor, m.massive_token) for m in found} == wanted
        assert len(found) == len(wanted)
    (of_loudest,) = (m for m in massive_values(x, peaks, scale, 300.0) if (m.position, m.dimension) == (4, 0))
    known = np.abs(narrow[np.isfinite(narrow)].astype(np.float64))
    assert of_loudest.ratio_tensor == pytest.approx(abs(of_loudest.value) / np.median(known), rel=1e-12)
    assert of_loudest.ratio_token == pytest.approx(
        abs(of_loudest.value) / np.median(np.abs(narrow[4].astype(np.float64))), rel=1e-12
    )
