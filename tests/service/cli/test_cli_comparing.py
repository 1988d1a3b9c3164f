"""`headroom reports compare`: by id and by directory, and nothing left behind when it cannot be."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from service.cli.reports.drawing import _change_in_words
from service.contracts.comparison import Comparison
from service.contracts.request import JobRequest

STORED = Path(__file__).parents[2] / "workers" / "reporting" / "stored" / "schema_1_0"


@pytest.fixture
def stored(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "stored"))


@pytest.fixture
def keep(remote):
    """Store the example at the service, with report.json changed; return its id."""

    def store(**changes):
        report = json.loads((STORED / "report.json").read_text()) | changes
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for path in STORED.glob("tables/*"):
                archive.write(path, f"tables/{path.name}")
            archive.writestr("report.json", json.dumps(report))
        job = remote.store.submit(JobRequest(model="sample"))
        remote.succeed(remote.claim(job.id), {"bundle.zip": content.getvalue()})
        return job.id

    return store


def test_reports_at_the_service_and_here_side_by_side(headroom, keep, stored, tmp_path):
    kept, out = keep(), tmp_path / "out"
    ran = headroom("reports", "compare", kept, str(stored), kept, "--out", str(out))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == f"Comparison: {out / 'comparison.html'}"
    comparison = Comparison.model_validate_json((out / "comparison.json").read_bytes())
    assert [report.name for report in comparison.reports] == [kept, "stored", kept]
    assert comparison.differences[0].schemes["int8"].kl_divergence.paired
    told = "int8: no clear difference; mean KL differs by 0 nats (95% interval 0 to 0) over 4 shared sequences"
    assert f"{comparison.differences[0].label}, {told}" in ran.out.splitlines()
    assert (out / "figures" / "comparison_divergence.svg").is_file()


def test_warnings_are_printed_and_json_holds_the_comparison(headroom, stored, tmp_path):
    other = Path(shutil.copytree(stored, tmp_path / "other"))
    report = json.loads((other / "report.json").read_text())
    report["calibration"]["fingerprint"] = "sha256:" + "c" * 64
    report["outliers"]["variance"]["thresholds"]["ratio"] = 7.0
    (other / "report.json").write_text(json.dumps(report))
    ran = headroom("reports", "compare", str(stored), str(other), "--out", str(tmp_path / "a"))
    assert ran.code == 0
    assert "Warning: example/tiny-llama (other): The calibration tokens differ: " in ran.out
    assert " that both scored. Measure both models on one text to compare them on all of it." in ran.out
    assert (
        "Not compared: example/tiny-llama (other): outliers.variance: different thresholds: ratio 5.0 and 7.0"
        in ran.out
    )
    ran = headroom("reports", "compare", str(stored), str(other), "--out", str(tmp_path / "b"), "--json")
    assert ran.document["directory"] == str(tmp_path / "b")
    assert ran.document["comparison"] == json.loads((tmp_path / "b" / "comparison.json").read_text())


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "worse; mean KL differs by 0.020 nats (95% interval 0.010 to 0.030) over 9 shared sequences"),
     ({"difference": {"value": -0.02, "standard_error": 0.004, "interval": [-0.03, -0.01]}},
      "better; mean KL differs by -0.020 nats (95% interval -0.030 to -0.010) over 9 shared sequences"),
     ({"clear": False}, "no clear difference; mean KL differs by 0.020 nats (95% interval 0.010 to 0.030) over 9 "
                        "shared sequences"),
     ({"paired": False, "difference": {"value": 0.02, "standard_error": None}},
      "mean KL differs by 0.02000 nats, which says neither better nor worse: no scored sequence is shared"),
     ({"difference": None}, "a report has no mean KL")],
)  # fmt: skip
def test_a_difference_is_called_better_or_worse_only_on_shared_sequences(changes, told):
    difference = {"value": 0.02, "standard_error": 0.004, "interval": [0.01, 0.03]}
    assert _change_in_words({"difference": difference, "paired": True, "clear": True, "sequences": 9} | changes) == told


def test_bad_input_is_named_and_leaves_nothing(headroom, keep, stored, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    out = str(place / "out")
    newer = keep(schema_version="2.0")
    for arguments, named in (
        ([str(stored)], "REPORT: compare needs 2 to 8 reports; got 1"),
        ([str(stored)] * 9, "REPORT: compare needs 2 to 8 reports; got 9"),
        ([str(stored), str(tmp_path / "none")], "has no report.json; allowed: the directory of a report"),
        ([str(stored), str(place)], "has no report.json; allowed: the directory of a report"),
        (
            [str(stored), "a b"],
            "REPORT: 'a b' is not allowed; allowed: an id of 1 to 64 letters, digits, - and _, or the directory of a",
        ),
        ([str(stored), "0" * 32], "0000"),
        ([str(stored), newer], "schema_version: '2.0' is not allowed"),
    ):
        ran = headroom("reports", "compare", *arguments, "--out", out)
        assert ran.code == 2, ran.err
        assert named in ran.err
        assert "Traceback" not in ran.err
        assert list(place.iterdir()) == []
    ran = headroom("reports", "compare", str(stored), str(stored), "--out", str(stored))
    assert ran.code == 2
    assert "--out" in ran.err
