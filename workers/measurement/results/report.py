"""Builds `report.json` from a measurement's results."""

import platform
import resource
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from uuid import uuid4

import numpy as np
import torch
from torch import nn

from service.contracts import report as contract
from service.contracts.harm.facts import HarmFacts
from service.contracts.harm.tables import MIXES, harm_tables
from service.contracts.request import Analysis, MeasurementRequest
from service.contracts.schemes import Scheme
from service.contracts.sections import provenance
from service.contracts.tables import TABLES
from service.evaluation.verdict import with_verdicts
from workers.measurement.harm.measuring import HarmResults
from workers.measurement.inputs.calibration import Calibration
from workers.measurement.inputs.tokenizer import LazyTokenizer
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.components import heads
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import is_projection
from workers.measurement.predictions.comparison import Predictions
from workers.measurement.predictions.label_separation import LabelSeparation
from workers.measurement.predictions.metrics import delta_p, kl_divergence, perplexity, perplexity_ratio, same_top_token
from workers.measurement.results.assembly import Assembled
from workers.measurement.results.profile import Profile
from workers.measurement.runtime.device import device_name, peak_bytes
from workers.measurement.runtime.progress import ProgressReporter


@dataclass(frozen=True)
class MeasurementResults:
    """All results of a measurement, and what it was made on."""

    request: MeasurementRequest
    fingerprint: str
    """Of the model."""
    tokenizer: LazyTokenizer
    calibration: Calibration
    state: SweepState
    """After the last layer."""
    predictions: Predictions
    labelled: LabelSeparation | None
    harm: HarmResults | None

    def describe_token(self, sequence: int, position: int) -> tuple[int, str | None]:
        """Return the id and the text of the token at a position."""
        token_id = int(self.calibration.token_ids[sequence, position])
        return token_id, self.tokenizer.decode([token_id])


def model_facts(request: MeasurementRequest, decoder: Decoder, fingerprint: str) -> provenance.ModelFacts:
    """Return the facts of the model."""
    config = decoder.config
    layouts = {heads(decoder.layer_config(layer)) for layer in range(len(decoder.layers))}
    layout = layouts.pop() if len(layouts) == 1 else None  # layers that differ have no number of heads in common
    return provenance.ModelFacts(
        source=request.model.source,
        revision=request.model.revision,
        fingerprint=fingerprint,
        architecture=type(decoder.model).__name__,
        layers=len(decoder.layers),
        hidden_size=config.hidden_size,
        heads=layout.query if layout else None,
        kv_heads=layout.key_value if layout else None,
        head_dim=layout.width if layout else None,
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in decoder.model.parameters()),
        weight_bytes=sum(p.nbytes for p in decoder.model.parameters()),
        dtype=str(decoder.dtype).removeprefix("torch."),
    )


def calibration_facts(request: MeasurementRequest, calibration: Calibration, batch: int) -> provenance.CalibrationFacts:
    """Return the facts of the calibration text."""
    sequences, length = calibration.token_ids.shape
    return provenance.CalibrationFacts(
        source=request.calibration.source,
        fingerprint=calibration.fingerprint,
        sequences=sequences,
        sequence_length=length,
        tokens=sequences * length,
        adds_bos=calibration.adds_bos,
        documents=calibration.documents,
        separator=calibration.separator,
        seed=request.seed,
        batch_sequences=batch,
    )


def environment(decoder: Decoder, paths: dict[str, str]) -> provenance.Environment:
    """Return the device, the libraries and the code paths of the measurement."""
    return provenance.Environment(
        device=device_name(decoder.device),
        torch=torch.__version__,
        transformers=version("transformers"),
        bitsandbytes=version("bitsandbytes"),
        python=platform.python_version(),
        kernels=paths,
    )


def timing(reporter: ProgressReporter, device: torch.device) -> provenance.Timing:
    """Return the time and the memory that the measurement took so far."""
    # Linux counts the peak in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return provenance.Timing(
        wall_seconds=reporter.elapsed,
        stage_seconds=reporter.stage_seconds,
        peak_memory_bytes=provenance.PeakMemory(
            resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            device=peak_bytes(device),
        ),
        resumed_at_layer=reporter.resumed_at_layer,
    )


def reference_facts(predictions: Predictions) -> contract.ReferenceFacts:
    """Return the perplexity of the unquantized model on the text."""
    finite = np.isfinite(predictions.reference_nll)
    if not finite.any():
        return contract.ReferenceFacts(perplexity=None)
    return contract.ReferenceFacts(
        perplexity=perplexity(predictions.reference_nll[finite], predictions.sequence[finite])
    )


