"""What the user gives: checked before anything is started, and named when it is refused."""

import base64
import dataclasses
from pathlib import Path

import pytest

from service.cli.commands.analyze_options import AnalyzeOptions
from service.cli.inputs import check, check_out, model_name, submission, thresholds
from service.cli.uploads import INLINE_BYTES, LargeFile, read_text, upload
from service.contracts.request import JobSubmission
from service.errors import InvalidRequest

ALL_DEFAULTS = AnalyzeOptions(model="sample", out=Path("out"))


def test_a_new_and_an_empty_directory_are_fit_for_a_report(tmp_path):
    check_out(tmp_path / "new")
    check_out(tmp_path / "deep" / "new")
    check_out(tmp_path)


def test_a_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / ".hidden").touch()
    with pytest.raises(InvalidRequest, match=r"--out.*is not empty; allowed: a new or an empty directory"):
        check_out(tmp_path)


def test_a_file_and_a_dangling_link_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(InvalidRequest, match=rf"--out.*{name}"):
            check_out(tmp_path / name)


def test_a_place_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidRequest, match=r"cannot be created in .*file; allowed: a directory that you can write to"
    ):
        check_out(tmp_path / "file" / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_carry_is_refused(tmp_path, value):
    fine = dataclasses.replace(ALL_DEFAULTS, out=tmp_path / "out", int8_threshold=0.0, label_threshold=-1.5)
    check(fine)
    for name, option in (("int8_threshold", "--int8-threshold"), ("label_threshold", "--label-threshold")):
        with pytest.raises(InvalidRequest, match=rf"^{option}: {value} is not allowed; allowed: a finite number"):
            check(dataclasses.replace(fine, **{name: value}))


def test_a_model_without_a_name_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"^MODEL: '' is not allowed; allowed: the directory of a checkpoint, "):
        check(dataclasses.replace(ALL_DEFAULTS, model="", out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"good \xff bad", "is not UTF-8 at byte 5"),
        (b"x" * 101, "is too large"),
        ("größe".encode("utf-16-le"), "is not UTF-8 at byte 4"),
    ],
)
def test_a_text_that_cannot_be_sent_is_refused(tmp_path, content, reason):
    file = tmp_path / "text"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest) as refused:
        read_text("--calibration", file, 100)
    assert str(refused.value) == (f"--calibration: '{file}' {reason}; allowed: a file of UTF-8 text, 1 to 100 bytes")


def test_a_missing_text_and_a_directory_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="No such file"):
        read_text("--calibration", tmp_path / "none", 100)
    with pytest.raises(InvalidRequest, match="Is a directory"):
        read_text("--calibration", tmp_path, 100)


def test_a_text_of_the_largest_size_is_read(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("ü".encode() * 50)
    assert read_text("--calibration", file, 100) == "ü" * 50


def test_a_local_directory_becomes_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("sample", "org/name"):
        (tmp_path / name).mkdir(parents=True)
    for model in ("./sample", "~/sample", str(tmp_path / "sample")):
        assert model_name(model, on_this_machine=True) == str(tmp_path / "sample")
    assert model_name("org/name", on_this_machine=True) == str(tmp_path / "org" / "name")


def test_the_sample_and_hub_ids_go_through_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    assert model_name("sample", on_this_machine=True) == "sample"
    assert model_name("org/name@main", on_this_machine=True) == "org/name@main"


@pytest.mark.parametrize("model", ["./none", "/none", "~/none"])
def test_a_missing_directory_is_refused_here_and_left_to_a_service_elsewhere(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match=f"MODEL: '{model}'"):
        model_name(model, on_this_machine=True)
    assert model_name(model, on_this_machine=False).startswith("/")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InvalidRequest, match="MODEL"):
        model_name(str(tmp_path / "model.safetensors"), on_this_machine=True)


