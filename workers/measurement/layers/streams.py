"""Holds the hidden states of the reference and every scheme at the present depth, in memory or in mapped files.

A stream is what a layer takes and gives, for every batch. Only one batch of one variant is worked on at a time, so
a device holds no more of it, and a stream that lies in files costs the memory of a batch, however long the text.

    B sequences, S tokens each, d hidden dimensions
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

REFERENCE = "reference"
"""Name of the stream of the model as it came; a scheme's stream has the scheme's name."""


class Volume(NamedTuple):
    """What a stream takes, bytes."""

    stored: int
    """In a file."""
    held: int
    """In host memory."""

    def times(self, streams: int) -> "Volume":
        """Return what a number of such streams takes."""
        return Volume(streams * self.stored, streams * self.held)


@dataclass(frozen=True)
class Layout:
    """Where each batch lies in a stream's file."""

    shapes: tuple[tuple[int, int, int], ...]
    """[B, S, d] of every batch."""
    dtype: torch.dtype

    @property
    def sizes(self) -> list[int]:
        """Bytes of every batch."""
        return [int(np.prod(shape)) * self.dtype.itemsize for shape in self.shapes]

    def volume(self, device: torch.device) -> Volume:
        """Return what a stream takes of a model on a device; torch rounds pinned memory up to powers of two."""
        held = (1 << (size - 1).bit_length() if device.type == "cuda" else size for size in self.sizes)
        return Volume(sum(self.sizes), sum(held))