def scheme_facts(scheme: Scheme, results: MeasurementResults, assembled: Assembled) -> contract.SchemeFacts:
    """Return the facts of a scheme: predictions, sizes, and largest errors."""
    decoder, name = results.state.decoder, scheme.name
    outside = results.state.outside[name]
    reference_bytes = sum(p.nbytes for p in decoder.model.parameters())
    model_bytes = reference_bytes - assembled.copies[name].saved_bytes - outside.saved_bytes
    comparison = results.predictions.comparisons[name].where_finite()
    compared = len(comparison.same_top) > 0
    left = {*outside.left, *(f"{decoder.prefix}{layer}.{module}" for layer, module in assembled.copies[name].left)}
    left |= set(results.state.kept.get(name, ()))
    names = not_quantised(decoder, left)
    return contract.SchemeFacts(
        scheme=next(variant.scheme for variant in results.request.schemes if variant.name == name),
        settings=scheme.settings,
        simulated=scheme.simulated,
        analysis_only=scheme.analysis_only,
        perplexity=perplexity(comparison.nll_scheme, comparison.sequence) if compared else None,
        perplexity_ratio=perplexity_ratio(comparison) if compared else None,
        kl_divergence=kl_divergence(comparison) if compared else None,
        same_top_token=same_top_token(comparison) if compared else None,
        delta_p=delta_p(comparison) if compared else None,
        model_bytes=model_bytes,
        compression=reference_bytes / model_bytes,
        quantised_share=_quantised_share(decoder, left),
        not_quantised=names,
        not_quantised_bytes=_matrix_bytes(decoder, names),
        worst_sites=assembled.worst_sites[name],
        fp16_columns=assembled.fp16_columns.get(name),
    )


def not_quantised(decoder: Decoder, left: Collection[str] = ()) -> tuple[str, ...]:
    """Name the modules that hold a weight matrix of their own which a scheme does not replace.

    First come those that no scheme replaces, then those projections of `left`, which it left as they are.
    """
    modules = {name: module for name, module in decoder.model.named_modules() if _matrix_elements(module)}
    inside = {name for name, module in modules.items() if name.startswith(decoder.prefix) and is_projection(module)}
    replaced = inside.union(decoder.outside)
    never = [name for name in modules if name not in replaced]
    return (*never, *(name for name in modules if name in replaced.intersection(left)))


def _quantised_share(decoder: Decoder, left: Collection[str]) -> float:
    """Return the share of the layers' weights, of those in matrices, that a scheme replaced.

    left: names of projections of the layers that it left as they are.
    """
    replaced = whole = 0
    for index, layer in enumerate(decoder.layers):
        for name, module in layer.named_modules():
            size = _matrix_elements(module)
            whole += size
            replaced += size if is_projection(module) and f"{decoder.prefix}{index}.{name}" not in left else 0
    return replaced / (whole or 1)


def _matrix_bytes(decoder: Decoder, names: Collection[str]) -> int:
    """Return the bytes of the modules' own weight matrices; one that modules share counts once."""
    matrices = [
        parameter
        for name in names
        for parameter in decoder.model.get_submodule(name).parameters(recurse=False)
        if parameter.ndim >= 2
    ]
    return sum({id(matrix): matrix.nbytes for matrix in matrices}.values())


def _matrix_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.ndim >= 2)


def profile_facts(profile: Profile, results: MeasurementResults) -> contract.ProfileFacts:
    """Return where the vector of the `profile` table was taken, and its statistics."""
    token_id, token = results.describe_token(profile.sequence, profile.position)
    return contract.ProfileFacts(
        layer=len(results.state.decoder.layers) - 1,
        sequence=profile.sequence,
        position=profile.position,
        token_id=token_id,
        token=token,
        median_abs=profile.median_abs,
        p99_abs=profile.p99_abs,
        max_to_median=profile.max_to_median,
        kurtosis=profile.kurtosis,
    )


def build_report(
    results: MeasurementResults,
    assembled: Assembled,
    profile: Profile,
    harm: dict[str, HarmFacts] | None,
    reporter: ProgressReporter,
) -> contract.Report:
    """Return the whole of `report.json`; its figures are drawn later, from the tables."""
    request, state, decoder = results.request, results.state, results.state.decoder
    labelled = results.labelled
    report = contract.Report(
        schema_version=contract.SCHEMA_VERSION,
        definitions_version=contract.DEFINITIONS_VERSION,
        headroom_version=version("headroom"),
        job_id=request.job_id or uuid4().hex,
        created_at=datetime.now(UTC),
        model=model_facts(request, decoder, results.fingerprint),
        analysis=Analysis(**{name: getattr(request, name) for name in Analysis.model_fields}),
        calibration=calibration_facts(request, results.calibration, len(state.batches[0].token_ids)),
        environment=environment(decoder, {name: copies.paths for name, copies in assembled.copies.items()}),
        outliers=assembled.outliers,
        massive_activations=assembled.massive_activations,
        heads=assembled.heads,
        reference=reference_facts(results.predictions),
        schemes={scheme.name: scheme_facts(scheme, results, assembled) for scheme in state.schemes},
        profile=profile_facts(profile, results),
        surface=assembled.surface,
        warnings=tuple(reporter.warnings),
        figures=(),
        labelled=labelled.section if labelled else None,
        harm=harm,
        tables=_table_entries(request, labelled),
        timing=timing(reporter, decoder.device),
    )
    return with_verdicts(report)


def _table_entries(request: MeasurementRequest, labelled: LabelSeparation | None) -> tuple[contract.Entry, ...]:
    """Return the entries of the tables that the request asks for."""
    tables = (
        *TABLES.values(),
        *harm_tables(request.harm),
        *((MIXES,) if request.recommend.enabled else ()),
        *((labelled.table,) if labelled else ()),
    )
    return tuple(
        contract.Entry(name=t.name, title=t.title, caption=t.title, files=(f"tables/{t.name}.parquet",)) for t in tables
    )
