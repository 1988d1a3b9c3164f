"""The YAML file of audits: what it gives, and where it says a mistake stands."""

import base64

import pytest

from service.cli.audits.audit_file import read_audits
from service.cli.audits.yaml_lines import MOST_VALUES, read
from service.errors import InvalidRequest

BEGINNING = "audits:\n  - name: a\n    model: sample\n"


@pytest.fixture
def file(tmp_path):
    """Write a file of audits, and return its path."""

    def write(text):
        path = tmp_path / "audits.yaml"
        path.write_text(text)
        return path

    return write


def refused(path, largest=100_000):
    with pytest.raises(InvalidRequest) as error:
        read_audits(path, largest)
    return str(error.value).removeprefix(str(path))


def test_the_example_of_the_documentation_is_read(file):
    text = """\
audits:
  - name: shipping-llama
    model: /models/llama            # or org/name@branch, or {newest_in: /models/candidates}
    schemes: [int8, nf4]
    sequences: 16
    sequence_length: 256
    schedule: "0 3 * * *"           # optional; without one the audit runs when asked
    timezone: Europe/Berlin
    baseline: last-passing          # or report:ID, or median:5
    limits:
      - int8.kl_divergence.mean <= baseline * 1.2
      - nf4.perplexity_ratio <= 1.05
      - outliers.llm_int8 none gained
      - block.abs_max <= baseline * 2
    notify:
      - webhook: https://example.org/hook
"""
    [entry] = read_audits(file(text), 100_000)
    assert entry.body == {
        "name": "shipping-llama",
        "model": "/models/llama",
        "schemes": ["int8", "nf4"],
        "sequences": 16,
        "sequence_length": 256,
        "schedule": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "baseline": "last-passing",
        "limits": [
            "int8.kl_divergence.mean <= baseline * 1.2",
            "nf4.perplexity_ratio <= 1.05",
            "outliers.llm_int8 none gained",
            "block.abs_max <= baseline * 2",
        ],
        "notify": [{"webhook": "https://example.org/hook"}],
    }


