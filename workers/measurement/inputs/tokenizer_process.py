"""Runs a tokenizer in a process of its own, with limits on memory and processor time.

A tokenizer's files are data, and still can ask for any amount of both: nested replacements make a text a thousand times
as long, and a pattern that backtracks takes time exponential in the text. The process is forked, so that no library is
loaded again, and early, so that it shares little memory with what the measurement does later.
"""

import json
import math
import multiprocessing
import os
import resource
import signal
import warnings
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from workers.measurement.errors import BadModel, first_line

LOAD_BYTES = 4 << 30
"""Memory that reading the files may take."""
LOAD_SECONDS = 300
"""Processor time that reading the files may take."""
TEXT_BYTES = 2 << 30
"""Memory that a text may take, beside BYTES_PER_CHARACTER."""
BYTES_PER_CHARACTER = 512
"""A token takes some 300 bytes while its text is tokenized."""
TEXT_SECONDS = 60
"""Processor time that a text may take, beside one second for CHARACTERS_PER_SECOND."""
CHARACTERS_PER_SECOND = 20_000
"""The slowest tokenizers of transformers take twice as many."""
_OUT_OF_MEMORY = 99
"""Exit status of a process that Python ends for lack of memory."""


class TokenizerProcess:
    """The process; it ends with `close`, or when nothing refers to this object."""

    def __init__(self, path: Path) -> None:
        """Start the process; it reads nothing yet."""
        self._path = path
        self._ended: str | None = None
        context = multiprocessing.get_context("fork")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(path, other, self._connection), daemon=True)
        with warnings.catch_warnings():
            # The child calls nothing of what other threads of this process may be in the middle of.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            self._process.start()
        other.close()
        self.close = weakref.finalize(self, _end, self._connection, self._process)

    def facts(self) -> dict[str, int | None]:
        """Return `bos` and `eos`, the ids of the tokens that begin and end a text. Raises BadModel."""
        return dict(json.loads(self._ask({"do": "facts"}, LOAD_BYTES, LOAD_SECONDS)))

    def encode(self, text: str, options: dict[str, Any]) -> NDArray[np.int64]:
        """Return the token ids of a text. Raises BadModel."""
        most = TEXT_BYTES + BYTES_PER_CHARACTER * len(text)
        seconds = TEXT_SECONDS + len(text) // CHARACTERS_PER_SECOND
        return np.frombuffer(self._ask({"do": "encode", "text": text, "options": options}, most, seconds), dtype="<i8")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some token ids. Raises BadModel."""
        return str(json.loads(self._ask({"do": "decode", "ids": list(ids)}, TEXT_BYTES, TEXT_SECONDS)))

    def _ask(self, request: dict[str, Any], most: int, seconds: int) -> bytes:
        if self._ended is not None:
            raise BadModel(self._ended)
        try:
            self._connection.send_bytes(json.dumps({**request, "bytes": most, "seconds": seconds}).encode())
            answer = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join()
            self._ended = f"model: the tokenizer in {self._path} {_why(self._process.exitcode, most, seconds)}"
            raise BadModel(self._ended) from None
        if answer[:1] == b"!":
            raise BadModel(f"model: {self._path} {answer[1:].decode()}")
        return answer[1:]


def _why(status: int | None, most: int, seconds: int) -> str:
    """Say how the process ended."""
    if status == -signal.SIGXCPU:
        return f"takes more than {seconds} s of processor time; allowed are {seconds} s"
    how = "of memory" if status == _OUT_OF_MEMORY or status is None else f"of memory, or crashes ({_name(status)})"
    return f"takes more than {most / 2**30:.1f} GiB {how}; allowed are {most / 2**30:.1f} GiB"


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _end(connection: "Connection[Any, Any]", process: ForkProcess) -> None:
    connection.close()
    process.kill()
    process.join()


def _serve(path: Path, connection: "Connection[Any, Any]", parents: "Connection[Any, Any]") -> None:
    """Answer requests until the parent closes its end."""
    parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    present = _data_bytes()
    tokenizer: Any = None
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            os._exit(0)
        try:
            if tokenizer is None:
                _limit(present, LOAD_BYTES, LOAD_SECONDS)
                tokenizer = _load(path)
            _limit(present, request["bytes"], request["seconds"])
            answer = b"=" + _answer(tokenizer, request)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except BaseException as error:  # a panic of the tokenizers library is no Exception
            answer = b"!" + _refusal(error, loaded=tokenizer is not None).encode("utf-8", "replace")
        connection.send_bytes(answer)


def _load(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _answer(tokenizer: Any, request: dict[str, Any]) -> bytes:
    if request["do"] == "facts":
        return json.dumps({"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}).encode()
    if request["do"] == "decode":
        return json.dumps(tokenizer.decode(request["ids"])).encode()
    return np.asarray(tokenizer(request["text"], **request["options"]).input_ids, dtype="<i8").tobytes()


def _refusal(error: BaseException, *, loaded: bool) -> str:
    if not loaded:
        return f"has no tokenizer that can be loaded: {first_line(error)}"
    return f"has a tokenizer that fails: {first_line(error)}"


def _limit(present: int | None, most: int, seconds: int) -> None:
    """Limit the memory and the processor time that this process uses from now on, in bytes and seconds."""
    if present is not None:
        _lower(resource.RLIMIT_DATA, present + most)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)


def _lower(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _data_bytes() -> int | None:
    """Return the private memory of this process, as RLIMIT_DATA counts it; None where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), None)
