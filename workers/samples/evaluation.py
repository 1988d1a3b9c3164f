"""Measures the figures that the model card and planted.json state, on the checkpoint that is shipped.

Shape legend: N sequences, S tokens in each, T = N * S positions, L layers, d channels.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workers.samples.statements import Statement

LAYERS_FRACTION = 0.25
POSITIONS_FRACTION = 0.06
BATCH = 16


@torch.inference_mode()
def perplexity(model: nn.Module, ids: torch.Tensor) -> float:
    """Exp of the mean negative log-likelihood of every next token of ids [N, S], in float64."""
    total = 0.0
    for batch in torch.split(ids, BATCH):
        log_p = model(input_ids=batch).logits[:, :-1].double().log_softmax(-1)
        total -= float(log_p.gather(-1, batch[:, 1:, None]).sum())
    return math.exp(total / ids[:, 1:].numel())


@torch.inference_mode()
def kl_divergence(reference: nn.Module, model: nn.Module, ids: torch.Tensor) -> float:
    """Mean KL(reference || model), in nats, of the next token's distribution at every position that has one."""
    total = 0.0
    for batch in torch.split(ids, BATCH):
        log_p, log_q = (m(input_ids=batch).logits[:, :-1].double().log_softmax(-1) for m in (reference, model))
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / ids[:, 1:].numel()


def unigram_perplexity(ids: torch.Tensor) -> float:
    """The perplexity that the best of all unigram models has on ids [N, S]: the one fitted to this very text."""
    counts = ids[:, 1:].flatten().bincount().double()
    share = counts[counts > 0] / counts.sum()
    return math.exp(-float((share * share.log()).sum()))


@torch.inference_mode()
def judged_rightly(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, statements: Iterable[Statement]
) -> list[bool]:
    """For each statement, whether the model gives its true ending a larger probability than the false one."""
    words = tokenizer.convert_tokens_to_ids(["Ġfalse", "Ġtrue"])
    right = []
    for statement in statements:
        ids = torch.tensor([tokenizer(statement.prompt).input_ids])
        false, true = model(input_ids=ids).logits[0, -1, words].tolist()
        right.append((true > false) is statement.label)
    return right


@contextmanager
def recorded_inputs(modules: Iterable[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Record the inputs of the modules, in the order of the calls."""
    seen: list[torch.Tensor] = []
    handles = [module.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def layer_peaks(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """abs(x) [L, T, d], the larger of `attn.q.input` and `mlp.up.input` at every layer, position and channel."""
    layers = [model.get_submodule(f"model.layers.{i}") for i in range(model.config.num_hidden_layers)]
    ports = [layer.get_submodule(name) for layer in layers for name in ("self_attn.q_proj", "mlp.up_proj")]
    with recorded_inputs(ports) as seen:
        model.model(input_ids=ids)
    peaks = [x.abs().flatten(0, 1) for x in seen]
    return torch.stack([torch.maximum(q, up) for q, up in zip(peaks[::2], peaks[1::2], strict=True)])


def critical_magnitudes(peaks: torch.Tensor) -> torch.Tensor:
    """For every channel the largest threshold [d] at which it still is an outlier as LLM.int8() defines it.

    That definition asks that abs(x) reach the threshold in a quarter of the layers, and at 6% of the positions in
    one layer or more. So a channel's largest threshold is the smaller of two order statistics: of its layers'
    maxima, and of its positions' maxima over the layers.

    Args:
        peaks: abs(x) [L, T, d].
    """
    by_layer, by_position = peaks.amax(1), peaks.amax(0)
    return torch.minimum(reached_by(by_layer, LAYERS_FRACTION), reached_by(by_position, POSITIONS_FRACTION))


def reached_by(values: torch.Tensor, fraction: float) -> torch.Tensor:
    """For every column of values [n, d] the largest number [d] that at least this fraction of the rows reach."""
    needed = math.ceil(fraction * len(values))
    return values.sort(0, descending=True).values[needed - 1]