def test_files_and_directories_are_relative_to_the_yaml_file(file, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "c.txt").write_text("Guten Tag.")
    (tmp_path / "l.jsonl").write_text("{}")
    (tmp_path / "t.parquet").write_bytes(b"PAR1\xff")
    monkeypatch.chdir("/")
    text = BEGINNING.replace("sample", "./models/../llama") + "    calibration: texts/c.txt\n    labelled: l.jsonl\n"
    text += "  - name: b\n    model: {newest_in: ./candidates}\n    calibration: t.parquet\n"
    text += "  - name: c\n    model: org/name@main\n"
    first, second, third = (entry.body for entry in read_audits(file(text), 100_000))
    assert first["model"] == str(tmp_path / "llama")
    assert first["calibration"] == {"name": "c.txt", "text": "Guten Tag."}
    assert first["labelled"] == {"name": "l.jsonl", "text": "{}"}
    assert second["model"] == {"newest_in": str(tmp_path / "candidates")}
    assert base64.b64decode(second["calibration"]["content_base64"]) == b"PAR1\xff"
    assert third["model"] == "org/name@main"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("    limts: []\n", ":4: limts: no field has this name. Did you mean 'limits'?"),
        ("    llm_int8:\n      magnitud: 1\n", ":5: llm_int8.magnitud: no field has this name"),
        (
            "    llm_int8:\n      magnitude: -1\n",
            ":5: llm_int8.magnitude: -1 is not allowed; allowed: a number above 0",
        ),
        ("    sequences: many\n", ":4: sequences: 'many' is not allowed; allowed: a whole number"),
        (
            "    seed: 1\n    seed: 2\n",
            ":5: 'seed' is there twice: it is the key of line 4 too; allowed: each key once",
        ),
        (
            "  - name: a\n    model: sample\n",
            ":4: name: 'a' is the name of the audit of line 2 too; allowed: each name once",
        ),
        (
            "    limits:\n      - block.abs_max <= 4\n      - int8.kl <= 2\n",
            ":6: limits: 'int8.kl <= 2' is not a limit: no report has a figure 'int8.kl'; allowed: figures of a report;"
            " the nearest are int8.delta_p, int8.kl_divergence, int8.perplexity",
        ),
        (
            "    schemes: [int8]\n    limits: [nf4.perplexity_ratio <= 1.05]\n",
            ":5: limits: 'nf4.perplexity_ratio <= 1.05' is not a limit: 'nf4' is no scheme of the job; allowed: int8",
        ),
        (
            "    limits: [block.abs_max <= 4, block.abs_max  <= 4.0]\n",
            ":4: limits: 'block.abs_max  <= 4.0' says the same as 'block.abs_max <= 4'; allowed: each limit once",
        ),
        (
            "    timezone: Europe/Berln\n",
            ":4: timezone: 'Europe/Berln' is not allowed; allowed: an IANA time zone, such as \"UTC\" or "
            '"Europe/Berlin"',
        ),
        ("    schedule: 0 25 * * *\n", ":4: schedule: '0 25 * * *' has no valid hour; allowed: five fields, "),
        ("    schedule: daily\n", ":4: schedule: 'daily' has 1 fields; allowed: five fields, "),
        ("    schedule: 0 0 30 2 *\n", ":4: schedule: '0 0 30 2 *' would never fire, since no date fits it; allowed: "),
        (
            "    baseline: median:0\n",
            ":4: baseline: 'median:0' is not allowed; allowed: last-passing, median:K with K from 1 to 100, or "
            "report:ID, such as median:5",
        ),
        ("    schemes: [int9]\n", ":4: schemes.0.scheme: Unknown scheme 'int9'. Available: int8, nf4"),
        ("    calibration: 5\n", ":4: calibration: 5 is not allowed; allowed: the path of a file"),
        ("    calibration: [1\n", ":5: expected ',' or ']', but got '<stream end>'; allowed: YAML"),
        ("    bos: no\n", ":4: bos: 'no' is not allowed; allowed: 'auto', 'always' or 'never'"),
        ("  - 5\n", ":4: audits: 5 is not allowed; allowed: a list of entries that each have a name, a model, "),
        ("audit: 5\n", ":4: audit: 5 is not a key of the file; allowed: audits. Did you mean 'audits'?"),
    ],
)
def test_a_mistake_is_named_with_its_line(file, more, message):
    assert refused(file(BEGINNING + more)).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("audits:\n  - name: a\n", ":2: model: it is required"),
        (
            "audits:\n  - name: A b\n    model: sample\n",
            ":2: name: 'A b' is not allowed; allowed: 1 to 63 of a-z, 0-9 and -, first a letter or a digit",
        ),
        (
            "audits:\n  - name: a\n    model: {newest: /x}\n",
            ":3: model: {'newest': '/x'} is not allowed; allowed: text, such as org/name@branch or an absolute path, "
            'or {"newest_in": DIRECTORY}',
        ),
        ("- name: a\n", ":1: [{'name': 'a'}] is not a mapping; allowed: a key 'audits' with a list of entries"),
        ("audits:\n", ":1: audits: None is not allowed; allowed: a list of entries"),
        ("a: !!python/object/apply:os.getcwd []\n", ":1: has the tag 'tag:yaml.org,2002:python/object/apply:os"),
        ("a: !!python/name:os.getcwd x\n", ":1: could not determine a constructor for the tag "),
        ("a: *b\n", ":1: found undefined alias 'b'; allowed: YAML"),
        ("a: " + "[" * 5000, ": is nested too deeply; allowed: YAML"),
        ("a: " + "9" * 5000, ": Exceeds the limit"),
        ("a: 1\n---\nb: 1\n", ":2: but found another document; allowed: YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(file, text, message):
    assert refused(file(text)).startswith(message)


def test_a_file_that_cannot_be_read_is_named_with_the_line_that_names_it(file, tmp_path):
    path = file(BEGINNING + "    calibration: none.txt\n")
    expected = f":4: calibration: '{tmp_path / 'none.txt'}' cannot be read (No such file or directory); allowed: a file"
    assert refused(path).startswith(expected)
    (tmp_path / "none.txt").write_bytes(b"\xff")
    assert "is not UTF-8 at byte 0" in refused(path)
    (tmp_path / "none.txt").write_text("x" * 200)
    assert "is too large" in refused(path, largest=199)
    assert "is empty" in refused(file(""), largest=9)


def test_aliases_are_repeated_and_their_number_is_limited(file):
    shared = "limits: &shared [block.abs_max <= 4]\n"
    text = f"audits:\n  - name: a\n    model: sample\n    {shared}  - name: b\n    model: sample\n    limits: *shared\n"
    assert [entry.body["limits"] for entry in read_audits(file(text), 10_000)] == [["block.abs_max <= 4"]] * 2
    lines = ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert refused(file("\n".join(lines))) == (
        f": has more than {MOST_VALUES:,} values; allowed: YAML, as in https://yaml.org/spec/1.2.2"
    )


def test_plain_words_are_text_and_lines_are_those_of_keys():
    document = read("a: no\nb: 1:30\nc: 2026-01-01\nd: 1e3\ne: 010\nf:\n  g: [~,\n   -2]\nh: true\n", "x")
    assert document.content == {
        "a": "no", "b": "1:30", "c": "2026-01-01", "d": 1000.0, "e": "010", "f": {"g": [None, -2]}, "h": True
    }  # fmt: skip
    assert [document.line(place) for place in (("d",), ("f", "g"), ("f", "g", 1), ("f", "g", 5), ("z",))] == [
        4,
        7,
        8,
        7,
        1,
    ]
