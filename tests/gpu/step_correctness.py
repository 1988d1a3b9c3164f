"""Measures tiny models of six architectures on the device, and holds them against the same models loaded whole there.

Site figures of the tables against float64 ones of tensors that hooks took from the whole model; the last hidden
states and the logits of the reference, int8 and nf4 against `from_pretrained`, bit for bit. Where the whole model
itself does not give the same twice, that is named, and values may differ by the rounding of its type.

    N sequences of S tokens
"""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measuring_process import request_fields, write_token_ids
from step_support import SCHEMES, Context, quiet, run, tell_replaced

ARCHITECTURES = {
    "llama": "llama",
    "gemma3": "llama",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "mixtral": "llama",
    "qwen3": "llama",
}
"""Names in `architectures.CONFIGS`, and what `oracle.components` calls their modules' layout."""
SEQUENCES, LENGTH = 3, 48
LOUD, LOUDNESS = 3, 15.0
"""A dimension whose norms are so large that LLM.int8() keeps a column of it in 16 bits."""
BIN = 1 / 32
"""Relative width of a histogram bin: the stated error of a quantile."""
FROM_BINS = {"median_abs", "p99_abs", "p99_9_abs", "p99_99_abs", "max_to_median"}
EXACT, ROUGH = 1e-9, 2.0**-5
"""Relative difference that a figure may have: of the same numbers, and of numbers that the device gives in two ways."""


class Measured(NamedTuple):
    """A model, what was measured of it, and the same models whole."""

    path: Path
    out: Path
    report: dict[str, Any]
    token_ids: Any
    whole: dict[str, Any]
    """A `WholeModel` for `reference` and every scheme."""
    repeats: dict[str, bool]
    """Whether the whole model gave the same twice."""


def save_model(path: Path, config: Any) -> None:
    """Save a random bf16 model with an outlier dimension in every layer, without a tokenizer."""
    import torch
    from architectures import random_model

    model = random_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith(("norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight")):
                parameter[LOUD] = LOUDNESS
    model.save_pretrained(path)


def request_of(path: Path, tokens: Path, shape: tuple[int, int], device: str, **settings: Any) -> Any:
    """Return the request for a model on sequences [N, S], all in one batch unless the settings say otherwise."""
    from service.contracts.request import MeasurementRequest

    return MeasurementRequest.model_validate(request_fields(path, tokens, shape, device, **settings))


def configuration(settings: dict[str, Any]) -> Any:
    """Return bitsandbytes' configuration for a scheme with the settings that a report states."""
    from transformers import BitsAndBytesConfig

    if "threshold" in settings:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=settings["threshold"])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings["quant_type"],
        bnb_4bit_use_double_quant=settings["double_quantisation"],
        bnb_4bit_compute_dtype=settings["compute_dtype"],
    )


def measured(context: Context, name: str) -> Measured:
    """Make a model, measure it, and load and run it whole, twice for every variant."""
    import torch
    from architectures import CONFIGS, VOCABULARY
    from oracle import WholeModel

    from workers.measurement.program import measure
    from workers.measurement.runtime.progress import ProgressReporter

    path = context.scratch / f"tiny-{name}"
    save_model(path, CONFIGS[name]())
    token_ids = torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(5))
    tokens, out = path / "tokens.jsonl", path / "out"
    write_token_ids(tokens, token_ids)
    measure(request_of(path, tokens, (SEQUENCES, LENGTH), context.device), out, ProgressReporter(out=io.StringIO()))
    report = json.loads((out / "report.json").read_text())
    ids = token_ids.to(context.device)
    settings = {s: report["schemes"][s]["settings"] for s in SCHEMES}
    configurations = {"reference": None} | {s: configuration(settings[s]) for s in SCHEMES}
    whole = {variant: WholeModel(path, ids, quantization=q) for variant, q in configurations.items()}
    with torch.no_grad():
        again = {variant: model.model(input_ids=ids, use_cache=False).logits for variant, model in whole.items()}
    repeats = {variant: torch.equal(again[variant], model.logits) for variant, model in whole.items()}
    return Measured(path, out, report, token_ids, whole, repeats)


def swept(found: Measured, context: Context) -> dict[str, tuple[Any, Any]]:
    """Sweep once more, and return the hidden states after the last layer and the logits, by variant."""
    import torch
    from architectures import swept_logits

    from service.contracts.request import schemes_for
    from workers.measurement.layers.sweep import prepare_sweep, sweep_layers
    from workers.measurement.layers.sweep_state import Batch
    from workers.measurement.models.checkpoint import open_checkpoint
    from workers.measurement.models.loading import load_decoder

    analysis = request_of(found.path, found.path / "tokens.jsonl", (SEQUENCES, LENGTH), context.device)
    decoder = load_decoder(open_checkpoint(found.path), torch.device(context.device), found.path / "scratch")
    state = prepare_sweep(
        decoder,
        [Batch(found.token_ids)],
        schemes_for(analysis),
        analysis,
        budget_bytes=2**30,
        directory=found.path / "streams",
    )
    for _ in sweep_layers(state):
        pass
    return {name: (state.streams.get(name, 0), swept_logits(state, name)) for name in state.streams.names}


