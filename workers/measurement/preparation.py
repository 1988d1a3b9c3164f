"""Gets a measurement ready: the model, the text and the labeled prompts, in batches; and says what it will take."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from service.contracts.harm.cost import Cost
from service.contracts.request import MeasurementRequest, schemes_for
from workers.measurement.errors import BadRequest
from workers.measurement.harm.expected import expected_replacements
from workers.measurement.inputs.calibration import Calibration, calibrate
from workers.measurement.inputs.labelled_batches import LabelledBatch, labelled_batches
from workers.measurement.inputs.labelled_prompts import LabelledRecords, read_labelled
from workers.measurement.inputs.tokenizer import LazyTokenizer, bos_token, load_tokenizer
from workers.measurement.layers.sweep_state import Batch
from workers.measurement.mixes.cost import Text, cost_of
from workers.measurement.mixes.refusals import check_harm
from workers.measurement.models.checkpoint import Checkpoint, open_checkpoint
from workers.measurement.models.components import ARCHITECTURES
from workers.measurement.models.config import check_model_type
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.loading import load_decoder
from workers.measurement.results.report_warnings import warn_calibration, warn_unknown_architecture
from workers.measurement.runtime.device import choose_device, device_memory, require_bitsandbytes, total_bytes
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.statistics.kernel_check import check_kernels

BATCH_VALUES = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Values that a batch has where a layer is widest, unless the request says otherwise: enough to keep the device busy,
and no more than that, for what is captured in a layer grows with them."""
DEVICE_BYTES_PER_VALUE = 256
"""Memory of a CUDA device for each of these values; one that has less gets smaller batches. What is captured of the
reference and of one scheme takes some 20 bytes."""


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be measured."""

    fingerprint: str
    decoder: Decoder
    tokenizer: LazyTokenizer


@dataclass(frozen=True)
class Prompts:
    """Labeled prompts that go through the layers beside the calibration text."""

    records: LabelledRecords
    batches: list[LabelledBatch]
    adds_bos: bool


def load_model(
    request: MeasurementRequest,
    checkpoint: Checkpoint,
    device: torch.device,
    scratch: Path,
    reporter: ProgressReporter,
) -> Decoder:
    """Load the model onto the device, with `scratch` for weights whose form in memory differs from that on disk."""
    with reporter.stage("load"):
        decoder = load_decoder(checkpoint, device, scratch)
        if device.type == "cuda":
            check_kernels(device, decoder.dtype)
        if not all(scheme.simulated for scheme in schemes_for(request)):
            require_bitsandbytes(device)
        longest = getattr(decoder.config, "max_position_embeddings", None)
        if longest is not None and request.sequence_length > longest:
            raise BadRequest(
                f"sequence_length: {request.sequence_length} is not allowed; the model takes at most {longest}"
            )
        if decoder.config.model_type not in ARCHITECTURES:
            warn_unknown_architecture(type(decoder.model).__name__, reporter)
        return decoder


def read_text(request: MeasurementRequest, subject: Subject, reporter: ProgressReporter) -> Calibration:
    """Cut the calibration text into sequences, and warn of what is unusual about it."""
    with reporter.stage("calibrate"):
        calibration = calibrate(request, subject.tokenizer, subject.decoder.config.vocab_size)
        warn_calibration(request, calibration, reporter)
        return calibration


def read_prompts(request: MeasurementRequest, subject: Subject) -> Prompts | None:
    """Read the labeled prompts, if there are any."""
    if request.labelled is None:
        return None
    config = subject.decoder.config
    depth = request.label_depth
    if depth is not None and depth >= len(subject.decoder.layers):
        raise BadRequest(
            f"label_depth: {depth} is not allowed; the model's layers are 0 to {len(subject.decoder.layers) - 1}"
        )
    records = read_labelled(request.labelled, request.label_threshold)
    bos = bos_token(subject.tokenizer, request.bos, config.vocab_size)
    batches = labelled_batches(
        records,
        request.labelled,
        subject.tokenizer,
        bos=bos,
        vocabulary=config.vocab_size,
        longest=getattr(config, "max_position_embeddings", None),
        batch_tokens=_batch_tokens(request, subject.decoder),
    )
    return Prompts(records, batches, adds_bos=bos is not None)


def _batch_tokens(request: MeasurementRequest, decoder: Decoder) -> int:
    """Return the tokens of a batch; labeled prompts have no more than the calibration text was asked to have."""
    values = BATCH_VALUES[decoder.device.type]
    if (memory := total_bytes(decoder.device)) is not None:
        values = min(values, memory // DEVICE_BYTES_PER_VALUE)
    usual = max(1, values // decoder.widest)
    return usual if request.batch_sequences is None else min(usual, request.batch_sequences * request.sequence_length)


def make_batches(
    request: MeasurementRequest, subject: Subject, calibration: Calibration, prompts: Prompts | None
) -> list[Batch]:
    """Return what goes through the layers, the calibration text first."""
    usual = max(1, _batch_tokens(request, subject.decoder) // request.sequence_length)
    text = calibration.token_ids.split(request.batch_sequences or usual)
    return [
        *(Batch(token_ids) for token_ids in text),
        *(Batch(batch.token_ids, measured=False) for batch in (prompts.batches if prompts else ())),
    ]


def checked_cost(request: MeasurementRequest, decoder: Decoder, batches: list[Batch]) -> Cost:
    """Return what a measurement takes.

    Raises:
        BadRequest: the modules' shapes show that harm or mixes cannot be had as they are asked for.
    """
    expected = expected_replacements(request, decoder)
    check_harm(request, expected)
    text, beside = (
        [(len(batch.token_ids), batch.token_ids.shape[1]) for batch in batches if batch.measured is measured]
        for measured in (True, False)
    )
    sequences = sum(count for count, _ in text), request.sequence_length
    return cost_of(request, decoder, expected, Text(sequences, text, beside))


def plan(request: MeasurementRequest, reporter: ProgressReporter) -> Cost:
    """Return what a measurement takes, without making it.

    Raises:
        MeasurementError: the request, the model or the text is at fault; says which and how.
    """
    with reporter.stage("load"):
        checkpoint = open_checkpoint(request.model.path)
        if not request.any_model_type:
            check_model_type(checkpoint)
        tokenizer = load_tokenizer(checkpoint.path)
        device = choose_device(request.device)
    with closing(tokenizer), TemporaryDirectory() as scratch:
        with device_memory(device):
            decoder = load_model(request, checkpoint, device, Path(scratch), reporter)
        subject = Subject("", decoder, tokenizer)
        batches = make_batches(request, subject, read_text(request, subject, reporter), read_prompts(request, subject))
        return checked_cost(request, decoder, batches)
