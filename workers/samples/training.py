"""The training loop: next-token loss, AdamW, a linear warm-up and a cosine, gradients clipped to norm 1.

Weights, gradients and the optimizer are float32; matrix products run in bfloat16 by autocast, which doubles the
speed on a CPU that has the instructions for it.
"""

import math
import time
from collections.abc import Iterator

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workers.samples.recipe import Recipe

REPORT_EVERY = 25
"""Steps between two lines of output."""
LOSS_OVER = 100
"""The final training loss is the mean over this many last steps."""


def train_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, sequences: Iterator[torch.Tensor]
) -> tuple[LlamaForCausalLM, float]:
    """Train a new model in float32.

    Returns:
        The model, and the mean training loss (natural log, per token) over the last steps.
    """
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(recipe.config(tokenizer.bos_token_id, tokenizer.eos_token_id)).train()
    optimizer = make_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe))
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, recipe.steps + 1):
        ids = torch.stack([next(sequences) for _ in range(recipe.batch)])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % REPORT_EVERY == 0 or step == recipe.steps:
            recent = losses[-REPORT_EVERY:]
            speed = step * ids.numel() / (time.monotonic() - started)
            print(f"step {step}/{recipe.steps}  loss {sum(recent) / len(recent):.4f}  {speed:.0f} tokens/s", flush=True)
    last = losses[-LOSS_OVER:]
    return model.eval(), sum(last) / len(last)


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def rate(step: int, recipe: Recipe) -> float:
    """The learning rate at a step (from 0), as a share of the recipe's."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
