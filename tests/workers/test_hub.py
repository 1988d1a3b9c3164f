"""Fetching from a hub: a small server in place of huggingface.co, reached through HF_ENDPOINT."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

from service.contracts.progress import PROGRESS_LINE, Failed, Finished
from service.contracts.request import ModelFiles

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.model": b"pieces",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"a pickle",
    "modeling_llama.py": b"code",
    "original/consolidated.safetensors": b"the same again",
    "README.md": b"about",
}
WANTED = {"config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"}


MODEL_PATHS = ("/api/models/org/name", *(f"/api/models/org/name/revision/{name}" for name in ("main", COMMIT)))


def oid(content: bytes) -> str:
    """Return the hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Answers for org/name at the branch main, and for nothing else."""

    asked: list[str]
    listed: dict[str, int] = {}  # noqa: RUF012
    """Sizes that the list of files tells in place of the true ones."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        type(self).asked.append(self.path)
        start = f"/org/name/resolve/{COMMIT}/"
        name = self.path.removeprefix(start)
        if self.path.split("?")[0] in MODEL_PATHS:
            siblings = [{"rfilename": file} for file in FILES]
            self.reply(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode(), body)
        elif self.path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            sizes = {name: len(content) for name, content in FILES.items()} | self.listed
            tree = [{"type": "file", "path": f, "size": sizes[f], "oid": oid(c)} for f, c in FILES.items()]
            self.reply(200, json.dumps(tree).encode(), body)
        elif self.path.startswith(start) and name in FILES:
            self.reply(200, FILES[name], body)
        elif self.path.startswith("/api/models/org/name/"):
            self.reply(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        elif self.path.startswith("/api/models/org/gated"):
            self.reply(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith("/api/models/org/broken"):
            self.reply(400, b"{}", body)
        else:
            self.reply(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {"Content-Length": str(len(content)), "ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT}
        for name, value in {**common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Fetched(NamedTuple):
    """What the program did."""

    status: int
    last_word: Finished | Failed
    target: Path


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of the server."""
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(name: str, endpoint: str, directory: Path, *options: str) -> Fetched:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(directory / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    target = directory / "model.json"
    command = [sys.executable, "-m", "workers.model_files.hub", *options, name, str(target)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    last_word = PROGRESS_LINE.validate_json(answer.stdout.splitlines()[-1])
    assert isinstance(last_word, Finished | Failed)
    return Fetched(answer.returncode, last_word, target)


@pytest.mark.parametrize("name", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_a_model_is_fetched_at_the_commit_that_its_name_means(hub: str, tmp_path: Path, name: str) -> None:
    fetched = fetch(name, hub, tmp_path)
    assert fetched.last_word == Finished()
    assert fetched.status == 0
    model = ModelFiles.model_validate_json(fetched.target.read_text())
    assert (model.source, model.revision) == (name, COMMIT)
    kept = {str(path.relative_to(model.path)): path.read_bytes() for path in model.path.rglob("*") if path.is_file()}
    assert kept == {name: FILES[name] for name in WANTED}
    assert [path for path in Hub.asked if path.endswith((".bin", ".py"))] == []


@pytest.mark.parametrize("name", ["org/name@absent", "org/absent", "org/gated"])
def test_what_the_hub_does_not_give_is_bad_input(hub: str, tmp_path: Path, name: str) -> None:
    fetched = fetch(name, hub, tmp_path)
    assert isinstance(fetched.last_word, Failed)
    assert (fetched.status, fetched.last_word.code, fetched.last_word.bad_input) == (2, "bad-model", True)
    assert repr(name) in fetched.last_word.message
    assert not fetched.target.exists()


def test_a_hub_in_trouble_is_not_bad_input(hub: str, tmp_path: Path) -> None:
    fetched = fetch("org/broken", hub, tmp_path)
    assert isinstance(fetched.last_word, Failed)
    assert (fetched.status, fetched.last_word.code, fetched.last_word.bad_input) == (1, "hub-unreachable", False)


def test_a_hub_that_is_away_is_not_bad_input(tmp_path: Path) -> None:
    fetched = fetch("org/name", "http://127.0.0.1:1", tmp_path)
    assert isinstance(fetched.last_word, Failed)
    assert (fetched.status, fetched.last_word.code, fetched.last_word.bad_input) == (1, "hub-unreachable", False)


@pytest.mark.parametrize("left", [0, -1])
def test_a_model_over_the_limit_is_refused_before_anything_is_fetched(hub: str, tmp_path: Path, left: int) -> None:
    size = sum(len(FILES[name]) for name in WANTED)
    fetched = fetch("org/name", hub, tmp_path, f"--bytes={size + left}")
    if left == 0:
        assert fetched.last_word == Finished()
        return
    assert isinstance(fetched.last_word, Failed)
    assert (fetched.status, fetched.last_word.code, fetched.last_word.bad_input) == (2, "model-too-large", True)
    assert f"its 5 files have {size} bytes; allowed: {size - 1}" in fetched.last_word.message
    assert not any("/resolve/" in path for path in Hub.asked)


@pytest.mark.parametrize("left", [0, -1])
def test_a_model_that_is_not_small_is_left_to_others_before_anything_is_fetched(
    hub: str, tmp_path: Path, left: int
) -> None:
    size = sum(len(FILES[name]) for name in WANTED if name.endswith(".safetensors"))
    fetched = fetch("org/name", hub, tmp_path, f"--bytes={1 << 30}", f"--small={size + left}")
    if left == 0:
        assert fetched.last_word == Finished()
        return
    assert isinstance(fetched.last_word, Failed)
    assert fetched.last_word.code == "large-model"
    assert f"{size} bytes of weights; this worker takes {size - 1} at most" in fetched.last_word.message
    assert not any("/resolve/" in path for path in Hub.asked)


def test_a_file_that_is_larger_than_listed_is_not_kept(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "model.safetensors", b"x" * (3 << 20))
    monkeypatch.setattr(Hub, "listed", {"model.safetensors": 7})
    fetched = fetch("org/name", hub, tmp_path, "--bytes=1000")
    assert isinstance(fetched.last_word, Failed)
    assert (fetched.status, fetched.last_word.code) == (1, "hub-unreachable")
    assert max(path.stat().st_size for path in (tmp_path / "hf").rglob("*") if path.is_file()) <= 1 << 20
