"""Calibration files of every format: what becomes of them token by token, and every way in which one is refused."""

import hashlib
import json
import re
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, request_for, save_tokenizer, words
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from service.contracts.request import CalibrationFile, MeasurementRequest
from workers.measurement.errors import BadCalibration, BadModel, BadRequest
from workers.measurement.inputs import documents
from workers.measurement.inputs.calibration import Calibration, calibrate
from workers.measurement.inputs.tokenizer import LazyTokenizer

DOCUMENTS = [words(150, seed) for seed in range(4)]
BOS, EOS = 0, 1


@pytest.fixture(scope="module", params=[True, False], ids=["adds BOS", "adds none"])
def tokenizer_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path, adds_bos=request.param)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that adds no BOS of its own accord, but has one."""
    path = tmp_path_factory.mktemp("plain")
    save_tokenizer(path)
    return path


def calibrated(file: Path, tokenizer: Any, vocabulary: int = VOCABULARY, **chosen: Any) -> Calibration:
    tokenizer = LazyTokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    chosen = {"sequences": 10**6, "sequence_length": 16} | chosen
    return calibrate(request_for(Path("model"), file, **chosen), tokenizer, vocabulary)


def rows(path: Path, name: str, values: list[Any], type_: pa.DataType | None = None, **other: list[Any]) -> Path:
    pq.write_table(pa.table({name: pa.array(values, type=type_), **other}), path, row_group_size=3)
    return path


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def written(kind: str, directory: Path, texts: list[str] = DOCUMENTS) -> Path:
    """The same documents in a file of this kind."""
    if kind == "jsonl":
        return lines(directory / "c.jsonl", *({"id": i, "text": t} for i, t in enumerate(texts)))
    return rows(directory / "c.parquet", "text", texts, pa.large_string() if kind == "large" else None)


def by_hand(texts: list[str], path: Path, separator: list[int]) -> list[int]:
    """The documents tokenized and joined, in as few words as can be."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    joined: list[int] = []
    for text in texts:
        joined += (separator if joined else []) + tokenizer(text, add_special_tokens=False).input_ids
    return joined


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "large"])
def test_documents_are_joined_by_eos_and_cut(kind: str, tokenizer_path: Path, tmp_path: Path) -> None:
    found = calibrated(written(kind, tmp_path), tokenizer_path)
    joined = by_hand(DOCUMENTS, tokenizer_path, [EOS])
    body = 16 - found.adds_bos
    windows = [joined[i : i + body] for i in range(0, len(joined) - body + 1, body)]
    assert found.token_ids.tolist() == [([BOS] if found.adds_bos else []) + w for w in windows]
    assert (found.documents, found.separator) == (4, EOS)


