"""The generated statements and the labeled prompts, checked by a parser of their own."""

import json
import re
from collections import Counter
from itertools import islice

import pytest

from workers.samples import LABELLED
from workers.samples.statements import labelled_statements, training_statements


def truth(prompt: str) -> bool:
    """Whether a prompt's claim holds, read from its text alone."""
    if found := re.fullmatch(r"(\d+) \+ (\d+) = (\d+) is", prompt):
        a, b, c = map(int, found.groups())
        return a + b == c
    if found := re.fullmatch(r"(\d+) < (\d+) is", prompt):
        return int(found[1]) < int(found[2])
    found = re.fullmatch(r"(\d+) in \[(\d+(?:, \d+)*)\] is", prompt)
    assert found, prompt
    return found[1] in found[2].split(", ")


def test_labelled_prompts_are_balanced_distinct_and_right() -> None:
    records = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    assert len(records) >= 200
    assert all(set(record) == {"prompt", "label"} for record in records)
    assert [truth(record["prompt"]) for record in records] == [record["label"] for record in records]
    assert len({record["prompt"] for record in records}) == len(records)
    kinds = Counter((re.sub(r"[\d, ]+", "", record["prompt"]), record["label"]) for record in records)
    assert len(kinds) == 6
    assert len(set(kinds.values())) == 1


def numbers_asked_about(prompt: str) -> tuple[int, ...]:
    """What is held out: the two terms, the two numbers in either order, or the whole membership prompt."""
    numbers = tuple(map(int, re.findall(r"\d+", prompt)))
    return numbers[:2] if "+" in prompt else tuple(sorted(numbers)) if "<" in prompt else numbers


def test_training_never_asks_what_labelled_prompts_ask() -> None:
    def subject(prompt: str) -> tuple[str, tuple[int, ...]]:
        return re.sub(r"[\d, ]+", "", prompt), numbers_asked_about(prompt)

    trained = {subject(statement.prompt) for statement in islice(training_statements(0), 50_000)}
    labelled = {subject(json.loads(line)["prompt"]) for line in LABELLED.read_text(encoding="utf-8").splitlines()}
    assert not trained & labelled
    # Sums are few, so training has met most of those that are not held out: the check above can fail.
    assert len([1 for kind, _ in trained if "+" in kind]) > 100


def test_training_statements_are_right_and_balanced() -> None:
    drawn = list(islice(training_statements(3), 6000))
    assert all(truth(statement.prompt) is statement.label for statement in drawn)
    assert all(statement.text.endswith(" true." if statement.label else " false.") for statement in drawn)
    # Standard deviation of the share of a fair coin over 6000 throws: 0.0065; five of them.
    assert sum(statement.label for statement in drawn) / 6000 == pytest.approx(0.5, abs=0.033)


def test_generators_are_deterministic() -> None:
    assert list(islice(training_statements(5), 100)) == list(islice(training_statements(5), 100))
    assert list(islice(training_statements(5), 100)) != list(islice(training_statements(6), 100))
    assert labelled_statements(1, 20) == labelled_statements(1, 20)


@pytest.mark.parametrize("per_kind", [3, 100_000])
def test_impossible_numbers_of_labelled_statements_are_refused(per_kind: int) -> None:
    with pytest.raises(ValueError, match=f"per_kind: {per_kind}"):
        labelled_statements(1, per_kind)
