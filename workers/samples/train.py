"""Make the sample: `python -m workers.samples.train --out DIRECTORY`.

Gathers the text, learns the tokenizer, trains the model, plants the outliers, and writes the checkpoint with its
texts and its card. The files beside this script were trained with the default settings; the model's card says what
was done twice.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workers.samples import card, checkpoint, corpus, evaluation, packing, planting, statements, tokenizer, training
from workers.samples.recipe import Recipe

TOKENIZER_STATEMENTS = 60_000
"""Statements among the tokenizer's text: enough that every number up to 49 becomes one token."""
TEXT_LIMIT = 120_000
"""Characters of the calibration text and of the held-out text at most."""
LABELLED_PER_KIND = 70
LABELLED_SEED = 1


def make_sample(out: Path, recipe: Recipe, modules: Sequence[corpus.Module]) -> None:
    """Train a model on the modules' text and write every file of the sample into `out`, or nothing.

    Raises:
        ValueError: the planted outliers are not as clear as they should be (`checkpoint.planted_truth`); a note says
            where the trained checkpoint was left.
    """
    texts = corpus.training_documents(modules)
    drawn = islice(statements.training_statements(recipe.seed), TOKENIZER_STATEMENTS)
    sentences = "\n".join(statement.text for statement in drawn)
    learned = tokenizer.train_tokenizer([*texts, sentences], recipe.vocabulary, recipe.max_positions)
    sequences = packing.training_sequences(
        learned, texts, length=recipe.length, statement_share=recipe.statement_share, seed=recipe.seed
    )
    model, loss = training.train_model(recipe, learned, sequences)
    finished = Path(tempfile.mkdtemp(prefix="headroom-sample-"))
    try:
        write_sample(finished, recipe, modules, model, learned, loss)
    except Exception as error:
        error.add_note(f"The unfinished sample lies in {finished}")
        raise
    shutil.copytree(finished, out, dirs_exist_ok=True)
    shutil.rmtree(finished)


def write_sample(
    out: Path,
    recipe: Recipe,
    modules: Sequence[corpus.Module],
    model: LlamaForCausalLM,
    learned: PreTrainedTokenizerFast,
    loss: float,
) -> None:
    """Round the trained model to bfloat16, plant the outliers in it, and write and measure what is shipped."""
    parts = (corpus.Part.calibration, corpus.Part.held_out)
    texts = {part: corpus.unseen_text(modules, part, TEXT_LIMIT) for part in parts}
    calibration, held_out = (packing.evaluation_sequences(learned, text, recipe.length) for text in texts.values())
    labelled = statements.labelled_statements(LABELLED_SEED, LABELLED_PER_KIND)

    rounded = model.bfloat16().float()  # type: ignore[no-untyped-call]
    magnitudes = evaluation.critical_magnitudes(evaluation.layer_peaks(rounded, calibration))
    plan = planting.make_plan(magnitudes, recipe.layers)
    planting.plant(rounded, plan.scalings)
    directory = out / "model"
    rounded.bfloat16().save_pretrained(directory)
    learned.save_pretrained(directory)

    truth = checkpoint.planted_truth(checkpoint.load(directory), plan, magnitudes, calibration)
    figures = checkpoint.measure(directory, held_out, labelled)
    files = {f"{part}.txt": text for part, text in texts.items()} | {
        "labelled.jsonl": checkpoint.labelled_lines(labelled),
        "planted.json": json.dumps(truth, indent=2) + "\n",
        "model/README.md": card.model_card(recipe, loss, figures, plan),
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Read the arguments and make the sample."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m workers.samples.train", description="Train the sample model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the files go (default: here)")
    parser.add_argument("--steps", type=int, default=recipe.steps, help=f"training steps (default: {recipe.steps})")
    parser.add_argument("--seed", type=int, default=recipe.seed, help=f"random seed (default: {recipe.seed})")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = replace(recipe, steps=arguments.steps, seed=arguments.seed)
    make_sample(arguments.out, recipe, list(corpus.library_modules()))


if __name__ == "__main__":
    main()
