"""Giving memory back loses nothing."""

from pathlib import Path

import pytest
import torch

from workers.measurement.memory import page_out, release_memory, return_large_pieces_at_once, return_pages


@pytest.mark.parametrize("first", [0, 1, 1000, 5000])
@pytest.mark.parametrize("length", [0, 1, 1024, 100_000])
def test_a_mapped_tensor_is_the_same_after_its_pages_went(tmp_path: Path, first: int, length: int) -> None:
    values = torch.arange(200_000, dtype=torch.float32)
    file = tmp_path / "weights"
    values.numpy().tofile(file)
    mapped = torch.from_file(str(file), shared=False, size=len(values))[first : first + length]
    before = mapped.clone()
    page_out(mapped)
    assert torch.equal(mapped, before)


def test_changed_and_anonymous_pages_keep_what_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    torch.zeros(100_000).numpy().tofile(file)
    changed = torch.from_file(str(file), shared=False, size=100_000)
    changed += 3
    anonymous = torch.full((100_000,), 5.0)
    for tensor in (changed, anonymous):
        page_out(tensor)
    assert changed.sum() == 300_000
    assert anonymous.sum() == 500_000


def test_what_is_on_no_cpu_is_left_alone() -> None:
    page_out(torch.empty(1000, 1000, device="meta"))


def test_what_is_in_use_outlives_every_release() -> None:
    return_large_pieces_at_once()
    kept = [torch.full((1 << 20,), float(number)) for number in range(4)]
    large = [torch.zeros(3 << 20) for _ in range(4)]
    del large
    return_pages()
    release_memory()
    assert [float(tensor.mean()) for tensor in kept] == [0.0, 1.0, 2.0, 3.0]
