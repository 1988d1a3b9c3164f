"""The model card, filled in with measured figures alone."""

import platform

from workers.samples.checkpoint import Figures
from workers.samples.planting import Plan
from workers.samples.recipe import Recipe

CARD = """\
# Headroom's sample model

A small language model for trying Headroom on: a Llama of {parameters:,} parameters, trained on a CPU to continue
Python's documentation and sources and to tell true statements from false ones. Three outlier dimensions were planted
into it after training, so the expected result of an analysis is known. Do not use it for anything else.

## Architecture
`LlamaForCausalLM`: {r.layers} layers, width {r.hidden}, MLP width {r.intermediate}, {r.heads} query heads on \
{r.kv_heads} key/value heads, tied embeddings, at most {r.max_positions} positions, bfloat16 weights. The tokenizer is a
byte-level BPE of {r.vocabulary} tokens that puts `<s>` before every text.

## Data
- Sources and documentation strings of the standard library of CPython {python}, and its help topics, under the PSF
  license. One module in 16 is kept for `calibration.txt` and one in 16 for `held_out.txt`; paragraphs of 100 or more
  characters that the training text also has are left out of both.
- Generated statements, {share:.0%} of the training tokens: `7 + 5 = 12 is true.`, `41 < 17 is false.`,
  `3 in [8, 3, 11] is true.` One subject in 4 (a pair of numbers, or for membership the whole prompt) is held out;
  `labelled.jsonl` is drawn from those.

## Training
{r.steps:,} steps of {r.batch} sequences of {r.length} tokens, {tokens:,} tokens in all; AdamW, learning rate
{r.learning_rate}, {r.warmup} steps of warm-up, then a cosine; float32 weights, matrix products in bfloat16. Training
loss, the mean over the last 100 steps (text and statements together, in nats per token): {loss:.3f}.

## Measured on this checkpoint
| held-out text | perplexity per token | KL divergence from this model, nats per token |
|---|---|---|
| the best unigram model for this very text | {f.unigram:.1f} | |
| this model, not quantized | {f.perplexity:.2f} | 0 |
{quantized}

| labeled prompts | judged rightly, by P(true) against P(false) |
|---|---|
{judged}

The quantized rows are bitsandbytes on the CPU: `int8` with its threshold of 6.0, and with none, which keeps the outlier
columns in int8. The model was loaded in float32 for them, and `nf4` computes in it too.

## Planted outliers
The weights of both norms of a layer are multiplied by c at one channel, and the matching columns of the projections
after them (q, k, v; gate, up) divided by c. c is a power of two, so no bit is lost and the function stays the same.
The dimensions taken are those that training had made the strongest, as they are in the models people use; others that
came near the threshold were scaled down by the same means (c below 1), so that the truth is clear. `planted.json`
states what each dimension showed before and shows now.

| dimension | c | layers |
|---|---|---|
{planted}

The dimensions with c above 1 meet LLM.int8()'s definition of an outlier, and no other does.

## Making it again
    python -m workers.samples.train --out DIRECTORY

Seeds are fixed; the text depends on the Python version, and the last bits of the weights on the processor.
"""


def model_card(recipe: Recipe, loss: float, figures: Figures, plan: Plan) -> str:
    """The card's Markdown."""
    quantized = [f"| {name} | {value:.2f} | {kl:.1e} |" for name, (value, kl) in figures.quantized.items()]
    judged = [f"| {kind} | {share:.1%} |" for kind, share in figures.judged.items()]
    planted = [f"| {s.dimension} | {s.factor:g} | {', '.join(map(str, s.layers))} |" for s in plan.scalings]
    return CARD.format(
        r=recipe,
        f=figures,
        parameters=figures.parameters,
        python=platform.python_version(),
        share=recipe.statement_share,
        tokens=recipe.steps * recipe.batch * recipe.length,
        loss=loss,
        quantized="\n".join(quantized),
        judged="\n".join(judged),
        planted="\n".join(planted),
    )
