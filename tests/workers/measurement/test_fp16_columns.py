"""The columns that int8 computes in 16 bits, against bitsandbytes' own search for them; typical errors of a stream.

N sequences of S tokens, d columns
"""

import io
import warnings
from pathlib import Path

import bitsandbytes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from device_twin import copies_from_device
from oracle import WholeModel
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, request_for, save_checkpoint

from service.contracts.report import Fp16ColumnFacts, LargestShare, Report
from service.contracts.schemes import SCHEMES
from service.contracts.tables import TABLES
from workers.measurement.layers.int8_columns import Int8Columns
from workers.measurement.layers.sites import Site
from workers.measurement.models.projections import Projection
from workers.measurement.program import measure
from workers.measurement.results.assembly import with_typical
from workers.measurement.results.report_warnings import warn_fp16_columns
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.table_writer import TableRows
from workers.measurement.statistics.deviation import ChannelErrors, sqnr_without
from workers.measurement.statistics.fp16_columns import Fp16Columns, reaching, reaching_in_fp16
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.transfers import HostCopies

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
THRESHOLDS = (6.0, 4.0, 4.001, 2.718281828, 1e-9, 0.3, 65504.0, 65519.0, 70000.0)


def columns_of(call: torch.Tensor, threshold: float) -> list[int]:
    """The columns that bitsandbytes takes out of a call [T, d]."""
    _, _, columns = bitsandbytes.functional.int8_vectorwise_quant(call.half(), threshold=threshold)
    return [] if columns is None else columns.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_smallest_value_that_is_over_a_threshold(threshold: float, dtype: torch.dtype) -> None:
    limit = reaching_in_fp16(threshold, dtype)
    near = torch.tensor(min(max(limit, threshold), 65000.0)) * (1 + torch.linspace(-0.01, 0.01, 20001))
    near = torch.cat([near, torch.tensor([0.0, 65000.0, 65504.0])]).to(dtype)
    near = torch.cat(
        [near, near[near > 0].view(torch.int32 if dtype == torch.float32 else torch.int16).sub(1).view(dtype)]
    )
    assert torch.equal(near.float() >= limit, near.half().abs() >= threshold)
    assert columns_of(near[None], threshold) == (near.float() >= limit).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_magnitude_is_rounded_up_to_what_a_type_holds(dtype: torch.dtype) -> None:
    for magnitude in (6.0, 5.99999, 0.1, 3.1e-5):
        found = reaching(magnitude, dtype)
        assert torch.tensor(found).to(dtype).item() == found >= np.float32(magnitude)
        below = torch.nextafter(torch.tensor(found, dtype=dtype), torch.tensor(0, dtype=dtype)).item()
        assert below < np.float32(magnitude)


def projection(name: str, component: str, *, shares: str | None = None) -> Projection:
    return Projection(name, {component: slice(None)}, shares or component, quantized=True)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shares_are_those_of_bitsandbytes(dtype: torch.dtype, on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copies_from_device(monkeypatch) if on_device else HostCopies()
    columns = Int8Columns(6.0, copies)
    parts = [projection("q", "attn.q"), projection("k", "attn.k", shares="attn.q"), projection("down", "mlp.down")]
    variants = {
        str(threshold): SCHEMES["int8"].model_copy(update={"settings": {"threshold": threshold}})
        for threshold in (6.0, 4.001, 0.0)
    }
    found = {name: columns.watch(scheme, parts, {"down"}) for name, scheme in variants.items()}
    assert columns.watch(SCHEMES["nf4"], parts, ()) == {}
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(2, 9, 50, generator=generator) * 2 for _ in range(3)]
    x[1][0, 3, :7] = torch.tensor([5.9985, 4.0005, 4.001, 3.9995, 65504.0, -6.0, 6.0])
    statistics = SiteStatistics(50, 6.0, copies)
    for batch in x:
        over = statistics.add(batch.to(dtype))
        columns.add(Site("attn.q", "input"), batch.to(dtype), over)
        columns.add(Site("mlp.up", "input"), batch.to(dtype), over)  # which enters nothing that is replaced
        copies.next_batch()
    calls = [sequence for batch in x for sequence in batch.to(dtype)]
    for name, by_component in found.items():
        assert set(by_component) == {"attn.q", "attn.k"}
        assert by_component["attn.q"] is by_component["attn.k"]
        threshold = float(name)
        prefill = np.mean([len(columns_of(call, threshold)) / 50 for call in calls])
        decode = np.mean([len(columns_of(token[None], threshold)) / 50 for call in calls for token in call])
        assert by_component["attn.q"].prefill == pytest.approx(prefill)
        assert by_component["attn.q"].decode == pytest.approx(decode)
    assert found["6.0"]["attn.q"].prefill > 0 == found["0.0"]["attn.q"].prefill


