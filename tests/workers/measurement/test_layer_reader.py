"""Layers read one at a time, or one ahead in a thread of its own."""

import threading
from collections.abc import Iterator, Mapping

import pytest
import torch

from workers.measurement.errors import BadModel
from workers.measurement.models.layer_reader import LayerReader

LAYERS = 4


class Disk(Mapping[str, torch.Tensor]):
    """Tensors by full name, that remembers which thread looked at which layer."""

    def __init__(self) -> None:
        self.tensors = {f"layers.{i}.{n}": torch.full((3, 2), 10.0 * i + k) for i in range(LAYERS) for k, n in NAMES}
        self.reads: list[tuple[int, int]] = []
        self.read = threading.Condition()

    def __getitem__(self, name: str) -> torch.Tensor:
        with self.read:
            self.reads.append((int(name.split(".")[1]), threading.get_ident()))
            self.read.notify_all()
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def wait_for(self, reads: int) -> list[int]:
        """Return the layers of the reads so far, once there are so many of them."""
        with self.read:
            assert self.read.wait_for(lambda: len(self.reads) >= reads, timeout=30)
            return [layer for layer, _ in self.reads]


NAMES = list(enumerate(("norm.weight", "mlp.weight")))


def reader(disk: Disk, *, ahead: bool) -> LayerReader:
    names = [{name: f"layers.{layer}.{name}" for _, name in NAMES} for layer in range(LAYERS)]
    return LayerReader(disk, names, torch.device("cpu"), ahead=ahead)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("order", [range(LAYERS), [0, 0, 1, 2, 3], [0, 2, 3], [3], [1, 0]], ids=str)
def test_every_layer_comes_whole_in_any_order(order: list[int], ahead: bool) -> None:
    disk = Disk()
    layers = reader(disk, ahead=ahead)
    for layer in order:
        taken = layers.take(layer)
        assert list(taken) == [name for _, name in NAMES]
        for name, tensor in taken.items():
            assert torch.equal(tensor, disk.tensors[f"layers.{layer}.{name}"])


def test_the_next_layer_is_read_by_another_thread_before_it_is_taken() -> None:
    disk = Disk()
    layers = reader(disk, ahead=True)
    layers.take(0)
    assert disk.wait_for(4) == [0, 0, 1, 1]
    assert {ident for layer, ident in disk.reads if layer == 1}.isdisjoint({threading.get_ident()})
    layers.take(1)
    assert disk.wait_for(6) == [0, 0, 1, 1, 2, 2]


def test_in_reverse_the_layer_before_is_read_ahead() -> None:
    disk = Disk()
    layers = reader(disk, ahead=True)
    layers.take(3, step=-1)
    assert disk.wait_for(4) == [3, 3, 2, 2]
    layers.take(2, step=-1)
    assert disk.wait_for(6) == [3, 3, 2, 2, 1, 1]


def test_without_reading_ahead_only_what_is_taken_is_read() -> None:
    disk = Disk()
    layers = reader(disk, ahead=False)
    layers.take(2)
    assert disk.reads == [(2, threading.get_ident())] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_weight_that_is_not_finite_is_named_when_its_layer_is_taken(value: float, ahead: bool) -> None:
    disk = Disk()
    disk.tensors["layers.1.mlp.weight"][2, 1] = value
    layers = reader(disk, ahead=ahead)
    layers.take(0)
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.weight holds NaN or infinite"):
        layers.take(1)


def test_whatever_is_read_ahead_or_at_once_is_read_by_one_thread() -> None:
    disk = Disk()
    layers = reader(disk, ahead=True)
    for layer in (0, 0, 3, 1):  # of which the reader expects none but the first
        layers.take(layer)
    disk.wait_for(2 * 7)
    assert len({ident for _, ident in disk.reads}) == 1
    assert disk.reads[0][1] != threading.get_ident()
