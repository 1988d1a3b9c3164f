"""Runs the measurement from beginning to end: load, calibrate, sweep, compare predictions, write."""

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from service.contracts.harm.tables import MIXES, harm_tables
from service.contracts.request import MeasurementRequest, schemes_for, variants_for
from service.contracts.tables import TABLES
from workers.measurement.errors import BadRequest
from workers.measurement.harm.stage import run_harm
from workers.measurement.inputs.calibration import Calibration, calibrate
from workers.measurement.inputs.labelled_batches import LabelledBatch, labelled_batches
from workers.measurement.inputs.labelled_prompts import LabelledRecords, read_labelled
from workers.measurement.inputs.tokenizer import LazyTokenizer, bos_token, load_tokenizer
from workers.measurement.layers.streams import StreamCheckpoint
from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
from workers.measurement.layers.sweep_state import Batch, SweepState
from workers.measurement.mixes.stage import Measured, check_targets, run_mixes
from workers.measurement.models.checkpoint import Checkpoint, fingerprint, open_checkpoint
from workers.measurement.models.components import ARCHITECTURES
from workers.measurement.models.config import check_model_type
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.kept_modules import kept_modules
from workers.measurement.models.loading import load_decoder
from workers.measurement.predictions.comparison import Predictions, compare_predictions, first_scored
from workers.measurement.predictions.label_separation import LabelSeparation, separate_labels
from workers.measurement.predictions.labelled_vectors import final_vectors, in_record_order
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.layer_summary import replaced_modules
from workers.measurement.results.mixes_section import isolated_errors
from workers.measurement.results.report import MeasurementResults
from workers.measurement.results.report_warnings import (
    warn_calibration,
    warn_nonfinite,
    warn_overflow,
    warn_predictions,
    warn_replaced,
    warn_unknown_architecture,
    warn_unquantized,
)
from workers.measurement.results.writing import write_report
from workers.measurement.runtime.device import (
    card_name,
    choose_device,
    device_memory,
    require_bitsandbytes,
    total_bytes,
)
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.table_writer import TableWriter, table_writers
from workers.measurement.runtime.workspace import identity_of, workspace
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


def measure(request: MeasurementRequest, out: Path, reporter: ProgressReporter) -> None:
    """Measure what the request asks for, and leave report.json and tables/ in `out`.

    Goes on where the same measurement was killed before. Otherwise `out` is whole or as it was.

    Raises:
        MeasurementError: the request, the model or the text is at fault; says which and how.
        OSError: the output cannot be written.
    """
    with reporter.stage("load"):
        checkpoint = open_checkpoint(request.model.path)
        if not request.any_model_type:
            check_model_type(checkpoint)
        model_fingerprint = fingerprint(checkpoint.weight_files)
        tokenizer = load_tokenizer(checkpoint.path)
        device = choose_device(request.device)
    identity = identity_of(request, model_fingerprint, card_name(device))
    with closing(tokenizer), workspace(out, identity) as work:
        with device_memory(device):
            decoder = _load(request, checkpoint, device, work / "offloaded", reporter)
        subject = Subject(model_fingerprint, decoder, tokenizer)
        calibration = _calibrate(request, subject, reporter)
        prompts = _prompts(request, subject)
        batches = _batches(request, subject, calibration, prompts)
        with device_memory(device, batches[0].token_ids.shape):
            state, files = _sweep(request, subject, batches, work, reporter)
            (work / "result").mkdir()
            mixes = (MIXES,) if request.recommend.enabled else ()
            wanted = (*TABLES.values(), *harm_tables(request.harm), *mixes)
            with table_writers(work / "result/tables", wanted, request.scheme_names) as tables:
                predictions = _compare(request, state, calibration, tables["tokens"], reporter)
                measured = _measured(request, state, files, predictions)
                check_targets(request, measured)
                harm = run_harm(request, state, calibration.token_ids, measured.replaced, work, reporter)
                recommended = run_mixes(request, measured, harm, calibration.held_out, work, reporter)
                labelled = _separate(request, state, files, prompts, work / "result/tables", reporter)
                results = MeasurementResults(
                    request, model_fingerprint, subject.tokenizer, calibration, state, predictions, labelled, harm
                )
                warn_replaced(reporter)
                with reporter.stage("write"):
                    write_report(results, files, tables, recommended, work / "result/report.json", reporter)