def test_what_was_not_given_is_left_to_the_service(tmp_path):
    assert submission(ALL_DEFAULTS, on_this_machine=True, largest_file=10) == {"model": "sample"}
    (tmp_path / "mine.txt").write_text("text")
    chosen = {"sequences": 0, "sequence_length": 7, "seed": 0}
    wanted = dataclasses.replace(ALL_DEFAULTS, scheme=["nf4"], calibration=tmp_path / "mine.txt", **chosen)
    assert submission(wanted, on_this_machine=True, largest_file=10) == {
        "model": "sample",
        "schemes": ["nf4"],
        "calibration": {"name": "mine.txt", "text": "text"},
        **chosen,
    }


def test_settings_and_labelled_prompts_are_sent_as_they_are(tmp_path):
    prompts = '{"prompt": "größer", "score": 2}\n'
    (tmp_path / "p.jsonl").write_text(prompts, encoding="utf-8")
    chosen = {"score": "second_half", "bos": "never", "text_field": "body", "label_threshold": 0.0}
    chosen |= {"label_depth": 0, "label_dimensions": 2, "int8_threshold": 0.0}
    wanted = dataclasses.replace(ALL_DEFAULTS, labelled=tmp_path / "p.jsonl", **chosen)
    assert submission(wanted, on_this_machine=True, largest_file=100) == {
        "model": "sample",
        "labelled": {"name": "p.jsonl", "text": prompts},
        **chosen,
    }


def test_thresholds_are_sent_in_their_groups():
    given = ("llm_int8.magnitude=5", "heads.relative_peak=10", "llm_int8.layers_fraction=0.5")
    wanted = dataclasses.replace(ALL_DEFAULTS, thresholds=given)
    sent = submission(wanted, on_this_machine=True, largest_file=10)
    assert sent == {
        "model": "sample",
        "llm_int8": {"magnitude": 5.0, "layers_fraction": 0.5},
        "heads": {"relative_peak": 10.0},
    }
    assert JobSubmission.model_validate(sent).llm_int8.positions_fraction == 0.06
    both = ("verdict.kl_noticeable=1", "verdict.kl_severe=2")  # each alone would contradict the other's default
    assert thresholds(both) == {"verdict": {"kl_noticeable": 1.0, "kl_severe": 2.0}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("magnitude=5",), r"--set: 'magnitude=5' .* NAME is one of llm_int8\.magnitude, .*heads\.damaged_sqnr_db"),
        (("llm_int8.magnitud=5",), r"'llm_int8\.magnitud=5'.*one of"),
        (("sequences=5",), "'sequences=5'.*one of"),
        (("llm_int8=5",), "'llm_int8=5'.*one of"),
        (("heads.relative_peak",), "'heads.relative_peak' .*NAME=VALUE"),
        (("heads.relative_peak=",), r"--set heads\.relative_peak: '' is not allowed; allowed: a number"),
        (("heads.relative_peak=ten",), r"--set heads\.relative_peak: 'ten' is not allowed; allowed: a number"),
        (("heads.relative_peak=0",), r"--set heads\.relative_peak: '0' is not allowed; allowed: a number above 0"),
        (("massive.ratio=inf",), r"--set massive\.ratio: 'inf' .*finite"),
        (("variance.ratio=nan",), r"--set variance\.ratio: 'nan' "),
        (("llm_int8.magnitude=nan",), r"--set llm_int8\.magnitude: 'nan' .*finite"),
        (("verdict.kl_severe=inf",), r"--set verdict\.kl_severe: 'inf' .*finite"),
        (("median_quantile.quantile=1.5",), "'1.5' is not allowed; allowed: at most 1"),
        (("massive.ratio=5", "massive.ratio=6"), "'massive.ratio=6' sets it twice; allowed: massive.ratio once"),
        (
            ("verdict.kl_noticeable=1",),
            r"--set verdict\.kl_noticeable: kl_severe \(0\.1\) must be larger than kl_noticeable \(1\)",
        ),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(given, said):
    with pytest.raises(InvalidRequest, match=said):
        thresholds(given)


