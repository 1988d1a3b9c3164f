"""Labeled prompts: what is read and refused, how prompts are batched, and which dimensions are found."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata, spearmanr
from tiny_models import save_tokenizer

from service.contracts.request import Analysis, LabelledFile
from service.contracts.sections.labelled import MAX_CHANCE_PROBABILITY, Labelled, Separation
from workers.measurement.errors import BadLabelled, BadModel, BadRequest
from workers.measurement.inputs.labelled_batches import LabelledBatch, labelled_batches
from workers.measurement.inputs.labelled_prompts import LabelledRecords, read_labelled
from workers.measurement.inputs.tokenizer import LazyTokenizer, bos_token
from workers.measurement.predictions.label_separation import LabelSeparation, rank_dimensions, separate_labels
from workers.measurement.statistics.separation import average_ranks, best_by_chance, separation
from workers.samples import LABELLED, MODEL

SMALL = st.floats(-4, 4, width=16)
"""Few enough values for ties to be common."""


def brute_force_auroc(values: np.ndarray, labels: np.ndarray) -> float:
    """Every pair of a true and a false record, one by one."""
    true, false = values[labels], values[~labels]
    won = sum((t > f) + 0.5 * (t == f) for t in true for f in false)
    return won / (len(true) * len(false))


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [R, d] with ties, labels of both kinds, scores that vary."""
    records, dimensions = draw(st.integers(2, 25)), draw(st.integers(1, 5))
    values = draw(hnp.arrays(np.float32, (records, dimensions), elements=SMALL))
    true = draw(st.integers(1, records - 1))
    labels = np.asarray(draw(st.permutations([True] * true + [False] * (records - true))))
    scores = draw(hnp.arrays(np.float64, records, elements=SMALL).filter(lambda s: np.ptp(s) > 0))
    return values, labels, scores


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=SMALL))
def test_ranks_are_scipys(values: np.ndarray) -> None:
    assert average_ranks(values).tolist() == rankdata(values, axis=1).tolist()


@settings(deadline=None)
@given(cases())
def test_both_figures_against_independent_ones(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    values, labels, scores = case
    rho, auroc = separation(values, labels, scores)
    for d, column in enumerate(values.T):
        assert auroc[d] == pytest.approx(brute_force_auroc(column, labels), abs=1e-14)
        if np.ptp(column) == 0:
            assert np.isnan(rho[d])
        else:
            assert rho[d] == pytest.approx(spearmanr(column, scores).statistic, abs=1e-12)


@settings(deadline=None)
@given(cases(), st.sampled_from([np.exp, np.cbrt, lambda x: 3 * x + 5, lambda x: x + (x > 1)]))
def test_a_rising_transformation_changes_nothing(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], transform: Any
) -> None:
    values, labels, scores = case
    values = values.astype(np.float64)
    np.testing.assert_array_equal(separation(transform(values), labels, scores), separation(values, labels, scores))


