"""Where LLM.int8()'s magnitude is reached, kept layer by layer and put together, against counting it all at once.

L layers, two sites each, T token positions in batches, d dimensions
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from device_twin import copies_from_device

from workers.measurement.results.layer_files import load_hits, save_hits
from workers.measurement.statistics.outliers import llm_int8
from workers.measurement.statistics.outliers.llm_int8 import Hits, LayerHits, outlier_dimensions
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.transfers import HostCopies

LAYERS, WIDTH = 5, 37
BATCHES = ((2, 9), (2, 9), (1, 9))
"""[B, S] of every batch; none is a whole number of bytes."""
POSITIONS = sum(b * s for b, s in BATCHES)


def layers_of(kind: str, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Both sites of every layer, [T, d] each: few dimensions that reach 6, or all, or hardly any."""
    generator = torch.Generator().manual_seed(len(kind))
    found = []
    for layer in range(LAYERS):
        sites = torch.randn(2, POSITIONS, WIDTH, generator=generator)
        if kind == "all":
            sites *= 7
        elif kind == "few":
            sites[:, ::2, [3, 30]] *= 9
            sites[0, 4, 20] = -6.0  # in every layer, but at one position
            sites[1, :, 11] += 40 * (layer < 2)  # of one sign, in two layers out of five
        sites[0, 5, 7], sites[0, 6, 3], sites[1, 8, 30] = torch.inf, -torch.inf, torch.nan
        found.append(list(sites.to(dtype)))
    return found


def kept(sites: list[torch.Tensor], file: Path, copies: HostCopies | None = None) -> Hits:
    """Add a layer's sites batch by batch, write what was kept, and read it."""
    copies = copies or HostCopies()
    hits = LayerHits([b * s for b, s in BATCHES], copies)
    first = 0
    for number, (sequences, tokens) in enumerate(BATCHES):
        last = first + sequences * tokens
        for site in sites:
            x = site[first:last]
            over = SiteStatistics(WIDTH, 6.0).add(x.view(sequences, tokens, WIDTH)).sum(dim=0)
            hits.add(number, x, torch.full((len(x),), 6.0), over)
        copies.next_batch()
        first = last
    save_hits(file, hits.hits())
    return load_hits(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["few", "all", "hardly any"])
def test_dimensions_are_those_of_all_tensors_at_once(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    layers = layers_of(kind, dtype)
    hits = [kept(sites, tmp_path / f"{number}.npz") for number, sites in enumerate(layers)]
    found = {d.dimension: d for d in outlier_dimensions(hits.__getitem__, LAYERS, POSITIONS, 0.4, 0.1)}
    x = torch.stack([torch.stack(sites) for sites in layers]).double().numpy()
    reached = np.isfinite(x) & (np.abs(x) >= 6)
    in_layers, in_positions = reached.any(axis=(1, 2)).mean(axis=0), reached.any(axis=(0, 1)).mean(axis=0)
    assert list(found) == np.flatnonzero((in_layers >= 0.4) & (in_positions >= 0.1)).tolist()
    assert {"few": found.keys() == {3, 11, 30}, "all": len(found) == WIDTH, "hardly any": not found}[kind]
    for j, dimension in found.items():
        values = x[..., j][reached[..., j]]
        assert (dimension.layers_fraction, dimension.positions_fraction) == (in_layers[j], in_positions[j])
        assert dimension.abs_max == np.abs(values).max()
        assert dimension.one_sided == ((values > 0).all() or (values < 0).all())
        # float32 values are counted by their top 20 bits; bfloat16 and float16 have no more.
        kept_of = (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
        assert (kept_of == values).all() or dtype == torch.float32
        wanted = np.quantile(kept_of.astype(np.float64), (0.25, 0.5, 0.75))
        assert dimension.quartiles == pytest.approx(wanted, rel=1e-12)


def test_a_layer_keeps_one_bit_for_each_position(tmp_path: Path) -> None:
    (sites, *_) = layers_of("few", torch.float32)
    hits = kept(sites, tmp_path / "hits.npz")
    reached = torch.stack(sites).isfinite() & (torch.stack(sites).abs() >= 6)
    assert hits.dimensions.tolist() == reached.any(0).any(0).nonzero().flatten().tolist()
    by_batch = reached.any(0).T[hits.dimensions].split([b * s for b, s in BATCHES], dim=1)
    assert (hits.positions == np.concatenate([np.packbits(part.numpy(), axis=1) for part in by_batch], axis=1)).all()
    assert hits.counts.sum() == reached.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["few", "all", "hardly any"])
@pytest.mark.parametrize("most_keys", [1 << 25, 10], ids=["one fetch", "many"])
def test_on_a_device_a_layer_keeps_the_same(
    kind: str, dtype: torch.dtype, most_keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_int8, "_MOST_KEYS", most_keys)
    for number, sites in enumerate(layers_of(kind, dtype)):
        wanted = kept(sites, tmp_path / f"{number}.npz")
        found = kept(sites, tmp_path / f"{number}-device.npz", copies_from_device(monkeypatch))
        for field, values in vars(wanted).items():
            np.testing.assert_array_equal(vars(found)[field], values)


def test_layers_that_never_reach_it_flag_nothing() -> None:
    silent = LayerHits([8]).hits()
    assert (silent.dimensions.size, silent.positions.shape) == (0, (0, 1))
    assert outlier_dimensions(lambda _: silent, 3, 8, 0.0, 0.0) == []


@pytest.mark.parametrize(
    ("layers_fraction", "positions_fraction", "flagged"),
    [(0.25, 0.06, [1, 2]), (0.25, np.nextafter(0.06, 1), [2]), (np.nextafter(0.25, 1), 0.06, [2])],
)
def test_a_share_that_is_just_reached_is_enough(
    layers_fraction: float, positions_fraction: float, flagged: list[int]
) -> None:
    """Dimension 1 is over 6 in 1 layer of 4, at 3 of 50 positions; dimension 0 at 2 of them; dimension 2 everywhere."""
    hits = []
    for layer in range(4):
        x = torch.zeros(50, 3)
        x[:, 2] = 9.0
        if layer == 1:
            x[:2, 0] = x[7:10, 1] = 6.0
        one = LayerHits([50])
        one.add(0, x, torch.full((50,), 6.0), (x >= 6).sum(dim=0))
        hits.append(one.hits())
    found = outlier_dimensions(hits.__getitem__, 4, 50, layers_fraction, positions_fraction)
    assert [one.dimension for one in found] == flagged
    assert {one.dimension: one.positions_fraction for one in found}.get(1, 0.06) == 0.06
