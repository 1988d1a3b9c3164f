"""Programs that take, write, reach and leave behind what they must not, in the sandbox of a job."""

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.contracts.progress import Failed
from service.errors import InvalidRequest
from service.settings import Settings
from workers.children import Ended
from workers.failures import JobFailed, unexplained
from workers.sandbox.family import settle_worker
from workers.sandbox.limits import Limits
from workers.sandbox.memory import machine_memory
from workers.sandbox.probe import launched, offer
from workers.sandbox.sandbox import Sandbox, open_sandbox
from workers.sandbox.user import find_user

MIB = 1 << 20
LIMITS = Limits(memory_bytes=192 * MIB, file_bytes=MIB, seconds=3600)
IMPORTS = "import json, mmap, os, resource, signal, socket, subprocess, sys, time\n"
ALLOCATE = """
kept = []
while True:
    kept.append(bytearray(os.urandom(1 << 16) * 256))  # 16 MiB, every page of it written
    time.sleep(0.01)
"""
ESCAPE = """
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
"""
"""Runs what follows, indented, in a process that has left its parent, its group and its session."""


class Runs:
    """Runs programs in a sandbox, and sees what they leave."""

    def __init__(self, directory: Path, sandbox: Sandbox) -> None:
        self.directory = directory
        self.sandbox = sandbox
        self.lines: list[bytes] = []

    def __call__(self, code: str, check: Callable[[], None] = lambda: None, *, weights: int = 0) -> Ended:
        return self.program([sys.executable, "-I", "-S", "-c", IMPORTS + code], check, weights=weights)

    def program(self, command: list[str], check: Callable[[], None] = lambda: None, *, weights: int = 0) -> Ended:
        what, take, began = "the measurement", self.lines.append, time.perf_counter()
        try:
            ended = self.sandbox.run(command, what, self.directory, check, take, weights=weights)
            print(f"{time.perf_counter() - began:.2f} s, peak {(ended.peak_bytes or 0) / MIB:.0f} MiB")
            return ended
        except JobFailed as error:
            print(f"{time.perf_counter() - began:.2f} s, {error}")
            raise
        finally:
            assert sorted(path.name for path in self.directory.iterdir()) == []

    def fails(self, code: str) -> Failed:
        with pytest.raises(JobFailed) as raised:
            self(code)
        return raised.value.failed

    def said(self) -> dict:
        return json.loads(self.lines[-1])


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Runs without a cgroup; no process that they start is there at the end."""
    settle_worker()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    (tmp_path / "job").mkdir()
    yield Runs(tmp_path / "job", Sandbox(LIMITS, replace(offer(), cgroups=None), None, tmp_path / "caches"))
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


def test_the_program_takes_the_place_of_what_confines_it(runs: Runs) -> None:
    runs("print(json.dumps([os.getppid(), sys.argv, resource.getrlimit(resource.RLIMIT_CORE)[0]]))")
    assert runs.said() == [os.getpid(), ["-c"], 0]


def test_a_program_that_takes_too_much_memory_is_ended_with_the_limit_and_what_it_reached(runs: Runs) -> None:
    failed = runs.fails(ALLOCATE)
    assert (failed.code, failed.bad_input) == ("memory-limit", False)
    assert "192.0MiB (HEADROOM_JOB_MEMORY); it had reached " in failed.message
    reached = float(failed.message.partition("it had reached ")[2].partition("MiB")[0])
    assert 192 < reached < 2000


def test_memory_of_a_process_that_has_left_the_program_counts_too(runs: Runs) -> None:
    escaped = ESCAPE + "".join(f"    {line}\n" for line in ALLOCATE.splitlines())
    failed = runs.fails(escaped + "time.sleep(600)")
    assert failed.code == "memory-limit"
    assert not psutil.pid_exists(int(runs.lines[0]))


def test_memory_shared_between_processes_counts(runs: Runs) -> None:
    share = "memory = mmap.mmap(-1, 256 << 20)\nmemory.write(bytes(256 << 20))\ntime.sleep(600)"
    assert runs.fails(share).code == "memory-limit"


def test_one_allocation_beyond_all_limits_is_refused_at_once(runs: Runs) -> None:
    ended = runs("mmap.mmap(-1, 12 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)")
    failed = runs.sandbox.explained(unexplained("the measurement", ended), ended)
    assert failed.code == "out-of-memory"
    assert "192.0MiB (HEADROOM_JOB_MEMORY), and this one held up to " in failed.message


def test_a_mapped_file_larger_than_the_memory_is_allowed(runs: Runs, tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as weights:
        weights.truncate(64 << 30)
    code = f"mmap.mmap(os.open({str(tmp_path / 'weights')!r}, os.O_RDONLY), 64 << 30, prot=mmap.PROT_READ)"
    assert runs(code).status == 0


def test_weight_files_may_be_mapped_as_safetensors_does_for_every_tensor(runs: Runs, tmp_path: Path) -> None:
    """Such mappings are private and writable, so RLIMIT_DATA counts each of them."""
    with (tmp_path / "weights").open("wb") as weights:
        weights.truncate(2 << 30)
    place = str(tmp_path / "weights")
    code = f"maps = [mmap.mmap(os.open({place!r}, os.O_RDONLY), 2 << 30, flags=mmap.MAP_PRIVATE) for _ in range(300)]"
    assert runs(code).status == 1
    assert runs(code, weights=2 << 30).status == 0


@pytest.mark.parametrize("how", ["python", "signal"])
def test_a_file_that_is_too_large_is_cut_off_and_named(runs: Runs, how: str) -> None:
    target = "os.path.join(os.environ['HOME'], 'large')"
    by_signal = "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n" if how == "signal" else ""
    failed = runs.fails(f"{by_signal}with open({target}, 'wb') as file: file.write(bytes(2 << 20))")
    assert failed.code == "file-size-limit"
    assert "1.0MiB (HEADROOM_JOB_FILE_BYTES)" in failed.message


def test_a_program_that_computes_for_too_long_is_ended(runs: Runs) -> None:
    runs.sandbox = replace(runs.sandbox, limits=replace(LIMITS, seconds=0.01))
    failed = runs.fails("while True: pass")
    assert failed.code == "cpu-limit"
    assert "1 s (HEADROOM_JOB_SECONDS times the CPUs)" in failed.message


def test_the_environment_has_what_is_allowed_and_nothing_else(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("HEADROOM_DATABASE_URL", "HEADROOM_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWORD", "MY_KEY")
    for name in (*secrets, "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    runs("print(json.dumps(dict(os.environ) | {'mode': oct(os.stat(os.environ['HOME']).st_mode & 0o777)}))")
    seen = runs.said()
    assert not {name for name in seen if name in secrets}
    assert (seen["OMP_NUM_THREADS"], seen["CUDA_VISIBLE_DEVICES"], seen["mode"]) == ("1", "1", "0o700")
    assert Path(seen["HOME"]).parent == runs.directory
    assert Path(seen["TMPDIR"]).parent == Path(seen["HOME"])
    for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR"):
        assert Path(seen[name]).parent == runs.sandbox.caches


def test_the_worker_s_environment_and_memory_cannot_be_read(runs: Runs) -> None:
    runs("""