@settings(deadline=None)
@given(cases())
def test_negation_mirrors(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    values, labels, scores = case
    (rho, auroc), (negative_rho, negative_auroc) = (separation(x, labels, scores) for x in (values, -values))
    np.testing.assert_array_equal(negative_rho, -rho)
    np.testing.assert_allclose(negative_auroc, 1 - auroc, rtol=0, atol=2**-52)
    np.testing.assert_allclose(separation(values, ~labels, scores)[1], 1 - auroc, rtol=0, atol=2**-52)


@settings(deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(case: tuple[np.ndarray, np.ndarray, np.ndarray], random: Any) -> None:
    values, labels, scores = case
    order = list(range(len(labels)))
    random.shuffle(order)
    np.testing.assert_array_equal(separation(values[order], labels[order], scores[order]), separation(*case))


def test_more_dimensions_than_are_ranked_at_once() -> None:
    rng = np.random.default_rng(0)
    values, labels, scores = rng.standard_normal((60, 700)), rng.random(60) > 0.3, rng.random(60)
    rho, auroc = separation(values, labels, scores)
    wanted = spearmanr(np.column_stack([values, scores])).statistic[-1, :-1]
    np.testing.assert_allclose(rho, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(auroc, [brute_force_auroc(v, labels) for v in values.T], rtol=0, atol=1e-14)


@pytest.mark.parametrize("records", [0, 1])
def test_too_few_records_have_no_figures(records: int) -> None:
    rho, auroc = separation(np.ones((records, 3)), np.ones(records, dtype=bool), np.ones(records))
    assert np.isnan(rho).all()
    assert np.isnan(auroc).all()


def test_labels_rank_by_auroc_and_scores_by_rho() -> None:
    labels = np.array([True, True, False, False])
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    perfect, reversed_, constant, half = [9, 7, 5, 3], [1, 2, 8, 9], [2, 2, 2, 2], [5, 1, 4, 1]
    vectors = np.asarray([constant, half, reversed_, perfect], dtype=np.float32).T
    by_label = rank_dimensions(vectors, labels, None)
    assert [(r.dimension, r.auroc) for r in by_label] == [(2, 0.0), (3, 1.0), (1, 0.625)]
    by_score = rank_dimensions(vectors, labels, scores)
    assert [r.dimension for r in by_score] == [2, 3, 1]
    assert by_score[1].spearman_rho == 1.0
    assert by_score[0].spearman_rho == pytest.approx(-1.0)
    assert by_score[2].spearman_rho == pytest.approx(spearmanr(half, scores).statistic)


def brute_force_chance(values: np.ndarray, labels: np.ndarray, scores: np.ndarray | None) -> float:
    """The share of all orders of what is followed whose best dimension is as good as the given one's."""

    def best(order: tuple[int, ...]) -> float:
        at = list(order)
        if scores is None:
            return max(abs(brute_force_auroc(column, labels[at]) - 0.5) for column in values.T)
        return max(abs(spearmanr(column, scores[at]).statistic) for column in values.T)

    orders = list(itertools.permutations(range(len(values))))
    strength = np.array([best(order) for order in orders])
    return float((strength >= strength[0] - 1e-12).mean())


@pytest.mark.parametrize("scored", [False, True])
def test_the_probability_of_a_best_dimension_is_that_of_all_orders(scored: bool) -> None:
    rng = np.random.default_rng(7)
    values = np.round(rng.standard_normal((6, 4)), 1)
    labels, scores = np.array([True, True, False, True, False, False]), np.array([3.0, 1.0, 1.0, 8.0, 0.5, 2.0])
    followed = scores if scored else None
    wanted = brute_force_chance(values, labels, followed)
    found = best_by_chance(values, labels, followed, 20_000, seed=0)
    assert 0.05 < wanted < 0.95
    assert found == pytest.approx(wanted, abs=4 * np.sqrt(0.25 / 20_000))
    with_constant = np.concatenate([values, np.ones((6, 1))], axis=1)
    assert best_by_chance(with_constant, labels, followed, 20_000, seed=0) == found
    assert best_by_chance(values, labels, followed, 500, seed=1) != best_by_chance(
        values, labels, followed, 500, seed=2
    )


def test_labels_by_chance_seldom_separate_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, 128)).astype(np.float32)
    by_label = [best_by_chance(values, rng.random(60) < 0.5, None, 999, seed=0) for _ in range(200)]
    by_score = [best_by_chance(values, np.ones(60, bool), rng.random(60), 999, seed=0) for _ in range(200)]
    for found in (by_label, by_score):
        assert all(chance is not None and chance >= 0.001 for chance in found)
        assert sum(chance is not None and chance <= MAX_CHANCE_PROBABILITY for chance in found) <= 18


def test_what_separates_is_said_to_be_beyond_chance(planted: tuple[LabelledRecords, dict[str, np.ndarray]]) -> None:
    records, vectors = planted
    section = findings_of(records, vectors).section
    assert (section.permutation_probability, section.permutations, section.by_chance) == (0.001, 999, False)
    noise = {name: x[:, 41:] for name, x in vectors.items()}
    by_chance = findings_of(records, noise).section
    assert by_chance.permutation_probability is not None
    assert (by_chance.permutation_probability > MAX_CHANCE_PROBABILITY, by_chance.by_chance) == (True, True)
    # A scheme that happens to separate better is not asked.
    better = noise | {"nf4": noise["nf4"] + 9 * records.labels[:, None]}
    assert findings_of(records, better).section.permutation_probability == by_chance.permutation_probability


def test_equal_labels_cannot_be_ranked_and_equal_scores_neither() -> None:
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    true = np.ones(4, dtype=bool)
    assert rank_dimensions(vectors, true, None) == []
    assert rank_dimensions(vectors, true, np.ones(4)) == []
    ranked = rank_dimensions(vectors, true, np.arange(4.0))
    assert [(r.dimension, r.spearman_rho, r.auroc) for r in ranked] == [(0, 1.0, None), (1, 1.0, None)]


# Reading


def write(path: Path, *records: object) -> LabelledFile:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return LabelledFile(path=path)


def labelled(prompt: object = "a", **fields: object) -> dict[str, object]:
    return {"prompt": prompt, **fields}


def test_labels_are_read_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", labelled("größer", label=True, note="x"), "", labelled("b", label=False))
    records = read_labelled(file, None)
    assert (records.prompts, records.labels.tolist(), records.scores) == (("größer", "b"), [True, False], None)
    assert records.lines == (1, 3)


def test_a_score_above_the_threshold_is_true(tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", *(labelled(score=s) for s in (-1, 2, 2.5, 1e300)))
    records = read_labelled(file, 2.0)
    assert records.labels.tolist() == [False, False, True, True]
    assert records.scores is not None
    assert records.scores.tolist() == [-1, 2, 2.5, 1e300]
    assert read_labelled(file, -5.0).labels.all()


def test_the_fingerprint_is_the_contents(tmp_path: Path) -> None:
    first, second = (
        read_labelled(write(tmp_path / n, labelled(label=x), labelled(label=False)), None)
        for n, x in (("a", True), ("b", False))
    )
    assert first.fingerprint.startswith("sha256:")
    assert first.fingerprint != second.fingerprint


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no JSON": ((labelled(label=True), "{"), "line 2: it is not JSON"),
    "no object": (("[1]",), "line 1: it holds a JSON list"),
    "no prompt": (({"label": True},), "line 1: 'prompt' is None"),
    "empty prompt": ((labelled(label=True), labelled("", label=True)), "line 2: 'prompt' is ''"),
    "prompt is a number": ((labelled(7, label=True),), "line 1: 'prompt' is 7"),
    "half a surrogate": ((labelled("a\ud800", label=True),), "line 1: 'prompt' has half of a surrogate"),
    "label is a number": ((labelled(label=1),), "line 1: 'label' is 1; true or false"),
    "label is null": ((labelled(label=None),), "line 1: 'label' is None"),
    "score is a truth": ((labelled(score=True),), "line 1: 'score' is True; a finite number"),
    "score is NaN": (('{"prompt": "a", "score": NaN}',), "line 1: 'score' is nan"),
    "score is endless": (('{"prompt": "a", "score": 1e999}',), "line 1: 'score' is inf"),
    "score is huge": ((labelled(score=10**400),), "line 1: 'score' is 1000"),
    "score is text": ((labelled(score="1"),), "line 1: 'score' is '1'"),
    "neither": ((labelled(),), "line 1: it has neither 'label' nor 'score'"),
    "both": ((labelled(label=True, score=1),), "line 1: it has both 'label' and 'score'"),
    "a mixture": (
        (labelled(label=True), labelled(label=True), labelled(score=1)),
        "line 3: it has a 'score', but line 1 has a 'label'",
    ),
    "one record": ((labelled(label=True),), "holds 1 records; at least 2"),
    "no records": ((), "holds 0 records; at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    records, message = BAD[name]
    file = write(tmp_path / "mine.jsonl", *records)
    with pytest.raises(BadLabelled) as caught:
        read_labelled(file, None)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"labelled: {str(file.path)!r}")
    assert len(str(caught.value)) < 400


def test_a_file_that_is_not_there_and_one_that_was_uploaded(tmp_path: Path) -> None:
    with pytest.raises(BadLabelled, match=r"nowhere.jsonl' cannot be read: No such file"):
        read_labelled(LabelledFile(path=tmp_path / "nowhere.jsonl"), None)
    with pytest.raises(BadLabelled, match=r"labelled: 'mine.jsonl' cannot be read"):
        read_labelled(LabelledFile(path=tmp_path / "0123", source="mine.jsonl"), None)


def test_a_threshold_belongs_to_scores(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="label_threshold: it is missing"):
        read_labelled(write(tmp_path / "s", labelled(score=1), labelled(score=2)), None)
    with pytest.raises(BadRequest, match=r"label_threshold: 0\.0 is not allowed"):
        read_labelled(write(tmp_path / "l", labelled(label=True), labelled(label=False)), 0.0)


# Batches


def batches_of(
    records: LabelledRecords, path: Path, *, bos: str = "auto", vocabulary: int = 10**6, **limits: int | None
) -> list[LabelledBatch]:
    tokenizer = LazyTokenizer(path)
    limits = {"longest": None, "batch_tokens": 20} | limits
    token = bos_token(tokenizer, bos, vocabulary)
    file = LabelledFile(path=Path("l.jsonl"))
    return labelled_batches(records, file, tokenizer, bos=token, vocabulary=vocabulary, **limits)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path, adds_bos=True)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> LabelledRecords:
    words = ("kara lomi", "x", "terra un kara", "y", "z", "unka lora mito selve kara terra un", "lomi kara")
    return read_labelled(write(tmp_path / "l.jsonl", *(labelled(w, label=len(w) > 5) for w in words)), None)


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_every_prompt_is_in_one_batch_of_its_length(bos: str, prompts: LabelledRecords, tokenizer_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    batches = batches_of(prompts, tokenizer_path, bos=bos)
    begin = [] if bos == "never" else [tokenizer.bos_token_id]
    found = {int(i): row for b in batches for i, row in zip(b.record_indices, b.token_ids.tolist(), strict=True)}
    assert found == {
        i: begin + tokenizer(prompt, add_special_tokens=False).input_ids for i, prompt in enumerate(prompts.prompts)
    }
    assert sum(len(b.record_indices) for b in batches) == len(prompts.prompts)
    assert all(b.token_ids.dtype == torch.int64 for b in batches)
    assert all(b.token_ids.numel() <= 20 or len(b.token_ids) == 1 for b in batches)
    assert [b.token_ids.shape[1] for b in batches] == sorted(b.token_ids.shape[1] for b in batches)


def test_batches_are_as_large_as_allowed(prompts: LabelledRecords, tokenizer_path: Path) -> None:
    short = [len(b.token_ids) for b in batches_of(prompts, tokenizer_path) if b.token_ids.shape[1] == 2]
    assert short == [3]
    one_by_one = batches_of(prompts, tokenizer_path, batch_tokens=1)
    assert [len(b.token_ids) for b in one_by_one] == [1] * len(prompts.prompts)


def test_a_prompt_the_model_cannot_take_is_named(prompts: LabelledRecords, tokenizer_path: Path) -> None:
    with pytest.raises(BadLabelled, match=r"line 6: 'prompt' has \d+ tokens; the model takes at most 10"):
        batches_of(prompts, tokenizer_path, longest=10)
    with pytest.raises(BadModel, match="the embedding has 50 rows"):
        batches_of(prompts, tokenizer_path, vocabulary=50)


# Findings


def findings_of(records: LabelledRecords, vectors: dict[str, np.ndarray], **chosen: Any) -> LabelSeparation:
    file = LabelledFile(path=Path("l.jsonl"))
    return separate_labels(records, vectors, file, Analysis(**chosen), adds_bos=True)


@pytest.fixture(scope="module")
def planted() -> tuple[LabelledRecords, dict[str, np.ndarray]]:
    """The sample's labeled prompts with made-up vectors: dimensions 5 and 40 know the truth; nf4 loses 40."""
    records = read_labelled(LabelledFile(path=LABELLED), None)
    rng = np.random.default_rng(3)
    signs = np.where(records.labels, 1.0, -1.0)
    reference = rng.standard_normal((len(signs), 64))
    reference[:, 5] -= 4 * signs
    reference[:, 40] += 2 * signs
    reference[:, 0] = 7.0
    damaged = reference.copy()
    damaged[:, 40] = rng.standard_normal(len(signs))
    return records, {"reference": reference.astype(np.float32), "nf4": damaged.astype(np.float32)}


def test_the_samples_prompts_become_batches(planted: tuple[LabelledRecords, dict[str, np.ndarray]]) -> None:
    records, _ = planted
    given = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    assert list(records.prompts) == [g["prompt"] for g in given]
    assert records.labels.tolist() == [g["label"] for g in given]
    batches = batches_of(records, MODEL, batch_tokens=256, longest=1024)
    assert sorted(int(i) for b in batches for i in b.record_indices) == list(range(len(given)))
    assert len(batches) < len(given) / 3
    assert {int(b.token_ids[0, 0]) for b in batches} == {0}


def test_the_dimensions_that_know_are_found(planted: tuple[LabelledRecords, dict[str, np.ndarray]]) -> None:
    records, vectors = planted
    found = findings_of(records, vectors, label_dimensions=3)
    section = Labelled.model_validate_json(found.section.model_dump_json())
    assert [d.dimension for d in section.dimensions[:2]] == [5, 40]
    assert (section.ranked_by, section.given, section.records) == ("auroc", "label", len(records.labels))
    assert section.true_records == int(records.labels.sum())
    assert len(section.dimensions) == 3
    for d in section.dimensions:
        for variant, figures in (("reference", d.reference), *d.schemes.items()):
            column = vectors[variant][:, d.dimension]
            assert figures.auroc == pytest.approx(brute_force_auroc(column, records.labels))
            assert figures.spearman_rho == pytest.approx(spearmanr(column, records.labels).statistic)
    lost = section.dimensions[1]
    assert lost.reference.auroc is not None
    assert lost.schemes["nf4"].auroc is not None
    assert lost.reference.auroc > 0.95
    assert abs(lost.schemes["nf4"].auroc - 0.5) < 0.15
    assert found.warnings == ()


def test_the_table_holds_every_record(planted: tuple[LabelledRecords, dict[str, np.ndarray]]) -> None:
    records, vectors = planted
    found = findings_of(records, vectors, label_dimensions=2)
    names = [column.name for column in found.table.columns]
    assert names == ["record", "label", "score", "reference_5", "nf4_5", "reference_40", "nf4_40"]
    assert set(found.columns) == set(names)
    types = [getattr(pa, {"bool": "bool_"}.get(column.type, column.type))() for column in found.table.columns]
    arrays = [pa.array(found.columns[n], type=t, from_pandas=True) for n, t in zip(names, types, strict=True)]
    rows = pa.table(arrays, names=names)
    assert rows["record"].to_pylist() == list(range(len(records.labels)))
    assert rows["label"].to_pylist() == records.labels.tolist()
    assert rows["score"].null_count == len(records.labels)
    assert rows["nf4_40"].to_pylist() == vectors["nf4"][:, 40].tolist()


def test_scores_are_followed_in_rank(tmp_path: Path) -> None:
    scores = [0.5, 3.0, -2.0, 8.0, 1.0]
    records = read_labelled(write(tmp_path / "l", *(labelled(score=s) for s in scores)), 0.75)
    vectors = np.stack([np.arange(5.0), np.exp(scores)], axis=1).astype(np.float32)
    found = findings_of(records, {"reference": vectors}, label_threshold=0.75)
    first = found.section.dimensions[0]
    assert (first.dimension, first.reference) == (1, Separation(spearman_rho=1.0, auroc=1.0))
    assert (found.section.ranked_by, found.section.threshold, found.section.given) == ("spearman_rho", 0.75, "score")
    assert found.columns["score"].tolist() == scores


@pytest.mark.parametrize(
    ("records", "threshold", "codes"),
    [
        ([{"label": True}, {"label": True}], None, ["labels-all-equal", "labelled-not-ranked"]),
        ([{"score": 1}, {"score": 1}], 0.0, ["labels-all-equal", "scores-all-equal", "labelled-not-ranked"]),
    ],
)
def test_what_cannot_be_ranked_is_said(
    records: list[dict[str, Any]], threshold: float | None, codes: list[str], tmp_path: Path
) -> None:
    read = read_labelled(write(tmp_path / "l", *(labelled(**r) for r in records)), threshold)
    found = findings_of(read, {"reference": np.eye(2, dtype=np.float32)}, label_threshold=threshold)
    assert [w.code for w in found.warnings] == codes
    assert (found.section.ranked_by, found.section.dimensions) == (None, ())
    assert (found.section.permutation_probability, found.section.by_chance) == (None, False)
    assert set(found.columns) == {"record", "label", "score"}


def test_labels_on_one_side_leave_rho(tmp_path: Path) -> None:
    read = read_labelled(write(tmp_path / "l", *(labelled(score=s) for s in (1, 2, 3))), 0.0)
    vectors = np.asarray([[3.0], [2.0], [1.0]], dtype=np.float32)
    found = findings_of(read, {"reference": vectors}, label_threshold=0.0)
    assert found.section.dimensions[0].reference == Separation(spearman_rho=-1.0, auroc=None)
    assert [w.code for w in found.warnings] == ["labels-all-equal"]


def test_records_that_are_not_finite_are_left_out_of_that_variant(
    planted: tuple[LabelledRecords, dict[str, np.ndarray]],
) -> None:
    records, vectors = planted
    broken = {name: x.copy() for name, x in vectors.items()}
    broken["nf4"][[2, 9], 13] = np.nan, np.inf
    found, whole = findings_of(records, broken), findings_of(records, vectors)
    assert [d.reference for d in found.section.dimensions] == [d.reference for d in whole.section.dimensions]
    kept = np.isfinite(broken["nf4"]).all(axis=1)
    assert kept.sum() == len(kept) - 2
    wanted = brute_force_auroc(broken["nf4"][kept, 5], records.labels[kept])
    assert found.section.dimensions[0].schemes["nf4"].auroc == pytest.approx(wanted)
    assert [(w.code, w.where) for w in found.warnings] == [("nonfinite-labelled", "nf4")]
    broken["reference"][:] = np.nan
    nothing = findings_of(records, broken)
    assert nothing.section.dimensions == ()
    assert [w.code for w in nothing.warnings] == ["labelled-not-ranked", "nonfinite-labelled", "nonfinite-labelled"]