def _load(
    request: MeasurementRequest,
    checkpoint: Checkpoint,
    device: torch.device,
    scratch: Path,
    reporter: ProgressReporter,
) -> Decoder:
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


def _calibrate(request: MeasurementRequest, subject: Subject, reporter: ProgressReporter) -> Calibration:
    with reporter.stage("calibrate"):
        calibration = calibrate(request, subject.tokenizer, subject.decoder.config.vocab_size)
        warn_calibration(request, calibration, reporter)
        return calibration


def _prompts(request: MeasurementRequest, subject: Subject) -> Prompts | None:
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


def _batches(
    request: MeasurementRequest, subject: Subject, calibration: Calibration, prompts: Prompts | None
) -> list[Batch]:
    """Return what goes through the layers, the calibration text first."""
    usual = max(1, _batch_tokens(request, subject.decoder) // request.sequence_length)
    text = calibration.token_ids.split(request.batch_sequences or usual)
    return [
        *(Batch(token_ids) for token_ids in text),
        *(Batch(batch.token_ids, measured=False) for batch in (prompts.batches if prompts else ())),
    ]


def _sweep(
    request: MeasurementRequest, subject: Subject, batches: list[Batch], work: Path, reporter: ProgressReporter
) -> tuple[SweepState, LayerFiles]:
    """Take every stream through every layer, keeping what is needed to go on after a kill."""
    decoder = subject.decoder
    files = LayerFiles(work / "layers", request.scheme_names, request.heads)
    checkpoint = StreamCheckpoint(work / "checkpoint")
    first = checkpoint.layers_done()
    kept = kept_modules(variants_for(request), decoder)
    batch = len(batches[0].token_ids)
    with reporter.stage("sweep", total=len(decoder.layers), done=first, batch_sequences=batch) as progress:
        state = prepare_sweep(
            decoder,
            batches,
            schemes_for(request),
            request,
            budget_bytes=request.memory_bytes,
            directory=work / "streams",
            kept=kept,
        )
        checkpoint.load(state.streams)
        files.keep_first(first)
        for layer in range(first):
            reporter.recall(files.facts(layer).warnings)
        reporter.resumed_at_layer = first or None
        saved_at = time.monotonic()
        for layer_results in sweep_layers(state, first):
            files.write(layer_results, warn_nonfinite(layer_results, reporter))
            progress.done(layer_results.layer + 1)
            due = time.monotonic() - saved_at >= request.checkpoint_seconds
            if due or (request.harm.measures and layer_results.layer + 1 == len(decoder.layers)):  # harm takes longer
                checkpoint.save(layer_results.layer + 1, state.streams)
                saved_at = time.monotonic()
    warn_unquantized(state, files, reporter)
    warn_overflow(state, files, reporter)
    return state, files


def _compare(
    request: MeasurementRequest,
    state: SweepState,
    calibration: Calibration,
    table: TableWriter,
    reporter: ProgressReporter,
) -> Predictions:
    first = first_scored(request.score, request.sequence_length)
    with reporter.stage("divergence", total=len(calibration.token_ids)) as progress:
        predictions = compare_predictions(state, calibration.token_ids, first, table, progress)
    warn_predictions(predictions, state.decoder.config.vocab_size, reporter)
    return predictions


def _measured(request: MeasurementRequest, state: SweepState, files: LayerFiles, predictions: Predictions) -> Measured:
    """Gather what harm and mixes need to know."""
    layers = len(state.decoder.layers)
    replaced = replaced_modules(files, layers, request.scheme_names)
    return Measured(state, predictions, replaced, isolated_errors(files, state.decoder, request.scheme_names))


def _separate(
    request: MeasurementRequest,
    state: SweepState,
    files: LayerFiles,
    prompts: Prompts | None,
    tables: Path,
    reporter: ProgressReporter,
) -> LabelSeparation | None:
    """Find the dimensions that tell true prompts from false ones, and write the `labelled` table."""
    if prompts is None or request.labelled is None:
        return None
    depth = request.label_depth
    if depth is None:
        vectors = final_vectors(state, prompts.batches)
    else:
        names = state.streams.names
        vectors = {name: in_record_order(prompts.batches, files.labelled(depth, name)) for name in names}
    separation = separate_labels(prompts.records, vectors, request.labelled, request, adds_bos=prompts.adds_bos)
    reporter.recall(separation.warnings)
    writer = TableWriter(separation.table, (), tables / "labelled.parquet")
    writer.append(separation.columns)
    writer.close()
    return separation
