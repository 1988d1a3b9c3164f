"""The harm of nf4 on a checkpoint, by the stages of a measurement: for benchmarks of estimates and mixes."""

import io
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.contracts.request import MeasurementRequest, schemes_for
from workers.measurement.harm.copies import Module, component_of
from workers.measurement.harm.measuring import HarmResults
from workers.measurement.harm.stage import run_harm
from workers.measurement.layers.sweep import prepare_sweep
from workers.measurement.layers.sweep_state import Batch
from workers.measurement.mixes.units import QuantizedModule
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import projections
from workers.measurement.runtime.progress import ProgressReporter

BITS = {"kept": 16.0, "nf4": 4.5}


def copied(path: Path, dtype: str, directory: Path) -> Path:
    """Return the checkpoint in another type."""
    AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(path).save_pretrained(directory)
    return directory


def quantized_modules(decoder: Decoder) -> list[QuantizedModule]:
    """Every module of the layers that nf4 quantizes, with its bytes at 16 bits."""
    modules = []
    for index, layer in enumerate(decoder.layers):
        for part in projections(layer, decoder.layer_config(index)):
            elements = layer.get_submodule(part.name).weight.numel()
            extra = int(elements * (BITS["kept"] - BITS["nf4"]) / 8)
            modules.append(QuantizedModule(index, f"{decoder.prefix}{index}.{part.name}", component_of(part), extra))
    return modules


def nf4_harm(request: MeasurementRequest, decoder: Decoder, token_ids: torch.Tensor, scratch: Path) -> HarmResults:
    """Return the harm that the request asks for, of nf4, over token ids [N, S]."""
    schemes, quiet = schemes_for(request), ProgressReporter(out=io.StringIO())
    batches = [Batch(part) for part in token_ids.split(4)]
    state = prepare_sweep(decoder, batches, schemes, request, budget_bytes=2**31, directory=scratch / "streams")
    modules = [Module(m.layer, m.name.removeprefix(f"{decoder.prefix}{m.layer}.")) for m in quantized_modules(decoder)]
    harm = run_harm(request, state, token_ids, {"nf4": dict.fromkeys(modules, 0)}, {}, scratch, quiet)
    assert harm is not None
    return harm