said = []
for name in ("environ", "mem"):
    try: open(f"/proc/{os.getppid()}/{name}", "rb")
    except OSError as error: said.append(type(error).__name__)
print(json.dumps(said))
""")
    assert runs.said() == ["PermissionError", "PermissionError"]


def test_no_privilege_comes_back(runs: Runs) -> None:
    runs("print(json.dumps(dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines())))")
    status = runs.said()
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) & ~0b110 == 0  # but for reading other users' files


def test_a_program_that_ignores_sigterm_is_killed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.children.GRACE_SECONDS", 0.2)

    def cancel() -> None:
        if runs.lines:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\ntime.sleep(600)", cancel)
    assert not psutil.pid_exists(int(runs.lines[0]))


def test_what_a_program_leaves_running_is_ended_with_it(runs: Runs) -> None:
    ended = runs(ESCAPE + "    time.sleep(600)\nprint('done', flush=True)")
    assert ended.status == 0
    (pid,) = (int(line) for line in runs.lines if b"done" not in line)
    assert not psutil.pid_exists(pid)


def test_one_that_prints_for_ever_after_its_program_has_ended_does_not_hold_the_worker(runs: Runs) -> None:
    ended = runs(ESCAPE + "    while True: print('more', flush=True)\ntime.sleep(0.5)")
    assert ended.status == 0


def test_a_program_that_prints_faster_than_its_lines_are_taken_waits(runs: Runs, tmp_path: Path) -> None:
    count = tmp_path / "count"
    printing = f"""
with open({str(count)!r}, "w") as file:
    for number in range(1_000_000):
        print("x" * 99)
        if number % 1000 == 0: file.seek(0); file.write(str(number)); file.flush()
