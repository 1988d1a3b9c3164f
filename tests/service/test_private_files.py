"""What the programs write is for its owner alone, whatever the umask of who starts them."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.local.home import Home
from service.settings import Settings

LOOSE = 0o000


def modes(home: Path) -> dict[str, int]:
    """Return the mode of every file and directory below a home, and of itself."""
    return {str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode) for path in (home, *home.rglob("*"))}


def assert_private(home: Path) -> None:
    loose = {name: oct(mode) for name, mode in modes(home).items() if mode & 0o077}
    assert loose == {}


@pytest.mark.parametrize(
    "start",
    [
        "import service.api.__main__ as m; m.uvicorn.Server.run = lambda *_, **__: 0; m.sys.argv = ['api']; m.main()",
        "import service.scheduler.__main__ as m; m.Repeating.run = lambda *_: None; m.main()",
        "import workers.app as m; m.Celery.worker_main = lambda *_: Path(H, 'work/job').mkdir(parents=True); m.main()",
    ],
    ids=["api", "scheduler", "worker"],
)
def test_a_program_that_is_started_by_itself_keeps_its_files_private(tmp_path: Path, start: str) -> None:
    home = tmp_path / "home"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HEADROOM_")},
        "HEADROOM_HOME": str(home),
        "HEADROOM_BROKER_URL": "redis://127.0.0.1:1/0",
        "HEADROOM_API_KEY": "k" * 32,
    }
    code = f"import os; os.umask({LOOSE}); from pathlib import Path; H = {str(home)!r}; {start}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {"headroom.db", "artifacts", "artifacts/store-id"} <= set(modes(home))
    assert_private(home)


def test_a_home_keeps_its_lock_and_its_logs_private(tmp_path: Path) -> None:
    before = os.umask(LOOSE)
    try:
        home = Home(Settings(home=tmp_path / "home"))
        home.prepare()
        with home.lock():
            home.make_key()
            assert set(modes(home.path)) == {".", "lock", "api-key", "logs"}
            assert_private(home.path)
    finally:
        os.umask(before)
