"""Defines the errors of a measurement; their messages name the value and what is allowed.

`code` is stable and travels in the `failed` line; every message names what was given and what is allowed.
"""

from collections.abc import Sequence
from typing import ClassVar


class MeasurementError(Exception):
    """The measurement cannot be made."""

    code: ClassVar[str] = "internal"
    bad_input: ClassVar[bool] = False
    batch_sequences: int | None = None
    """Sequences in a batch, where fewer of them may help."""


class BadRequest(MeasurementError):
    """The request file, or a value in it, is not allowed."""

    code = "bad-request"
    bad_input = True


class BadModel(MeasurementError):
    """The model cannot be measured, or may not be by the worker's settings."""

    code = "bad-model"
    bad_input = True


class ModelChanged(BadModel):
    """The model has other weights than those that were asked for."""

    code = "model-changed"


class CannotQuantize(BadModel):
    """A scheme has no way of quantizing a module or a layer; without the scheme, the model can be measured."""


class BadCalibration(MeasurementError):
    """The calibration text cannot be used."""

    code = "bad-calibration"
    bad_input = True


class BadLabelled(MeasurementError):
    """The labeled prompts cannot be used."""

    code = "bad-labelled"
    bad_input = True


class MissingLibrary(MeasurementError):
    """A library has no code for the device."""

    code = "missing-library"


class DeviceOutOfMemory(MeasurementError):
    """The device has less free memory than is needed."""

    code = "device-out-of-memory"

    def __init__(self, message: str, batch_sequences: int | None) -> None:
        super().__init__(message)
        self.batch_sequences = batch_sequences


def device_full(device: str, needed: str, batch: Sequence[int] | None) -> str:
    """Return the message for a device without memory: what was needed, and which settings of a job need less.

    `batch`: the sequences of a batch and the tokens in each, where batches take the memory.
    """
    at = less = ""
    if batch:
        sequences, length = batch
        at = f", at {sequences} {'sequence' if sequences == 1 else 'sequences'} of {length} tokens in a batch"
        fewer = f"batch_sequences to {sequences // 2} or less, or " if sequences > 1 else ""
        less = f"set {fewer}a shorter sequence_length, or "
    return f"{device} ran out of memory: {needed}{at}; {less}use a device with more free memory"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; with the error's name where the message is a key or empty.

    A line that ends in a colon announces the next one, which is then returned with it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError) else said


def shown(value: object) -> str:
    """Return a value as an error shows it, cut when long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