"""
    seen: list[int] = []

    def look() -> None:
        if runs.lines:
            time.sleep(1)
            seen.append(int(count.read_text() or 0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs(printing, look)
    assert seen[0] < 10_000  # a thousand lines, and what the pipe and the buffers of both sides hold


def test_a_program_that_cannot_be_started_is_named(runs: Runs) -> None:
    ended = runs.program(["/no/such/program"])
    assert ended.status == 125
    assert "'/no/such/program' cannot be started: No such file or directory" in ended.last_error


def test_a_program_whose_confinement_fails_does_not_run(tmp_path: Path) -> None:
    command = launched([sys.executable, "-c", "print('ran')"], cgroup=tmp_path / "nowhere")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith("sandbox: the program cannot be confined: [Errno 2] No such file")


def test_a_program_whose_worker_has_ended_does_not_run() -> None:
    confined = launched([sys.executable, "-c", "print('ran')"])
    # The shell stays between, so that the parent is not the worker that the command names.
    ended = subprocess.run(["/bin/sh", "-c", '"$@"; exit $?', "sh", *confined], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (125, b"")


def test_memory_is_nine_tenths_of_the_machine_s_unless_set(tmp_path: Path) -> None:
    assert open_sandbox(Settings(home=tmp_path)).limits.memory_bytes == int(machine_memory() * 0.9)
    assert machine_memory() <= psutil.virtual_memory().total
    assert open_sandbox(Settings(home=tmp_path, job_memory=5 * MIB)).limits.memory_bytes == 5 * MIB


def test_a_user_that_is_not_there_and_root_are_refused(tmp_path: Path) -> None:
    for name in ("no-such-user", "root"):
        with pytest.raises(InvalidRequest, match=f"HEADROOM_MEASUREMENT_USER: '{name}' is not allowed"):
            open_sandbox(Settings(home=tmp_path, measurement_user=name))


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that every user of the machine can enter, with a Python that every user can start."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o711)
        monkeypatch.setattr("workers.sandbox.sandbox._PROGRAMS", Path(made))
        monkeypatch.setattr(sys, "executable", _python_for_all())
        yield Path(made)


def _python_for_all() -> str:
    """Return this Python, or the system's where this one lies in somebody's home."""
    if os.geteuid() != 0:
        return sys.executable

    def starts(python: str) -> bool:
        try:
            return subprocess.run([python, "-c", ""], user="nobody", check=False).returncode == 0
        except PermissionError:
            return False

    return next(python for python in (sys.executable, "/usr/bin/python3") if starts(python))


def test_another_user_runs_the_programs_or_is_refused(reachable: Path) -> None:
    settings = Settings(home=reachable / "home", measurement_user="nobody")
    if os.geteuid() != 0:
        with pytest.raises(InvalidRequest, match="HEADROOM_MEASUREMENT_USER: 'nobody' is not allowed"):
            open_sandbox(settings)
        return
    settle_worker()
    nobody = pwd.getpwnam("nobody")
    directory = settings.home / "work" / "job"
    sandbox = open_sandbox(settings)
    directory.mkdir(parents=True, mode=0o700)
    (settings.home / "api-key").write_text("secret")
    (settings.home / "api-key").chmod(0o600)
    sandbox.open(directory / "measured", settings.home)
    text = reachable / "text"
    text.write_text("text")
    text.chmod(0o600)
    shared = sandbox.share(text, directory)
    lines: list[bytes] = []
    code = f"""
tried = {{}}
for path in ({str(settings.home / "api-key")!r}, {str(text)!r}, {str(shared)!r}):
    try: tried[path] = open(path).read()
    except OSError as error: tried[path] = type(error).__name__
open({str(directory / "measured" / "result")!r}, "w").write("x")
open(os.path.join(os.environ["NUMBA_CACHE_DIR"] + "-x"), "w").write("x")
print(json.dumps([os.getuid(), os.getgid(), os.getppid(), tried]))
"""
    command = [sys.executable, "-I", "-S", "-c", IMPORTS + code]
    ended = sandbox.run(command, "the measurement", directory, lambda: None, lines.append)
    assert (ended.status, ended.errors) == (0, ())
    uid, gid, parent, tried = json.loads(lines[0])
    assert (uid, gid, parent) == (nobody.pw_uid, nobody.pw_gid, os.getpid())
    assert list(tried.values()) == ["PermissionError", "PermissionError", "text"]
    assert (directory / "measured" / "result").stat().st_uid == nobody.pw_uid
    assert not (directory / "home").exists()


def test_files_of_others_are_not_handed_over(reachable: Path) -> None:
    if os.geteuid() != 0:
        assert find_user(None) is None
        return
    secret = reachable / "secret"
    secret.write_text("secret")
    sandbox = open_sandbox(Settings(home=reachable / "home", measurement_user="nobody"))
    directory = reachable / "home" / "measured"
    sandbox.open(directory, reachable / "home")
    os.link(secret, directory / "linked")
    (directory / "symbolic").symlink_to(secret)
    (directory / "own").touch()
    sandbox.open(directory, reachable / "home")
    assert secret.stat().st_uid == 0
    assert (directory / "own").stat().st_uid == pwd.getpwnam("nobody").pw_uid


def test_the_signals_of_a_program_are_the_usual_ones(runs: Runs) -> None:
    runs.program(["/bin/sh", "-c", "grep SigIgn /proc/self/status"])
    ignored = int(runs.lines[0].split()[1], 16)
    for number in (signal.SIGXFSZ, signal.SIGPIPE):
        assert ignored & (1 << (number - 1)) == 0
