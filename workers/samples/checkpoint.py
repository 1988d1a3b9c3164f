"""The files of the sample: the checkpoint, its texts, the planted truth and the model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from workers.samples import evaluation
from workers.samples.planting import FOLLOWERS, MAGNITUDE, MARGIN, Plan
from workers.samples.statements import KINDS, Statement

NOTES = (
    "The dimensions listed are the outliers by the definition, and no others are. factor: the norms' weights at the "
    "dimension were multiplied by it in these layers, and the columns that follow divided. largest_magnitude: the "
    "largest threshold at which the dimension would still be an outlier; natural_largest_magnitude: the same before "
    "the scaling. quieted: dimensions that training made strong, scaled down so that they are no outliers."
)
SCHEMES: dict[str, dict[str, object]] = {
    "int8": {"load_in_8bit": True},
    "int8 without outlier columns": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"},
}
"""Quantizations that the model card gives figures of: the arguments of BitsAndBytesConfig. The model is loaded in
float32 for them, and so nf4 computes in it too."""


@dataclass(frozen=True)
class Figures:
    """What was measured on the checkpoint as shipped; perplexities and divergences are of the held-out text."""

    parameters: int
    unigram: float
    """Perplexity of the best unigram model for the held-out text."""
    perplexity: float
    quantized: dict[str, tuple[float, float]]
    """By quantization, a key of `SCHEMES`: perplexity, and mean KL divergence in nats from the model itself."""
    judged: dict[str, float]
    """By kind of statement, the share of labeled prompts judged rightly."""


def load(directory: Path, quantization: Mapping[str, object] | None = None) -> LlamaForCausalLM:
    """The checkpoint for evaluation, computing in float32, or quantized by bitsandbytes with these arguments."""
    how = BitsAndBytesConfig(**quantization) if quantization else None  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, quantization_config=how)
    assert isinstance(model, LlamaForCausalLM)
    return model


def labelled_lines(statements: Sequence[Statement]) -> str:
    """One record a line: the prompt and its label."""
    return "".join(f"{json.dumps({'prompt': s.prompt, 'label': s.label})}\n" for s in statements)


def planted_truth(
    model: LlamaForCausalLM, plan: Plan, natural: torch.Tensor, calibration: torch.Tensor
) -> dict[str, object]:
    """State the scaled dimensions and what the model shows of them.

    Args:
        model: the checkpoint as shipped.
        plan: what was done to it.
        natural: for each channel [d] the largest threshold at which it was an outlier before.
        calibration: token ids [N, S].

    Raises:
        ValueError: a planted dimension is not far enough over the magnitude, or another one not far enough under.
    """
    peaks = evaluation.layer_peaks(model, calibration)
    critical = evaluation.critical_magnitudes(peaks)
    planted = [scaling.dimension for scaling in plan.planted]
    other = next(j for j in critical.argsort(descending=True).tolist() if j not in planted)
    weakest, strongest = critical[planted].min().item(), critical[other].item()
    over, under = MAGNITUDE * MARGIN, MAGNITUDE / MARGIN
    if weakest < over or strongest > under:
        raise ValueError(
            f"plan: the weakest planted dimension reaches {weakest:.2f} and dimension {other}, which is not "
            f"planted, {strongest:.2f}; allowed are {over} or more and {under} or less"
        )
    before = {j: {"natural_largest_magnitude": value} for j, value in enumerate(natural.tolist())}
    return {
        "definition": "llm_int8",
        "magnitude": MAGNITUDE,
        "norms": list(FOLLOWERS),
        "measured_on": {"sequences": calibration.shape[0], "sequence_length": calibration.shape[1]},
        "dimensions": [
            asdict(s) | before[s.dimension] | shown(peaks[..., s.dimension], critical[s.dimension])
            for s in sorted(plan.planted, key=lambda scaling: scaling.dimension)
        ],
        "quieted": [asdict(s) | before[s.dimension] for s in plan.quieted],
        "strongest_other": {"dimension": other, "largest_magnitude": strongest},
        "notes": NOTES,
    }


def shown(peaks: torch.Tensor, critical: torch.Tensor) -> dict[str, float]:
    """What the definition asks of one dimension, from its abs(x) [L, T] and its largest threshold []."""
    reached = peaks >= MAGNITUDE
    return {
        "layers_fraction": reached.any(1).double().mean().item(),
        "positions_fraction": reached.any(0).double().mean().item(),
        "abs_max": peaks.max().item(),
        "largest_magnitude": critical.item(),
    }


def measure(directory: Path, held_out: torch.Tensor, statements: Sequence[Statement]) -> Figures:
    """Evaluate the checkpoint on the held-out sequences [N, S] and on the labeled statements."""
    model = load(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    right = evaluation.judged_rightly(model, tokenizer, statements)
    kinds = [statement.kind for statement in statements]
    judged = {kind: [ok for ok, k in zip(right, kinds, strict=True) if k == kind] for kind in KINDS}
    quantized = {name: load(directory, how) for name, how in SCHEMES.items()}
    return Figures(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        unigram=evaluation.unigram_perplexity(held_out),
        perplexity=evaluation.perplexity(model, held_out),
        quantized={
            name: (evaluation.perplexity(other, held_out), evaluation.kl_divergence(model, other, held_out))
            for name, other in quantized.items()
        },
        judged={kind: sum(oks) / len(oks) for kind, oks in judged.items()},
    )