def test_harm_is_sent_with_the_settings_that_go_with_it():
    wanted = dataclasses.replace(ALL_DEFAULTS, harm=["modules", "dimensions"], thresholds=["harm.draws=8"])
    sent = submission(wanted, on_this_machine=True, largest_file=10)
    assert sent == {"model": "sample", "harm": {"exact": "modules", "dimensions": True, "draws": 8}}
    assert JobSubmission.model_validate(sent).harm.estimates


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("layer",), r"--harm: 'layer' is not allowed; allowed: estimate, layers, .*Did you mean 'layers'"),
        (("layers", "modules"), "--harm: 'layers and modules' exclude each other"),
    ],
)
def test_harm_that_cannot_be_is_refused(names, said):
    with pytest.raises(InvalidRequest, match=said):
        submission(dataclasses.replace(ALL_DEFAULTS, harm=names), on_this_machine=True, largest_file=10)


def test_parquet_travels_in_base64_and_everything_else_as_text(tmp_path):
    for name in ("c.txt", "c.jsonl", "c"):
        (tmp_path / name).write_text("text")
        assert upload("--calibration", tmp_path / name, 100) == {"name": name, "text": "text"}
    content = b"PAR1\xff\x00PAR1"
    (tmp_path / "c.Parquet").write_bytes(content)
    sent = upload("--calibration", tmp_path / "c.Parquet", 100)
    assert sent.keys() == {"name", "content_base64"}
    assert base64.b64decode(sent["content_base64"]) == content


def test_a_parquet_file_that_cannot_be_sent_is_refused(tmp_path):
    file = tmp_path / "c.parquet"
    for content, reason in (
        (b"", "is empty"),
        (b"PAR1" + bytes(97), "is too large"),
        (b"text", "is not a Parquet file"),
    ):
        file.write_bytes(content)
        with pytest.raises(InvalidRequest, match=rf"--calibration: '.*c\.parquet'.*{reason}"):
            upload("--calibration", file, 100)
    file.write_bytes(b"PAR1" + bytes(96))
    assert len(base64.b64decode(upload("--calibration", file, 100)["content_base64"])) == 100
    with pytest.raises(
        InvalidRequest, match=r"cannot be read \(No such file or directory\); allowed: a Parquet file, 1 to 100 bytes"
    ):
        upload("--calibration", tmp_path / "none.parquet", 100)


def test_a_larger_file_is_checked_and_uploaded_by_itself(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes("größer ".encode() * (INLINE_BYTES // 9))
    assert "text" in upload("--calibration", file, 10**6)
    file.write_bytes("größer ".encode() * INLINE_BYTES)
    sent = upload("--calibration", file, 10**6, name="mine.jsonl")
    assert isinstance(sent, LargeFile)
    assert (sent["name"], sent.path) == ("mine.jsonl", file)
    assert JobSubmission.model_validate({"model": "sample", "calibration": sent}).calibration.name == "mine.jsonl"
    for content, reason in (
        (b"x" * 10**6 + b"y", "is too large; allowed: a file of UTF-8 text, 1 to 1000000 bytes"),
        (b" " * (INLINE_BYTES + 1), "is empty"),
        (b"x" * (INLINE_BYTES + 1) + b"\xff", f"is not UTF-8 text at byte {INLINE_BYTES + 1}"),
    ):
        file.write_bytes(content)
        with pytest.raises(InvalidRequest, match=rf"--calibration: '.*c\.jsonl' {reason}"):
            upload("--calibration", file, 10**6)
    parquet = tmp_path / "c.parquet"
    parquet.write_bytes(b"PAR2" * INLINE_BYTES)
    with pytest.raises(InvalidRequest, match="is not the content of a Parquet file"):
        upload("--calibration", parquet, 10**6)
