"""The libraries' settings are made before they are loaded, and leave the caller's alone."""

import json
import os
import subprocess
import sys

CODE = """
import json, os, sys
from workers.measurement.runtime.environment import settle_environment
settle_environment()
names = ("HF_HUB_OFFLINE", "ARROW_DEFAULT_MEMORY_POOL", "GOMP_SPINCOUNT")
print(json.dumps(["torch" in sys.modules, *(os.environ[name] for name in names)]))
"""


def settled(**given: str) -> list[object]:
    """Whether torch is loaded, and the settings, in a process of its own."""
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        [sys.executable, "-c", CODE], env=inherited | given, check=True, capture_output=True, text=True, timeout=60
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