class Streams:
    """The streams of the reference and of every scheme."""

    def __init__(
        self, names: Sequence[str], layout: Layout, device: torch.device, budget_bytes: int, directory: Path
    ) -> None:
        self.names = tuple(names)
        self._layout = layout
        self._device = device
        self._offsets = np.concatenate([[0], np.cumsum(layout.sizes)]).tolist()
        self._held: _Held = _HeldForCuda(device) if device.type == "cuda" else _Held()
        self._directory: Path | None = None
        if self.held_bytes > budget_bytes:
            self._directory = directory
            directory.mkdir(parents=True, exist_ok=True)
            for name in self.names:
                with self._file(directory, name).open("wb") as file:
                    file.truncate(self._offsets[-1])

    @property
    def held_bytes(self) -> int:
        """What they take in host memory; nothing where they lie in files."""
        return 0 if self.in_files else self._layout.volume(self._device).times(len(self.names)).held

    @property
    def in_files(self) -> bool:
        """Whether the streams were too large for the budget."""
        return self._directory is not None

    @property
    def batches(self) -> int:
        """How many batches a stream has."""
        return len(self._layout.shapes)

    def get(self, name: str, batch: int) -> torch.Tensor:
        """Return a batch's hidden states, [B, S, d]; not to be changed."""
        if self._directory is None:
            return self._held.get(name, batch)
        return self._mapped(self._directory, name, batch, "c").to(self._device)

    def put(self, name: str, batch: int, hidden: torch.Tensor) -> None:
        """Replace a batch's hidden states by those after the next layer."""
        if hidden.dtype != self._layout.dtype and (self.in_files or self._device.type == "cuda"):
            raise ValueError(f"hidden: {hidden.dtype} is not allowed; the stream holds {self._layout.dtype}")
        if self._directory is None:
            self._held.put(name, batch, hidden)
        else:
            self._mapped(self._directory, name, batch, "r+").copy_(hidden)

    def tokens(self, name: str, batches: int) -> Iterator[torch.Tensor]:
        """Yield the hidden states of every token of the first `batches` batches, [B * S, d] each."""
        for batch in range(batches):
            yield self.get(name, batch).flatten(0, 1)

    def sequence(self, name: str, number: int) -> torch.Tensor:
        """Return the hidden states of one sequence, [S, d], counted through all batches; not to be changed."""
        for batch, (sequences, _, _) in enumerate(self._layout.shapes):
            if number < sequences:
                if self._directory is None:
                    return self._held.get(name, batch, number)
                return self._mapped(self._directory, name, batch, "c")[number].to(self._device)
            number -= sequences
        raise IndexError(f"number: {number} sequences too far; the stream has no such sequence")

    def save(self, directory: Path) -> None:
        """Write every stream into a directory, which must exist."""
        for name in self.names:
            with self._file(directory, name).open("wb") as file:
                for batch in range(self.batches):
                    file.write(self.get(name, batch).cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def load(self, directory: Path) -> None:
        """Take every stream from a directory that `save` wrote to."""
        for name in self.names:
            for batch in range(self.batches):
                self.put(name, batch, self._mapped(directory, name, batch, "c").clone().to(self._device))

    def _file(self, directory: Path, name: str) -> Path:
        return directory / f"{self.names.index(name)}.stream"

    def _mapped(self, directory: Path, name: str, batch: int, mode: str) -> torch.Tensor:
        """Map a batch of a stream's file; the mapping lasts as long as the tensor."""
        shape = self._layout.shapes[batch]
        mapped = np.memmap(
            self._file(directory, name),
            dtype=np.uint8,
            mode=mode,  # type: ignore[call-overload]
            offset=self._offsets[batch],
            shape=(self._layout.sizes[batch],),
        )
        return torch.from_numpy(mapped).view(self._layout.dtype).view(shape)


class _Held:
    """Hidden states in host memory, of a model that computes there."""

    def __init__(self) -> None:
        self._batches: dict[tuple[str, int], torch.Tensor] = {}

    def get(self, name: str, batch: int, number: int | None = None) -> torch.Tensor:
        """Return a batch, [B, S, d], or one of its sequences, [S, d]."""
        hidden = self._batches[name, batch]
        return hidden if number is None else hidden[number]

    def put(self, name: str, batch: int, hidden: torch.Tensor) -> None:
        """Keep a batch in place of what was kept of it."""
        self._batches[name, batch] = hidden


class _HeldForCuda(_Held):
    """Hidden states in pinned host memory, of a model on a CUDA device.

    They come and go on two CUDA streams of their own, while the device computes on the current one: what is computed
    waits for what has been asked for, a copy to the host for what is computed so far, and a copy to the device for the
    last copy of the same batch to the host.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._upward, self._downward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._written: dict[tuple[str, int], torch.cuda.Event] = {}

    def get(self, name: str, batch: int, number: int | None = None) -> torch.Tensor:
        current = torch.cuda.current_stream(self._device)
        self._upward.wait_event(self._written[name, batch])
        with torch.cuda.stream(self._upward):
            hidden = super().get(name, batch, number).to(self._device, non_blocking=True)
        current.wait_stream(self._upward)
        hidden.record_stream(current)  # its memory is not used again before what computes with it is done
        return hidden

    def put(self, name: str, batch: int, hidden: torch.Tensor) -> None:
        if (name, batch) not in self._batches:
            self._batches[name, batch] = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True)
        self._downward.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._downward):
            super().get(name, batch).copy_(hidden, non_blocking=True)
        hidden.record_stream(self._downward)
        self._written[name, batch] = self._downward.record_event()


class StreamCheckpoint:
    """The streams at a layer boundary, kept so that a killed measurement can go on from there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, layers_done: int, streams: Streams) -> None:
        """Keep the streams after `layers_done` layers; the checkpoint before goes only when this one is whole."""
        fresh = self._directory.with_name(f"{self._directory.name}-{layers_done}")
        fresh.mkdir()
        streams.save(fresh)
        (fresh / "layers_done.json").write_text(json.dumps(layers_done))
        before = self.latest()
        fresh.rename(self._directory.with_name(f"{self._directory.name}.{layers_done:06d}"))
        if before is not None:
            _remove(before)

    def latest(self) -> Path | None:
        """Return the directory of the latest whole checkpoint."""
        whole = sorted(self._directory.parent.glob(f"{self._directory.name}.[0-9]*"))
        return whole[-1] if whole else None

    def layers_done(self) -> int:
        """Return how many layers the streams of the latest checkpoint are through, 0 without one."""
        latest = self.latest()
        return int(json.loads((latest / "layers_done.json").read_text())) if latest is not None else 0

    def discard(self) -> None:
        """Remove the checkpoint, which is no longer needed."""
        latest = self.latest()
        if latest is not None:
            _remove(latest)

    def load(self, streams: Streams) -> None:
        """Take the streams from the latest checkpoint, if there is one."""
        latest = self.latest()
        for left in self._directory.parent.glob(f"{self._directory.name}[-.][0-9]*"):  # by a kill while it was saved
            if left != latest:
                _remove(left)
        if latest is not None:
            streams.load(latest)


def _remove(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
