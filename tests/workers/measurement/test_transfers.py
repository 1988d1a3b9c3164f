"""Figures that come from a device in one copy for each batch."""

import numpy as np
import pytest
import torch
from device_twin import copies_from_device

from workers.measurement.statistics.outliers import llm_int8
from workers.measurement.statistics.outliers.llm_int8 import LayerHits
from workers.measurement.statistics.site import SiteStatistics
from workers.measurement.statistics.transfers import HostCopies


def figures(seed: int) -> list[torch.Tensor]:
    """Tensors of every size of element, of odd lengths, one of them strided, one empty and one without dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 255, (3,), generator=generator, dtype=torch.uint8),
        torch.randn(5, 3, generator=generator, dtype=torch.float64).T,
        torch.rand(7, generator=generator) > 0.5,
        torch.randn(1, 3, generator=generator),
        torch.randint(-9, 9, (11,), generator=generator, dtype=torch.int32),
        torch.empty(0, 4, dtype=torch.float64),
        torch.tensor(seed, dtype=torch.int64),
    ]


def test_every_tensor_arrives_as_it_left_one_batch_later(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copies_from_device(monkeypatch)
    arrived: list[tuple[int, list[np.ndarray]]] = []

    def use(batch: int) -> object:
        return lambda *arrays: arrived.append((batch, [array.copy() for array in arrays]))

    for batch in range(4):
        copies.add(figures(batch)[:3], use(batch))  # type: ignore[arg-type]
        copies.add(figures(batch)[3:], use(batch))  # type: ignore[arg-type]
        assert [number for number, _ in arrived] == [number for number in range(batch - 1) for _ in range(2)]
        copies.next_batch()
    copies.finish()
    assert [number for number, _ in arrived] == [0, 0, 1, 1, 2, 2, 3, 3]
    for batch in range(4):
        found = [array for number, arrays in arrived if number == batch for array in arrays]
        for array, tensor in zip(found, figures(batch), strict=True):
            assert (array.dtype, array.shape) == (tensor.numpy().dtype, tensor.numpy().shape)
            np.testing.assert_array_equal(array, tensor.numpy())


def test_what_is_used_may_ask_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copies_from_device(monkeypatch)
    steps: list[int] = []

    def use(value: np.ndarray) -> None:
        steps.append(int(value))
        if steps[-1] < 5:
            copies.add((torch.tensor(steps[-1] + 1),), use)

    copies.add((torch.tensor(0),), use)
    copies.finish()
    assert steps == [0, 1, 2, 3, 4, 5]


def test_figures_are_not_finished_amid_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copies_from_device(monkeypatch)
    copies.add((torch.tensor(0),), lambda _: copies.finish())
    with pytest.raises(RuntimeError, match="finish: it was called while figures are in use"):
        copies.finish()


def test_what_hits_bring_over_early_changes_no_other_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_int8, "_MOST_KEYS", 3)
    at_once, late = HostCopies(), copies_from_device(monkeypatch)
    found = []
    for copies in (at_once, late):
        statistics, hits = SiteStatistics(5, 2.0, copies), LayerHits([18] * 4, copies)
        for batch in range(4):
            x = 4 * torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(batch))
            hits.add(batch, x.flatten(0, 1), torch.full((18,), 2.0), statistics.add(x).sum(dim=0))
            copies.next_batch()
        found.append((statistics.token_abs_max.tolist(), statistics.range(), hits.hits().positions.tolist()))
    assert found[0] == found[1]


def test_in_host_memory_nothing_waits() -> None:
    copies, arrived = HostCopies(), []
    copies.add((torch.arange(3),), lambda array: arrived.append(array.tolist()))
    assert arrived == [[0, 1, 2]]


def test_statistics_are_the_same_whenever_their_figures_come(monkeypatch: pytest.MonkeyPatch) -> None:
    late = copies_from_device(monkeypatch)
    of_sites = [SiteStatistics(5, 6.0, copies) for copies in (HostCopies(), late)]
    for seed in range(3):
        x = 4 * torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(seed))
        for statistics in of_sites:
            statistics.add(x)
        late.next_batch()
    at_once, later = of_sites
    assert later.range() == at_once.range()
    np.testing.assert_array_equal(later.token_abs_max, at_once.token_abs_max)
    for name, channels in vars(at_once.channels()).items():
        np.testing.assert_array_equal(vars(later.channels())[name], channels)
