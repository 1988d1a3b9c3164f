"""`headroom recommend`: what does not go together, and a plan, which submits nothing."""

import json
import subprocess

import pytest

from service.cli import planning
from service.contracts.harm.cost import Cost

COST = {
    "kind": "plan",
    "source": "sample",
    "layers": 8,
    "sequences": 16,
    "sequence_length": 256,
    "held_out_sequences": 16,
    "stages": [
        {"stage": "sweep", "forwards": 5, "streams_bytes": 0, "checkpoint_bytes": 12_000_000},
        {"stage": "harm", "forwards": 73.4, "streams_bytes": 5_000_000_000, "checkpoint_bytes": 6_000_000},
    ],
    "modules": 112,
    "swaps": 45,
    "further_swaps": 40,
    "swap_groups": 1,
    "mixes": 16,
    "sizes": [{"scheme": "nf4", "smallest": 4_123_456, "largest": 9_000_000}],
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "o"), "MODEL"),
        (("sample",), "--out"),
        (("sample", "--report", "x", "--out", "o"), "MODEL: 'sample' is given beside --report"),
        (("--report", "x", "--out", "o", "--sequences", "4"), "--sequences: 4 is given beside --report"),
        (("--report", "x", "--out", "o", "--set", "heads.relative_peak=3"), "harm.NAME and recommend.NAME"),
        (("--report", "x", "--plan"), "--plan"),
        (("sample", "--plan", "--out", "d"), "--plan does not go with --out"),
        (
            ("sample", "--out", "d", "--max-bytes", "5MB", "--max-kl", "1"),
            "--max-bytes and --max-kl exclude each other",
        ),
        (("sample", "--plan", "--sequences", "1"), "recommend: a recommendation needs 2 sequences or more"),
        (("sample", "--plan", "--set", "recommend.max_bytes=4.6"), "--set recommend.max_bytes: '4.6' is not allowed"),
        (("org/name", "--plan"), "MODEL: 'org/name' is not fetched; allowed: a directory of this machine"),
        (("sample", "--plan", "--set", "harm.draws=0"), "harm.draws"),
        (("sample", "--plan", "--max-bytes", "125QB"), "--max-bytes: '125QB' is not allowed; allowed: 1 or more bytes"),
        (("sample", "--plan", "--max-kl", "0"), "--max-kl"),
    ],
)
def test_what_does_not_go_together_is_refused(headroom, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    ran = headroom("recommend", *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_an_analysis_takes_no_settings_of_mixes(headroom, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = headroom("analyze", "sample", "--out", "d", "--set", "recommend.rounds=2")
    assert ran.code == 2
    assert "'recommend.rounds' is not allowed" in ran.err
    assert "headroom recommend" in ran.err


@pytest.fixture
def planner(monkeypatch):
    """Stand in for `workers.planning`; returns what it is asked, and says the lines that it is told to."""
    asked = []

    def answers(*lines, stderr=""):
        def run(command, *, input, **_):
            asked.append((command[1:], json.loads(input)))
            return subprocess.CompletedProcess(command, 0, "\n".join(map(json.dumps, lines)), stderr)

        monkeypatch.setattr(planning.subprocess, "run", run)
        return asked

    return answers


def test_a_plan_says_what_it_would_take(headroom, planner, tmp_path):
    asked = planner({"kind": "progress", "stage": "load"}, COST, {"kind": "finished"})
    text = tmp_path / "c.txt"
    text.write_text("a text")
    ran = headroom("recommend", "sample", "--plan", "--calibration", str(text), "--scheme", "nf4", "--memory", "1MiB")
    assert ran.code == 0, ran.err
    [(command, given)] = asked
    assert command == ["-m", "workers.planning"]
    assert (given["job"]["model"], given["job"]["schemes"], given["job"]["recommend"]) == (
        "sample",
        ["nf4"],
        {"enabled": True},
    )
    assert (given["calibration"], given["labelled"], given["machine"]["memory_bytes"]) == (str(text), None, 1 << 20)
    assert "calibration" not in given["job"]
    assert "In all about 78 forward passes, and at most 5.0 GB of disk at once." in ran.out
    assert (
        "Parts replaced alone: 45 in 1 group; 40 more if harms do not add up. Mixes and controls: at most 16."
        in ran.out
    )
    assert "Mixes of nf4: 4.1 MB to 9.0 MB (4,123,456 to 9,000,000 bytes)." in ran.out


def test_a_plan_as_json_is_the_cost(headroom, planner):
    planner(COST, {"kind": "finished"})
    ran = headroom("recommend", "sample", "--plan", "--json")
    document = ran.document
    assert (document.pop("forwards"), document.pop("disk_bytes")) == (pytest.approx(78.4), 5_006_000_000)
    assert Cost.model_validate(document) == Cost.model_validate(COST)


def test_a_plan_of_what_would_be_refused_is_refused(headroom, planner):
    planner({"kind": "failed", "code": "bad-request", "message": "recommend.max_bytes: no", "bad_input": True})
    ran = headroom("recommend", "sample", "--plan", "--max-bytes", "1kB")
    assert (ran.code, ran.err.strip()) == (2, "headroom: recommend.max_bytes: no")
    planner(stderr="Traceback: broken")
    ran = headroom("recommend", "sample", "--plan")
    assert ran.code == 1
    assert "the plan could not be made: Traceback: broken" in ran.err
