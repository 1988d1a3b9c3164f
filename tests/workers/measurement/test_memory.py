"""Giving memory back loses nothing, and does give it back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.measurement.runtime import memory
from workers.measurement.runtime.memory import (
    GROWTH,
    PageReturn,
    drop_file_pages,
    resident_bytes,
    return_pages,
)

MANY = 4 << 20
"""Elements of a file of 16 MiB."""


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """A float32 tensor that lies in a mapped file, as weights do: 0, 1, 2, ..."""
    file = tmp_path / "weights"
    torch.arange(MANY, dtype=torch.float32).numpy().tofile(file)
    return torch.from_file(str(file), shared=False, size=MANY)


@pytest.mark.parametrize("first", [0, 1, 1000, 1 << 20])
@pytest.mark.parametrize("length", [0, 1, 1024, 3 << 20])
def test_a_mapped_tensor_is_the_same_after_its_pages_went(mapped: torch.Tensor, first: int, length: int) -> None:
    part = mapped[first : first + length]
    before = part.clone()
    drop_file_pages(part)
    assert torch.equal(part, before)


def test_the_pages_of_a_mapped_file_go(mapped: torch.Tensor) -> None:
    mapped.sum()
    before = resident_bytes()
    drop_file_pages(mapped)
    assert before - resident_bytes() > 0.9 * mapped.nbytes


def test_the_pages_of_the_whole_file_go_on_request(mapped: torch.Tensor) -> None:
    mapped.sum()
    before = resident_bytes()
    drop_file_pages(mapped[: 1 << 20], whole_file=True)
    assert before - resident_bytes() > 0.9 * mapped.nbytes


def test_pages_that_were_written_to_stay(mapped: torch.Tensor) -> None:
    mapped[5] = -1
    drop_file_pages(mapped)
    drop_file_pages(mapped[MANY // 2 :])
    assert mapped[5] == -1
    assert mapped[-1] == MANY - 1


def test_a_change_beside_a_tensor_stays(mapped: torch.Tensor) -> None:
    mapped[1000] = -1
    drop_file_pages(mapped[1024 : 2 << 20])
    assert mapped[1000] == -1


def test_memory_of_no_file_keeps_what_it_holds() -> None:
    anonymous = torch.full((MANY,), 5.0)
    for tensor in (anonymous, torch.empty(1000, 1000, device="meta")):
        drop_file_pages(tensor)
    assert anonymous.sum() == 5 * MANY


def test_what_is_in_use_outlives_a_return() -> None:
    kept = [torch.full((1 << 20,), float(number)) for number in range(4)]
    large = [torch.ones(3 << 20) for _ in range(4)]
    before = resident_bytes()
    del large
    return_pages()
    assert before - resident_bytes() > 40 << 20
    assert [float(tensor.mean()) for tensor in kept] == [0.0, 1.0, 2.0, 3.0]


def test_pages_go_back_where_much_more_is_resident_than_a_batch_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = 0
    returned: list[int] = []
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident)
    monkeypatch.setattr(memory, "return_pages", lambda: returned.append(resident))
    pages = PageReturn()
    resident = 9 * GROWTH
    pages.check()  # no batch yet
    for after_batch in (3 * GROWTH, 2 * GROWTH, 2 * GROWTH + 2, 2 * GROWTH + 3):
        resident = after_batch
        pages.after_batch()
    assert returned == [2 * GROWTH + 3]
    for later in (2 * GROWTH + 2, 5 * GROWTH):
        resident = later
        pages.check()
    assert returned == [2 * GROWTH + 3, 5 * GROWTH]


CODE = """
import json, torch
from workers.measurement.runtime.memory import drop_code_pages, resident_bytes
x = torch.arange(9.0).view(3, 3)
product, before = x @ x, resident_bytes()
drop_code_pages()
print(json.dumps([before - resident_bytes(), torch.equal(x @ x, product)]))
"""


def test_code_runs_on_after_its_pages_went() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True, timeout=120)
    freed, equal = json.loads(ended.stdout)
    assert freed > 30 << 20
    assert equal
