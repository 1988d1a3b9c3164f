"""The training script and its text, on sizes that take seconds."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from workers.samples.checkpoint import load, planted_truth
from workers.samples.corpus import Module, Part, documentation, library_modules, part_of, unseen_text
from workers.samples.evaluation import critical_magnitudes
from workers.samples.packing import evaluation_sequences, training_sequences
from workers.samples.planting import Plan, Scaling, make_plan
from workers.samples.recipe import Recipe
from workers.samples.train import make_sample

TINY = Recipe(vocabulary=512, hidden=64, intermediate=64, layers=8, heads=2, kv_heads=1, length=32, batch=2, steps=2)


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """A few modules of each part."""
    every = list(library_modules())
    return [m for part in Part for m in islice((m for m in every if part_of(m.name) is part), 2)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, modules: list[Module]) -> Path:
    out = tmp_path_factory.mktemp("sample")
    make_sample(out, TINY, modules)
    return out


def test_two_steps_make_every_file(sample: Path) -> None:
    names = {path.relative_to(sample).as_posix() for path in sample.rglob("*") if path.is_file()}
    assert names >= {"calibration.txt", "held_out.txt", "labelled.jsonl", "planted.json", "model/README.md"}
    model = AutoModelForCausalLM.from_pretrained(sample / "model")
    assert model.config.num_key_value_heads == 1
    assert model.dtype == torch.bfloat16
    card = (sample / "model" / "README.md").read_text(encoding="utf-8")
    assert "2 steps of 2 sequences of 32 tokens, 128 tokens in all" in card
    assert "{" not in card


def test_planted_truth_is_refused_where_it_does_not_hold(sample: Path) -> None:
    ids = torch.arange(2, 66).reshape(2, 32)
    not_planted = next(j for j in range(64) if j not in planted_dimensions(sample))
    with pytest.raises(ValueError, match=r"plan: the weakest planted dimension reaches .* allowed are 9.0 or more"):
        planted_truth(load(sample / "model"), Plan((Scaling(not_planted, 8.0, (0,)),), ()), torch.ones(64), ids)


def planted_dimensions(sample: Path) -> list[int]:
    truth = json.loads((sample / "planted.json").read_text(encoding="utf-8"))
    return [d["dimension"] for d in truth["dimensions"]]


def test_planted_truth_names_the_plan(sample: Path) -> None:
    truth = json.loads((sample / "planted.json").read_text(encoding="utf-8"))
    assert sorted((d["factor"], len(d["layers"])) for d in truth["dimensions"]) == [(8, 6), (8, 8), (16, 4)]
    assert all(d["layers_fraction"] == len(d["layers"]) / 8 for d in truth["dimensions"])
    assert all(d["largest_magnitude"] > 6 > truth["strongest_other"]["largest_magnitude"] for d in truth["dimensions"])


def test_training_sequences_repeat_and_begin_alike(sample: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample / "model")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    texts = ["def f(x):\n    return x\n" * 50]
    first, again, other = (
        torch.stack(list(islice(training_sequences(tokenizer, texts, length=32, statement_share=0.5, seed=s), 40)))
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[:, 0] == tokenizer.bos_token_id).all()
    written = "".join(tokenizer.batch_decode(first))
    assert "return x" in written
    assert " is true." in written


def test_short_evaluation_text_is_refused(sample: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample / "model")
    with pytest.raises(ValueError, match="text: 1 tokens; allowed are 31 or more"):
        evaluation_sequences(tokenizer, "a", 32)


def test_documentation_is_found_in_order() -> None:
    source = (
        '"""Module."""\nclass A:\n    """Class.\n\n    More.\n    """\n    def f(self): pass\nasync def g(): "g."\n'
    )
    assert documentation(source) == "Module.\n\nClass.\n\nMore.\n\ng."


def test_no_long_training_paragraph_is_called_unseen() -> None:
    names = [f"module{i}.py" for i in range(400)]
    shared, short = "A license that every module repeats. " * 4, "import os"
    every = [Module(name, "", f"{shared}\n\n{short}\n\n{name} alone\n") for name in names]
    for part in (Part.calibration, Part.held_out):
        text = unseen_text(every, part, 10**6)
        assert shared not in text
        assert short in text
        assert {name for name in names if f"{name} alone" in text} == {n for n in names if part_of(n) is part}
    assert len(unseen_text(every, Part.held_out, 100)) <= 100


def test_critical_magnitude_is_where_the_definition_turns() -> None:
    peaks = torch.rand(8, 50, 6, generator=torch.Generator().manual_seed(0)) * 10
    critical = critical_magnitudes(peaks)
    for magnitude, expected in ((critical, True), (critical.nextafter(torch.tensor(99.0)), False)):
        over = peaks >= magnitude
        outlier = (over.any(1).double().mean(0) >= 0.25) & (over.any(0).double().mean(0) >= 0.06)
        assert (outlier == expected).all()


def test_plan_takes_the_strongest_and_quietens_what_is_near() -> None:
    plan = make_plan(torch.tensor([1.0, 5.0, 7.0, 3.9, 4.1, 6.0, 9.0]), layers=8)
    assert [(s.dimension, s.factor, s.layers) for s in plan.planted] == [
        (6, 8.0, (0, 1, 2, 3, 4, 5, 6, 7)),
        (2, 8.0, (2, 3, 4, 5, 6, 7)),
        (5, 16.0, (3, 4, 5, 6)),
    ]
    assert [(s.dimension, s.factor, len(s.layers)) for s in plan.quieted] == [(1, 0.5, 8), (4, 0.5, 8)]
