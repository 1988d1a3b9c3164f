"""Runs the measurement from beginning to end: load, calibrate, sweep, compare predictions, write."""

import time
from contextlib import closing
from pathlib import Path

from service.contracts.harm.tables import MIXES, harm_tables
from service.contracts.request import MeasurementRequest, schemes_for, variants_for
from service.contracts.tables import TABLES
from workers.measurement.errors import ModelChanged
from workers.measurement.harm.stage import run_harm
from workers.measurement.inputs.calibration import Calibration
from workers.measurement.inputs.tokenizer import load_tokenizer
from workers.measurement.layers.streams import StreamCheckpoint
from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
from workers.measurement.layers.sweep_state import Batch, SweepState
from workers.measurement.mixes.cost import check_disk
from workers.measurement.mixes.stage import Measured, check_targets, run_mixes
from workers.measurement.models.checkpoint import Checkpoint, fingerprint, open_checkpoint
from workers.measurement.models.config import check_model_type
from workers.measurement.models.kept_modules import kept_modules
from workers.measurement.predictions.comparison import Predictions, compare_predictions, first_scored
from workers.measurement.predictions.label_separation import LabelSeparation, separate_labels
from workers.measurement.predictions.labelled_vectors import final_vectors, in_record_order
from workers.measurement.preparation import (
    Prompts,
    Subject,
    checked_cost,
    load_model,
    make_batches,
    read_prompts,
    read_text,
)
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.results.layer_summary import replaced_modules
from workers.measurement.results.mixes_section import isolated_errors
from workers.measurement.results.report import MeasurementResults
from workers.measurement.results.report_warnings import (
    warn_nonfinite,
    warn_overflow,
    warn_predictions,
    warn_replaced,
    warn_unquantized,
)
from workers.measurement.results.writing import write_report
from workers.measurement.runtime.device import (
    card_name,
    choose_device,
    device_memory,
)
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.table_writer import TableWriter, table_writers
from workers.measurement.runtime.workspace import identity_of, workspace


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
        model_fingerprint = _fingerprint(request, checkpoint)
        tokenizer = load_tokenizer(checkpoint.path)
        device = choose_device(request.device)
    identity = identity_of(request, model_fingerprint, card_name(device))
    with closing(tokenizer), workspace(out, identity) as work:
        with device_memory(device):
            decoder = load_model(request, checkpoint, device, work / "offloaded", reporter)
        subject = Subject(model_fingerprint, decoder, tokenizer)
        calibration = read_text(request, subject, reporter)
        prompts = read_prompts(request, subject)
        batches = make_batches(request, subject, calibration, prompts)
        if request.harm.measures:
            check_disk(checked_cost(request, decoder, batches), work)
        with device_memory(device, batches[0].token_ids.shape):
            state, files = _sweep(request, subject, batches, work, reporter)
            (work / "result").mkdir()
            mixes = (MIXES,) if request.recommend.enabled else ()
            wanted = (*TABLES.values(), *harm_tables(request.harm), *mixes)
            with table_writers(work / "result/tables", wanted, request.scheme_names) as tables:
                predictions = _compare(request, state, calibration, tables["tokens"], reporter)
                measured = _measured(request, state, files, predictions)
                check_targets(request, measured)
                whole = measured.divergences()
                harm = run_harm(request, state, calibration.token_ids, measured.replaced, whole, work, reporter)
                recommended = run_mixes(request, measured, harm, calibration.held_out, work, reporter)
                labelled = _separate(request, state, files, prompts, work / "result/tables", reporter)
                results = MeasurementResults(
                    request, model_fingerprint, subject.tokenizer, calibration, state, predictions, labelled, harm
                )
                warn_replaced(reporter)
                with reporter.stage("write"):
                    write_report(results, files, tables, recommended, work / "result/report.json", reporter)


def _fingerprint(request: MeasurementRequest, checkpoint: Checkpoint) -> str:
    """Return the fingerprint of the weights. Raises ModelChanged where others were asked for."""
    present = fingerprint(checkpoint.weight_files)
    if request.model.fingerprint not in (None, present):
        raise ModelChanged(
            f"model: {request.model.source!r} has other weights, {present}; needed: {request.model.fingerprint}"
        )
    return present


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