def predictions_differ(found: Measured, architecture: str, context: Context) -> Iterator[str]:
    """Yield the variants whose hidden states or logits are not the whole model's to the bit, with how far they are."""
    import torch
    from oracle import block

    last = block(ARCHITECTURES[architecture], found.report["model"]["layers"] - 1)
    for variant, (hidden, logits) in swept(found, context).items():
        whole = found.whole[variant]
        for what, own, other in (("hidden", hidden, whole.outputs[last]), ("logits", logits, whole.logits)):
            if not torch.equal(own, other):
                most = ((own.float() - other.float()).abs().max() / other.float().abs().max()).item()
                yield f"{variant} {what} differ by {most:.2g} of the largest"


def site_differences(found: Measured, architecture: str) -> Iterator[tuple[str, float]]:
    """Yield every site figure of the report with its difference from the whole model's, see `difference`."""
    import pyarrow.parquet as pq
    from oracle import components, site_figures

    layout, whole = ARCHITECTURES[architecture], found.whole["reference"]
    for row in pq.read_table(found.out / "tables/sites.parquet").to_pylist():
        site = (row["layer"], row["component"], row["port"])
        if row["component"] != "block" and row["component"] not in components(layout, site[0], whole.model.config):
            yield f"{site} has no counterpart in the whole model", math.inf
            continue
        figures = site_figures(whole.site(layout, *site))
        for name, value in figures.items():
            yield f"{site} {name}", difference(name, row[name], float(value))


def difference(name: str, own: float | None, value: float) -> float:
    """Return the relative difference of a figure; of what comes out of a histogram, what is beyond the bin's width."""
    if own is None or not math.isfinite(value):
        return 0.0 if own is None and math.isnan(value) else math.inf
    if name == "range_bits":
        return max(0.0, abs(own - value) - math.log2(1 + BIN))
    apart = abs(own - value) / max(abs(value), 1e-3)
    return max(0.0, apart - BIN) if name in FROM_BINS else apart


def kl_differences(found: Measured) -> Iterator[str]:
    """Yield the schemes whose mean KL divergence is not that of the whole models' logits.

    The measurement multiplies by the output head for a few positions at a time, so logits may differ by their rounding.
    """
    import torch

    log_p = torch.log_softmax(found.whole["reference"].logits.double(), dim=-1)[:, :-1]
    for scheme in SCHEMES:
        log_q = torch.log_softmax(found.whole[scheme].logits.double(), dim=-1)[:, :-1]
        mean = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()
        reported = found.report["schemes"][scheme]["kl_divergence"]["mean"]
        if not abs(reported - mean) <= 0.05 * mean + 1e-5:
            yield f"the mean KL divergence of {scheme} is {reported:.6g} nats, of the whole models {mean:.6g}"


def check_model(context: Context, architecture: str) -> None:
    """Tell how one model's tables, hidden states and logits compare with the whole model's."""
    found = measured(context, architecture)
    unsteady = [variant for variant, repeats in found.repeats.items() if not repeats]
    if unsteady:
        context.detail(f"{architecture}: the whole model does not repeat itself", unsteady)
    differing = list(predictions_differ(found, architecture, context))
    context.detail(f"{architecture}: not equal to the whole model", differing)
    differences = dict(site_differences(found, architecture))
    worst = max(differences, key=lambda figure: differences[figure])
    allowed = ROUGH if any(text.startswith("reference") for text in differing) else EXACT
    problems = [
        f"{text}, and the whole model repeats itself" for text in differing if not text.startswith((*unsteady,))
    ]
    if not differences[worst] <= allowed:
        problems.append(f"{worst} is {differences[worst]:.3g} from that of the whole model")
    for problem in (*problems, *kl_differences(found)):
        context.problem(f"{architecture}: {problem}")
    equal = "yes" if not differing else f"but {'; '.join(differing)}"
    context.figure(f"{architecture}: hidden states and logits equal to `from_pretrained`", equal)
    named = f"{architecture}: largest difference of {len(differences)} site figures"
    context.figure(named, differences[worst], at_most=allowed)


def check_all(context: Context) -> None:
    """Check every architecture."""
    quiet()
    for architecture in ARCHITECTURES:
        try:
            check_model(context, architecture)
        except Exception as error:  # the other ones are still to be checked
            context.problem(f"{architecture}: {type(error).__name__}: {error}"[:300])
            raise_on_device_loss(error)
    tell_replaced(context)


def raise_on_device_loss(error: Exception) -> None:
    """After an illegal access nothing can be asked of the device again."""
    if "illegal memory access" in str(error) or "device-side assert" in str(error):
        raise error


if __name__ == "__main__":
    run(check_all)
