"""How much recommended mixes win on a real model, at equal bytes, on text that chose nothing.

    python tests/benchmarks/mix_quality.py MODEL [--dtype float32] [--sequences 16] [--draws 4] [--share 0.02 ...]
        [--split-groups]

MODEL is the checkpoint of `bash deploy/real_model.sh`. Bytes are those of 16-bit weights, whatever the type; budgets
are shares of the quantized modules' bytes under nf4. Every mean KL divergence is stated as a ratio to uniform nf4 on
the same held-out sequences, with what was predicted beside it.
"""

import argparse
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import program_environment  # noqa: F401  (before torch)
import torch
from nf4_harm import BITS, copied, nf4_harm, quantized_modules

from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.request import Analysis, MeasurementRequest
from service.contracts.schemes import SCHEMES, Scheme
from workers.measurement.__main__ import quiet_libraries
from workers.measurement.inputs.calibration import calibrate
from workers.measurement.inputs.tokenizer import load_tokenizer
from workers.measurement.layers.copies.quantize_layer import quantize_layer
from workers.measurement.mixes.mix_sweep import Mix, Workplace, measure_mixes
from workers.measurement.mixes.plan import MixInputs, Plan, plan_mixes
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import projections
from workers.measurement.quantization.resolving import resolved
from workers.measurement.runtime.progress import ProgressReporter

SHARES = (0.02, 0.05, 0.10, 0.25)
TEXT = Path(__file__).parents[2] / "workers/samples/calibration.txt"


def products(request: MeasurementRequest, decoder: Decoder, token_ids: torch.Tensor, scratch: Path) -> np.ndarray:
    """a_m of every module, [N, S, M], in the order of the modules."""
    found = nf4_harm(request, decoder, token_ids, scratch).schemes["nf4"].products
    assert found is not None
    prefix = decoder.prefix
    names = [f"{prefix}{module.layer}.{module.name}" for module in found.modules]
    return found.matrix()[:, :, [names.index(module.name) for module in quantized_modules(decoder)]]


def weight_errors(decoder: Decoder, scheme: Scheme) -> dict[str, float]:
    """The relative error of every module's weight, by its name."""
    errors = {}
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            parts = projections(layer, decoder.layer_config(index))
            made = quantize_layer(layer, parts, scheme)
            for part in parts:
                errors[f"{decoder.prefix}{index}.{part.name}"] = max(made.weight_errors[c] or 0.0 for c in part.parts)
    return errors


def planned(harm: MixInputs, share: float, whole_groups: bool) -> Plan:
    """The plan for a share of the quantized bytes."""
    quantized = sum(module.extra_bytes for module in harm.modules) * BITS["nf4"] / (BITS["kept"] - BITS["nf4"])
    settings = RecommendSettings(
        enabled=True, max_bytes=harm.uniform_bytes + int(share * quantized), whole_groups=whole_groups
    )
    return plan_mixes(harm, settings, seed=0)


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--share", type=float, action="append", help="of nf4's bytes; repeatable")
    parser.add_argument(
        "--held-out", type=int, default=16, help="sequences to measure on, as many as --sequences at most"
    )
    parser.add_argument("--split-groups", action="store_true")
    parser.add_argument("--products", type=Path, help="keep the inner products in this file, or take them from it")
    options = parser.parse_args()
    quiet_libraries()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        measure(options, Path(made))


def measure(options: argparse.Namespace, scratch: Path) -> None:
    """Choose on one half of the text, measure on the other."""
    path = copied(options.model, options.dtype, scratch / "model")
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), scratch / "offloaded")
    harm_settings = {"estimate": True, "exact": "none", "draws": options.draws}
    settings = {"recommend": {"enabled": True}, "harm": harm_settings, "schemes": ["nf4"]}
    request = MeasurementRequest.model_validate(
        {"model": {"path": path}, "calibration": {"path": TEXT}, "sequences": options.sequences,
         "sequence_length": options.sequence_length} | settings
    )  # fmt: skip
    text = calibrate(request, load_tokenizer(path), decoder.config.vocab_size)
    scheme = resolved(SCHEMES["nf4"], decoder.dtype)
    modules = quantized_modules(decoder)
    if options.products is not None and options.products.exists():
        values = np.load(options.products)
    else:
        values = products(request, decoder, text.token_ids, scratch)
        if options.products is not None:
            np.save(options.products, values)
    names = frozenset(module.name for module in modules)
    size = 10**9  # of the model, which only has to be larger than what is added
    harm = MixInputs(
        scheme,
        modules,
        values,
        options.sequence_length - 1,
        1.0,
        size,
        10 * size,
        weight_errors(decoder, scheme),
        frozenset(),
        names,
    )
    plans = {share: planned(harm, share, not options.split_groups) for share in options.share or SHARES}
    mixes = [
        Mix(f"{share} {name}", scheme, plan.kept(name))
        for share, plan in plans.items()
        for name in (*plan.mixes, *plan.controls)
        if name != "uniform" or share == next(iter(plans))
    ]
    predictions = measure_mixes(
        decoder, mixes, text.held_out[: options.held_out].split(4), Analysis(), 0,
        Workplace(2**31, scratch / "streams", checkpoint_seconds=3600), ProgressReporter(out=io.StringIO()),
    )  # fmt: skip
    kl = {name: float(comparison.kl_divergence.mean()) for name, comparison in predictions.comparisons.items()}
    report(plans, kl)


def report(plans: Mapping[float, Plan], kl: Mapping[str, float]) -> None:
    """Print every mix and control as its ratio to uniform nf4."""
    uniform = kl[f"{next(iter(plans))} uniform"]
    print(f"uniform nf4, held out: {uniform:.4f} nats")
    for share, plan in plans.items():
        print(f"+{share:.0%} of nf4's bytes")
        for name, kept in (plan.mixes | plan.controls).items():
            if name != "uniform":
                ratio, expected = kl[f"{share} {name}"] / uniform, plan.prediction.divergence(kept)
                size = plan.extra_bytes(name) / 1e6
                print(f"  {name:14} {ratio:.3f}   predicted {expected:.3f}   {size:6.2f} MB, {int(kept.sum())} modules")


if __name__ == "__main__":
    main()
