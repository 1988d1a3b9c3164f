"""Plans the measurement of harm: where its streams lie, what it costs, and whether that fits.

L layers, S draws
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from service.contracts.harm.settings import HarmSettings
from service.contracts.schemes import Scheme
from workers.measurement.errors import MeasurementError
from workers.measurement.harm.copies import Module, weight_only
from workers.measurement.harm.gradients.loss_scaling import gradient_type
from workers.measurement.harm.reference_states import Storage
from workers.measurement.harm.swaps import Swap
from workers.measurement.layers.streams import Layout, Volume
from workers.measurement.models.decoder import Decoder


class DiskTooSmall(MeasurementError):
    """The disk has less free room than the streams need."""

    code = "disk-full"


class Room(NamedTuple):
    """Host memory for streams, bytes."""

    most: int
    """Streams that are larger in all lie in files."""
    modest: int
    """Streams as large as this add little to what the model takes. No more is used where that costs no time: for
    reference states, which can be read from files as fast, and for more than a few swaps at a time."""


class Size(NamedTuple):
    """What is measured."""

    layers: int
    schemes: int
    divided_schemes: int
    """Those whose harm is divided among dimensions."""
    modules: int
    """Replaced alone, of the scheme with the most."""
    stream: Volume
    """Hidden states of all sequences at one depth."""
    gradient: Volume
    """The gradients of one draw at one depth; more, where they need a wider type."""


class Plan(NamedTuple):
    """Where the streams lie, and what the measurement costs."""

    states: Storage
    working: Storage
    """Of gradients, and of a group of swaps."""
    swaps: int
    """Those of nothing and of rounding among them; with fewer modules than were asked for it is less."""
    group: int
    """Swaps that go through the layers together."""
    layers: int
    """Decoder layers."""
    estimate_forwards: int
    """Forward passes that the estimate is worth."""
    forwards: float
    """Forward passes of the whole text that cost as much, about."""
    streams_bytes: int
    """What streams in files take of the disk."""
    checkpoint_bytes: int
    """What their checkpoints take: a new one is whole before the one before it goes."""

    @property
    def layer_passes(self) -> int:
        """Passes of the text through one layer, as many as `forwards` is worth."""
        return round(self.layers * self.forwards)

    @property
    def groups(self) -> int:
        """Groups of swaps."""
        return -(-self.swaps // self.group)

    @property
    def disk_bytes(self) -> int:
        """What all of it takes of the disk."""
        return self.streams_bytes + self.checkpoint_bytes

    @property
    def storages(self) -> tuple[Storage, Storage]:
        """Where streams lie, in memory or in files."""
        return self.states, self.working

    def says(self) -> str:
        """Say what it costs."""
        disk = size_in_words(self.disk_bytes)
        return f"harm takes about {self.forwards:.0f} forward passes of the text and {disk} of disk"


def room_for_streams(memory_bytes: int, decoder: Decoder) -> Room:
    """Return the host memory for streams, of which there are memory_bytes at most.

    Where a device computes, it waits for files, and host memory holds little else; so all of it is used.
    """
    if decoder.device.type != "cpu":
        return Room(memory_bytes, memory_bytes)
    weights = sum(parameter.nbytes for parameter in decoder.model.parameters())
    return Room(memory_bytes, min(memory_bytes, max(weights // 8, _MODEST_BYTES)))


def size_of(
    settings: HarmSettings, decoder: Decoder, schemes: Sequence[tuple[Scheme, Mapping[Module, str]]], layout: Layout
) -> Size:
    """Return what is measured.

    Args:
        settings: what is asked for.
        decoder: the model.
        schemes: those that replace anything, with the components of the modules that each replaces.
        layout: of the hidden states at one depth.
    """
    return Size(
        layers=len(decoder.layers),
        schemes=len(schemes),
        divided_schemes=sum(weight_only(scheme) for scheme, _ in schemes) if settings.dimensions else 0,
        modules=max((modules_measured(settings, components) for _, components in schemes), default=0),
        stream=layout.volume(decoder.device),
        gradient=Layout(layout.shapes, gradient_type(layout.dtype)).volume(decoder.device),
    )


def make_plan(settings: HarmSettings, size: Size, room: Room, directory: Path) -> Plan:
    """Return the plan for these settings.

    Args:
        settings: at least something is measured or estimated.
        size: of what is measured.
        room: for streams; those beyond it lie in files.
        directory: for those files.
    """
    states = size.stream.times(size.layers + 1)
    estimate = _estimate_forwards(settings, size)
    draws = settings.draws if settings.estimates else 0
    in_memory = states.held + max(draws * size.gradient.held, size.stream.held) <= room.modest
    held = states.held if in_memory else 0
    left = room.most - held
    swaps = _count(settings, size)
    modest = max(_FEW, (room.modest - held) // size.stream.held)
    fitting = min(left // size.stream.held, modest)
    # A group that memory cannot hold takes no more disk, with its checkpoints, than the states of all layers do.
    on_disk = (size.layers + 1) // (1 + CHECKPOINTS)
    possible = swaps or size.layers + 1  # layers are swapped where nothing was asked for and there is no gradient
    group = max(1, min(possible, fitting if fitting >= min(possible, _FEW) else on_disk))
    working = [size.gradient.times(draws), size.stream.times(min(group, swaps))]
    in_files = max(streams.stored if streams.held > left else 0 for streams in working)
    return Plan(
        states=Storage(held, directory / "states"),
        working=Storage(left, directory / "working"),
        swaps=swaps,
        group=group,
        layers=size.layers,
        estimate_forwards=estimate,
        # Swaps leave at half of the depth on average.
        forwards=1 + estimate + swaps * (size.layers + 1) / (2 * size.layers),
        streams_bytes=(0 if in_memory else states.stored) + in_files,
        checkpoint_bytes=CHECKPOINTS * max(streams.stored for streams in working),
    )


def bytes_on_disk(*directories: Path) -> int:
    """Return what the files in directories take of the disk; what is missing takes nothing."""
    files = (file for directory in directories for file in directory.glob("**/*"))
    return sum(file.stat().st_blocks * _BLOCK for file in files if file.is_file())


def grouped(swaps: Sequence[Swap], group: int) -> Iterator[list[Swap]]:
    """Yield groups of swaps, those that leave late together, so that a group passes few layers."""
    ordered = sorted(swaps, key=lambda swap: -swap.layer)
    for start in range(0, len(ordered), group):
        yield ordered[start : start + group]


def modules_measured(settings: HarmSettings, components: Mapping[Module, str]) -> int:
    """Return how many of a scheme's modules are replaced alone, given the components of all that it replaces."""
    if settings.exact != "modules":
        return 0
    of_component = sum(component == settings.component for component in components.values())
    chosen = of_component if settings.component else settings.top_modules
    return min(len(components), chosen + settings.random_modules)


def _count(settings: HarmSettings, size: Size) -> int:
    """Return how many swaps there are at most, those of nothing and of rounding among them."""
    if settings.exact == "none":
        return 0
    of_scheme = size.layers if settings.exact == "layers" else size.modules
    return size.schemes * of_scheme + size.layers + 1


def _estimate_forwards(settings: HarmSettings, size: Size) -> int:
    """Return how many forward passes the estimate is worth."""
    if not settings.estimates:
        return 0
    # Forward, isolated errors of every scheme, and a gradient for each draw; the same again by input channel.
    return 1 + size.schemes + settings.draws * (1 + size.divided_schemes)


def size_in_words(count: int) -> str:
    """Return a number of bytes in a unit that suits it."""
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if count >= power:
            return f"{count / power:,.1f} {unit}"
    return f"{count:,} bytes"


_BLOCK = 512
"""Bytes of a block, in which POSIX counts what a file takes of the disk."""
CHECKPOINTS = 2
"""Checkpoints of the same streams that lie on the disk at once, for a moment."""
_FEW = 8
"""Swaps in a group for which it pays to read the layers once more."""
_MODEST_BYTES = 1 << 26
"""Streams of this size add little to what the program itself takes."""
