"""Makes a bare Python ready: what is missing comes from wheels in a folder, into a folder of its own.

Headroom itself needs no installation: the repository is put on the path, with metadata that tell its version.
"""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = {
    "accelerate": "",
    "bitsandbytes": "",
    "numba": "",
    "psutil": "",
    "pyarrow": "",
    "pydantic": "2.12",
    "safetensors": "",
    "tokenizers": "",
    "torch": "2.11",
    "transformers": "5.17",
}
"""Distributions that a measurement imports, with the least version where that is known."""


class NotReady(Exception):
    """Something is missing; the message says what, and what to do."""


def prepare(site: Path, wheels: str | None) -> dict[str, str]:
    """Fill the folder `site`, and return the environment in which the steps run.

    Raises:
        NotReady: a wheel cannot be installed, or a distribution is missing or too old.
    """
    if wheels:
        _install(site, sorted(Path(wheels).glob("*.whl")))
    _describe_headroom(site)
    path = os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    _check([str(site), *sys.path])
    return dict(os.environ) | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _install(site: Path, wheels: list[Path]) -> None:
    names = sorted({wheel.name.split("-")[0] for wheel in wheels})
    if not names:
        raise NotReady("WHEELS: the folder holds no *.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-compile", "--find-links", str(wheels[0].parent), "--target", str(site), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReady(f"WHEELS: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}")


def _describe_headroom(site: Path) -> None:
    """Let importlib.metadata know Headroom's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    directory = site / f"headroom-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: headroom\nVersion: {version}\n")


def _check(path: list[str], needed: Mapping[str, str] = NEEDED) -> None:
    problems = []
    for name, least in needed.items():
        found = next((d.version for d in importlib.metadata.distributions(name=name, path=path)), None)
        if found is None:
            problems.append(f"{name} is missing")
        elif least and _numbers(found) < _numbers(least):
            problems.append(f"{name} is {found}, at least {least} is needed")
    if problems:
        raise NotReady(f"{'; '.join(problems)}. Install it, or put its wheel into the folder that WHEELS names.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