def test_an_input_that_never_came_has_no_share() -> None:
    assert np.isnan([Fp16Columns().prefill, Fp16Columns().decode]).all()


def test_a_warning_names_components_from_a_fifth_on() -> None:
    reporter = ProgressReporter(out=io.StringIO())
    largest = LargestShare(layer=1, component="attn.q", prefill=0.9)
    shares = {"attn.q": 0.4949, "attn.o": 0.2, "mlp.up": 0.1999}
    few = Fp16ColumnFacts(prefill=0.1, decode=0.0, components={"attn.q": 0.19}, largest=largest)
    many = few.model_copy(update={"components": shares})
    warn_fp16_columns({"lossless": few, "int8": many}, {"lossless": 4.0, "int8": 6.0}, reporter)
    (warning,) = reporter.warnings
    assert (warning.code, warning.where) == ("fp16-columns", "int8")
    assert warning.message == (
        "int8 computes 49% of attn.q's, 20% of attn.o's input columns in 16 bits. int8 is hardly faster "
        "than 16 bits there."
    )
    assert warning.advice == (
        "Rerun with a threshold over 6, which costs some accuracy, or keep these modules in 16 bits with "
        "keep=attn.q,keep=attn.o."
    )


# The residual stream without its massive dimensions


def test_sums_by_dimension_leave_out_what_they_are_told() -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((2, 30, 12)).astype(np.float32)
    y[:, 0, 4] = 30000
    q = (y + 0.01 * rng.standard_normal(y.shape)).astype(np.float32)
    errors = ChannelErrors()
    for part in (0, 1):
        errors.add(torch.from_numpy(y[part : part + 1]), torch.from_numpy(q[part : part + 1]))
    sums = errors.sums()
    for left_out in ((), (4,), (0, 4, 11)):
        a, b = (np.delete(part.astype(np.float64), left_out, axis=-1) for part in (y, q))
        wanted = 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())
        assert sqnr_without(sums, left_out) == pytest.approx(wanted, rel=1e-12)
    assert sqnr_without(sums, range(12)) is None
    exact = ChannelErrors()
    exact.add(torch.from_numpy(y), torch.from_numpy(y))
    assert sqnr_without(exact.sums(), (4,)) is None
    assert ChannelErrors().sums().shape == (2, 0)


def test_only_the_accumulated_stream_has_a_typical_error() -> None:
    rows = TableRows(TABLES["errors"], ())
    places = [("int8", "accumulated", "block"), ("int8", "accumulated", "attn.q"), ("int8", "isolated", "block"),
              ("nf4", "accumulated", "block")]  # fmt: skip
    rows.append_rows([{"scheme": s, "mode": m, "component": c, "port": "output", "layer": 0} for s, m, c in places])
    table = with_typical(rows.collected(), {"int8": np.array([[100.0, 1e9], [1.0, 0.0]])}, {1})
    assert table["sqnr_db_typical"].to_pylist() == [pytest.approx(20.0), None, None, None]
    assert table.schema == rows.schema
    assert isinstance(table, pa.Table)


def test_a_massive_dimension_is_left_out_in_every_layer(calibration_text: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model", CONFIGS["llama"]())
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 31] = 0.0
    weights["model.layers.1.mlp.down_proj.weight"][31] = 4e5  # massive from layer 1 on, and of nothing before
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    measure(request_for(path, calibration_text, schemes=["nf4"]), tmp_path / "out", ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((tmp_path / "out/report.json").read_bytes())
    massive = {d.dimension for of in (report.outliers.massive_tensor, report.outliers.massive_token)
               for d in of.dimensions}  # fmt: skip
    assert massive == {31}
    tokens = pq.read_table(tmp_path / "out/tables/tokens.parquet")
    token_ids = torch.tensor(tokens["token_id"].to_pylist()).view(report.calibration.sequences, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, scheme = (WholeModel(path, token_ids, name) for name in (None, "nf4"))
    rows = pq.read_table(tmp_path / "out/tables/errors.parquet").to_pylist()
    seen = []
    for row in rows:
        if row["sqnr_db_typical"] is not None:
            assert (row["mode"], row["component"], row["port"]) == ("accumulated", "block", "output")
            y, q = (m.site("llama", row["layer"], "block", "output").astype(np.float64) for m in (reference, scheme))
            y, q = (np.delete(part, 31, axis=-1) for part in (y, q))
            wanted = 10 * np.log10((y**2).sum() / ((y - q) ** 2).sum())
            assert row["sqnr_db_typical"] == pytest.approx(wanted, rel=1e-6)
            seen.append(row["layer"])
    assert seen == [0, 1, 2, 3]
    after = next(r for r in rows if r["layer"] == 3 and r["sqnr_db_typical"] is not None)
    assert abs(after["sqnr_db"] - after["sqnr_db_typical"]) > 1
