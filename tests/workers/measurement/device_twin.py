"""Copies from a device that is not there: tensors in host memory, treated as if they were elsewhere."""

import pytest
import torch

from workers.measurement.statistics import transfers
from workers.measurement.statistics.transfers import HostCopies


class Event:
    """A copy that is done when somebody has waited for it."""

    def __init__(self, pinned: torch.Tensor, values: torch.Tensor) -> None:
        self._pinned = pinned
        self._values = values

    def synchronize(self) -> None:
        self._pinned.copy_(self._values)


def copies_from_device(monkeypatch: pytest.MonkeyPatch) -> HostCopies:
    """Return copies that come late, and not before they are waited for."""

    def to_pinned(on_device: torch.Tensor) -> tuple[torch.Tensor, Event]:
        pinned = torch.full_like(on_device, 0xAB)
        return pinned, Event(pinned, on_device.clone())

    monkeypatch.setattr(transfers, "to_pinned", to_pinned)
    return HostCopies(torch.device("meta"))
