"""The libraries' settings are made before they are loaded, and leave the caller's alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.measurement.runtime import environment

CODE = """
import json, os, sys
from workers.measurement.runtime.environment import settle_environment
settle_environment()
names = ("HF_HUB_OFFLINE", "ARROW_DEFAULT_MEMORY_POOL", "GOMP_SPINCOUNT")
print(json.dumps(["torch" in sys.modules, *(os.environ[name] for name in names)]))
"""


def settled(code: str = CODE, **given: str) -> list[object]:
    """Whether torch is loaded, and the settings, in a process of its own."""
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=inherited | given, check=True, capture_output=True, text=True, timeout=60
    )
    found: list[object] = json.loads(ended.stdout)
    return found


def test_settings_are_made_before_torch_is_loaded() -> None:
    loaded, offline, pool, spins = settled()
    assert (loaded, offline, pool) == (False, "1", "system")
    assert 0 < int(str(spins)) < 100_000


def test_what_the_caller_says_stays_but_for_the_network() -> None:
    given = {"HF_HUB_OFFLINE": "0", "ARROW_DEFAULT_MEMORY_POOL": "mimalloc", "GOMP_SPINCOUNT": "7"}
    assert settled(**given) == [False, "1", "mimalloc", "7"]


def test_every_version_of_the_kernels_has_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_KERNELS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    caches = set()
    for source in ("x = 1", "x = 2"):
        (tmp_path / "kernel.py").write_text(source)
        environment.kernels_version.cache_clear()
        caches.add(environment.kernel_cache())
    environment.kernels_version.cache_clear()
    assert len(caches) == 2
    assert {cache.parent for cache in caches} == {tmp_path / "caches" / "headroom"}


def test_kernels_are_cached_where_the_caller_says() -> None:
    code = CODE.replace('"GOMP_SPINCOUNT"', '"NUMBA_CACHE_DIR"')
    assert settled(code, NUMBA_CACHE_DIR="/elsewhere")[-1] == "/elsewhere"
    assert str(settled(code)[-1]).endswith(f"{environment.kernels_version()}/numba")