def test_one_document_has_no_separator(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    file.write_text(DOCUMENTS[0], encoding="utf-8")
    found = calibrated(file, plain)
    assert (found.documents, found.separator) == (1, None)
    assert found.token_ids.flatten().tolist() == by_hand(DOCUMENTS[:1], plain, [])[: found.token_ids.numel()]


def test_a_tokenizer_without_eos_joins_without(plain: Path, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"))
    found = calibrated(written("jsonl", tmp_path), bare)
    assert (found.documents, found.separator, found.adds_bos) == (4, None, False)
    assert found.token_ids.flatten().tolist() == by_hand(DOCUMENTS, plain, [])[: found.token_ids.numel()]


def test_documents_without_tokens_are_passed_over(plain: Path, tmp_path: Path) -> None:
    with_gaps = ["", DOCUMENTS[0], "", "", DOCUMENTS[1], ""]
    found = calibrated(written("jsonl", tmp_path, with_gaps), plain)
    assert found.documents == 2
    assert found.token_ids.flatten().tolist() == by_hand(DOCUMENTS[:2], plain, [EOS])[: found.token_ids.numel()]


def test_the_text_field_is_a_setting(plain: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "c.ndjson", *({"text": 7, "body": t} for t in DOCUMENTS))
    same = calibrated(written("jsonl", tmp_path), plain)
    assert calibrated(file, plain, text_field="body").fingerprint == same.fingerprint
    table = rows(tmp_path / "d.parquet", "the.body", DOCUMENTS, text=[1, 2, 3, 4])
    assert calibrated(table, plain, text_field="the.body").fingerprint == same.fingerprint


@pytest.mark.parametrize("kind", ["jsonl", "int32", "uint16", "int64"])
def test_token_ids_are_used_as_they_are_and_need_no_tokenizer(kind: str, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 170).tolist()
    parts = [ids[:3], [], ids[3:90], ids[90:]]
    file = (
        lines(tmp_path / "c.jsonl", *({"token_ids": p} for p in parts)) if kind == "jsonl" else tmp_path / "c.parquet"
    )
    if kind != "jsonl":
        rows(file, "token_ids", parts, pa.list_(getattr(pa, kind)()))
    found = calibrated(file, tmp_path / "no tokenizer here")
    assert found.token_ids.tolist() == [ids[i : i + 16] for i in range(0, 160, 16)]
    assert (found.adds_bos, found.documents, found.separator) == (False, 3, None)


def test_the_fingerprint_is_over_the_token_ids(plain: Path, tmp_path: Path) -> None:
    text = calibrated(written("jsonl", tmp_path), plain)
    given = lines(tmp_path / "ids.jsonl", {"token_ids": by_hand(DOCUMENTS, plain, [EOS])})
    assert calibrated(given, tmp_path).fingerprint == text.fingerprint
    wanted = hashlib.sha256(text.token_ids.numpy().astype("<i8").tobytes()).hexdigest()
    assert text.fingerprint == f"sha256:{wanted}"
    assert calibrated(written("jsonl", tmp_path), plain, sequences=3).fingerprint != text.fingerprint


def test_the_seed_chooses(plain: Path, tmp_path: Path) -> None:
    file = written("parquet", tmp_path)
    every = [tuple(s) for s in calibrated(file, plain).token_ids.tolist()]
    draws = []
    for seed in range(30):
        drawn = [tuple(s) for s in calibrated(file, plain, sequences=4, seed=seed).token_ids.tolist()]
        places = [every.index(s) for s in drawn]
        assert places == sorted(set(places))
        draws.append(tuple(places))
    assert calibrated(file, plain, sequences=4, seed=7).token_ids.tolist() == [list(every[i]) for i in draws[7]]
    assert len(set(draws)) > 25
    assert len({place for draw in draws for place in draw}) > len(every) / 2


# BOS


@pytest.mark.parametrize(("bos", "begins"), [("auto", None), ("always", True), ("never", False)])
def test_bos_is_a_choice(bos: str, begins: bool | None, tokenizer_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    file.write_text(DOCUMENTS[0], encoding="utf-8")
    of_its_own_accord = AutoTokenizer.from_pretrained(tokenizer_path)("a").input_ids[0] == BOS
    wanted = of_its_own_accord if begins is None else begins
    found = calibrated(file, tokenizer_path, bos=bos)
    assert found.adds_bos is wanted
    assert found.token_ids.shape[1] == 16
    text = by_hand(DOCUMENTS[:1], tokenizer_path, [])
    assert found.token_ids[0].tolist() == ([BOS, *text[:15]] if wanted else text[:16])
    assert (found.token_ids[:, 0] == BOS).all() == wanted


def test_always_without_a_bos_token_is_refused(plain: Path, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"), eos_token="</s>")
    with pytest.raises(
        BadRequest, match=r"bos: 'always' is not allowed, because the model's tokenizer has no BOS token"
    ):
        calibrated(written("jsonl", tmp_path), bare, bos="always")
    for bos in ("auto", "never"):
        assert not calibrated(written("jsonl", tmp_path), bare, bos=bos).adds_bos


def test_always_is_refused_for_token_ids(tmp_path: Path) -> None:
    file = lines(tmp_path / "c.jsonl", {"token_ids": list(range(40))})
    with pytest.raises(BadRequest, match="bos: 'always' is not allowed, because the calibration file holds token ids"):
        calibrated(file, tmp_path, bos="always")


# Large files


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("aé€𝄞 \r\n", max_size=9), max_size=30), st.integers(1, 40))
def test_a_text_in_pieces_is_the_text(parts: list[str], size: int) -> None:
    text = "x" + "".join(parts)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(documents, "TEXT_BYTES", size)
        file = Path(directory) / "c.txt"
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
        pieces = list(documents.read_documents(CalibrationFile(path=file), "text", VOCABULARY))
    assert "".join(str(p.content) for p in pieces) == text
    assert {p.document for p in pieces} == {1}
    assert all(str(p.content).endswith("\n") for p in pieces[:-1])
    longest = max(map(len, text.encode().split(b"\n"))) + 1
    assert all(len(str(p.content).encode()) <= size + longest for p in pieces)


def test_a_text_in_pieces_is_one_document(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.txt"
    file.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    whole = calibrated(file, plain)
    monkeypatch.setattr(documents, "TEXT_BYTES", 100)
    pieces = calibrated(file, plain)
    assert (pieces.documents, pieces.separator) == (1, None)
    assert pieces.fingerprint == whole.fingerprint


def test_a_byte_in_a_later_piece_is_found_at_its_place(tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    file.write_bytes(b"line\n" * (documents.TEXT_BYTES // 4) + b"caf\xe9")
    with pytest.raises(BadCalibration, match=f"byte 0xe9 at offset {documents.TEXT_BYTES // 4 * 5 + 3}$"):
        list(documents.read_documents(CalibrationFile(path=file), "text", VOCABULARY))


def test_a_mark_at_the_beginning_of_json_lines_is_no_text(plain: Path, tmp_path: Path) -> None:
    file = written("jsonl", tmp_path)
    wanted = calibrated(file, plain).fingerprint
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert calibrated(file, plain).fingerprint == wanted


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [{"token_ids": rng.integers(0, VOCABULARY, 4000).tolist()} for _ in range(250)]
    file = lines(tmp_path / "c.jsonl", *records)
    held = sum(len(r["token_ids"]) for r in records) * 4
    del records
    tracemalloc.start()
    found = calibrated(file, tmp_path, sequences=8, sequence_length=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.token_ids.shape == (8, 64)
    assert peak < held / 4


# Refusals

PARQUET = b"PAR1" + bytes(40) + b"PAR1"
BAD: dict[str, tuple[str, bytes | list[object], str]] = {
    "empty text": ("c.txt", b"", " is empty"),
    "blank text": ("c.txt", b" \n\t\r\n", " is empty"),
    "no UTF-8": ("c.txt", b"a\n" * 9 + b"caf\xe9", " is not UTF-8: byte 0xe9 at offset 21"),
    "UTF-16": ("c.txt", "text".encode("utf-16"), " is not UTF-8: byte 0xff at offset 0"),
    "cut inside a character": ("c.txt", "aé".encode()[:2], " is not UTF-8: byte 0xc3 at offset 1"),
    "too short": ("c.txt", b"kara lomi", " tokens, fewer than one sequence; at least 16 are needed"),
    "Parquet by another name": ("c.txt", PARQUET, "is a Parquet file, but its name stands for text"),
    "Parquet as JSON Lines": ("c.jsonl", PARQUET, "is a Parquet file, but its name stands for jsonl"),
    "no Parquet": ("c.parquet", b"text", " is not a Parquet file; it must begin with the bytes PAR1"),
    "broken Parquet": ("c.parquet", PARQUET, " cannot be read as Parquet: "),
    "empty JSON Lines": ("c.jsonl", b"\n \n", " is empty"),
    "documents that are all empty": ("c.jsonl", [{"text": ""}, {"text": " "}], " is empty"),
    "no JSON": ("c.jsonl", [{"text": "a"}, "", '{"text": '], ", line 3: it is not JSON: Expecting value"),
    "no UTF-8 in a line": ("c.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', ", line 2: it is not UTF-8: byte 0xe9"),
    "a mark in the middle": ("c.jsonl", b'{"text": "a"}\n\xef\xbb\xbf{"text": "a"}', ", line 2: it is not JSON"),
    "no object": ("c.jsonl", ["[1, 2]"], ", line 1: it holds a JSON list; an object is needed"),
    "deep": ("c.jsonl", ["[" * 200_000], ", line 1: it is nested too deeply"),
    "no field": (
        "c.jsonl",
        [{"body": "a"}],
        ", line 1: there is no field 'text' or 'token_ids'; the fields are ['body']",
    ),
    "both fields": ("c.jsonl", [{"text": "a", "token_ids": [1]}], ", line 1: it has both 'text' and 'token_ids'"),
    "field missing later": ("c.jsonl", [{"text": "a"}, {"token_ids": [1]}], ", line 2: there is no field 'text'"),
    "text is a number": ("c.jsonl", [{"text": "a"}, {"text": 7}], ", line 2: 'text' is 7; a string is needed"),
    "text is null": ("c.jsonl", [{"text": None}], ", line 1: 'text' is None; a string is needed"),
    "half a surrogate": ("c.jsonl", ['{"text": "\\ud800"}'], ", line 1: 'text' has half of a surrogate pair"),
    "ids are text": ("c.jsonl", [{"token_ids": "1 2"}], ", line 1: 'token_ids' is '1 2'; a list of integers"),
    "an id is a fraction": ("c.jsonl", [{"token_ids": [1, 2.0]}], ", line 1: 'token_ids' holds 2.0 at position 1"),
    "an id is a truth": ("c.jsonl", [{"token_ids": [True]}], ", line 1: 'token_ids' holds True at position 0"),
    "an id is negative": ("c.jsonl", [{"token_ids": [0]}, {"token_ids": [-1]}], ", line 2: 'token_ids' holds -1"),
    "an id is too large": ("c.jsonl", [{"token_ids": [VOCABULARY]}], "allowed are integers from 0 to 319"),
    "an id is huge": ("c.jsonl", [{"token_ids": [10**300]}], ", line 1: 'token_ids' holds 1000"),
    "too few ids": ("c.jsonl", [{"token_ids": [1, 2]}], " has 2 tokens, fewer than one sequence"),
    "no ids": ("c.jsonl", [{"token_ids": []}], " has 0 tokens, fewer than one sequence"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_the_place(name: str, plain: Path, tmp_path: Path) -> None:
    file_name, content, message = BAD[name]
    file = tmp_path / file_name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        lines(file, *content)
    with pytest.raises(BadCalibration) as caught:
        calibrated(file, plain)
    assert str(caught.value).startswith(f"calibration: {str(file)!r}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", [], " is empty"),
        ("text", ["a"] * 70 + [None], ", row 71: 'text' is None; a string is needed"),
        ("text", [1, 2], ", row 1: 'text' is 1; a string is needed"),
        ("body", ["a"], ", row 1: there is no field 'text' or 'token_ids'; the fields are ['body']"),
        ("token_ids", [[1], [2, None]], ", row 2: 'token_ids' holds None at position 1"),
        ("token_ids", [[1], None], ", row 2: 'token_ids' is None; a list of integers is needed"),
        ("token_ids", [[1.0]], ", row 1: 'token_ids' holds 1.0 at position 0"),
        ("token_ids", [1, 2], ", row 1: 'token_ids' is 1; a list of integers is needed"),
        ("token_ids", [[1, 2], [3, VOCABULARY]], ", row 2: 'token_ids' holds 320 at position 1"),
    ],
)
def test_a_bad_row_is_named(column: str, values: list[Any], message: str, plain: Path, tmp_path: Path) -> None:
    file = rows(tmp_path / "c.parquet", column, values, pa.string() if not values else None)
    with pytest.raises(BadCalibration, match=re.escape(f"{str(file)!r}{message}")):
        calibrated(file, plain)


@pytest.mark.parametrize("column", ["text", "token_ids"])
def test_a_column_that_is_there_twice_is_refused(column: str, plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array([1])], names=[column, column, "other"]), file)
    with pytest.raises(BadCalibration, match=re.escape(f"{str(file)!r} has 2 columns named {column!r}; only one")):
        calibrated(file, plain)


def test_an_upload_is_called_what_its_sender_calls_it(tmp_path: Path) -> None:
    file = tmp_path / "0123abcd"
    file.write_bytes(b"{")
    given = {"path": str(file), "source": "mine.jsonl", "format": "jsonl"}
    request = MeasurementRequest.model_validate({"model": {"path": "model"}, "calibration": given})
    with pytest.raises(BadCalibration, match=r"calibration: 'mine\.jsonl', line 1: it is not JSON"):
        calibrate(request, LazyTokenizer(tmp_path), VOCABULARY)


def test_texts_need_a_tokenizer_whose_ids_the_model_has(plain: Path, tmp_path: Path) -> None:
    file = written("jsonl", tmp_path)
    with pytest.raises(BadModel, match=r"nowhere has no tokenizer that can be loaded"):
        calibrated(file, tmp_path / "nowhere")
    with pytest.raises(BadModel, match=r"the tokenizer gives the token id \d+, but the embedding has 50 rows"):
        calibrated(file, plain, vocabulary=50)
    with pytest.raises(BadModel, match="the tokenizer gives the token id 1, but the embedding has 1 rows"):
        calibrated(file, plain, vocabulary=1)


def test_a_directory_without_a_tokenizer_has_no_words_for_ids(plain: Path, tmp_path: Path) -> None:
    assert LazyTokenizer(tmp_path).decode([5]) is None
    assert LazyTokenizer(plain).decode([5]) == AutoTokenizer.from_pretrained(plain).decode([5])
