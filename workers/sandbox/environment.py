"""The environment and the directories of a job's program.

A program sees only the variables of an allow-list, so no credential reaches it, whatever it is called. Its home and
its temporary directory are new, mode 700, and removed when it ends. Compiled kernels and matplotlib's list of fonts are
kept outside, in a directory of the worker's, so that the next job does not make them again.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from workers.measurement.runtime.environment import kernel_cache, kernels_version
from workers.sandbox.user import User, hand_over

_NAMES = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "FONTCONFIG_PATH",
        "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE",
        "ARROW_DEFAULT_MEMORY_POOL", "BNB_CUDA_VERSION", "TORCH_CUDA_ARCH_LIST", "CUBLAS_WORKSPACE_CONFIG",
        "ATEN_CPU_CAPABILITY",
    }
)  # fmt: skip
_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "PYTORCH_")
_PREFIXES_OF_KERNELS = ("NUMBA_", "TRITON_")
_CACHES = {"NUMBA_CACHE_DIR": "numba", "TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda", "MPLCONFIGDIR": "fonts"}
"""Variable that names a cache, and its directory below the worker's."""


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those variables of an environment that a job's program may see."""
    prefixes = (*_PREFIXES, *_PREFIXES_OF_KERNELS)
    return {name: value for name, value in environment.items() if name in _NAMES or name.startswith(prefixes)}


def cache_directory(home: Path, user: User | None) -> Path:
    """Return the directory of what programs compile, made if need be: mode 700, of the user who compiles.

    It is that of this version of the kernels, in the worker's cache directory, or in `home` (HEADROOM_HOME) for another
    user or where the other cannot be written. Raises OSError.
    """
    if user is None:
        try:
            return _make(kernel_cache(), None)
        except (OSError, RuntimeError):
            return _make(home / "cache" / kernels_version(), None)
    return _make(home / "cache" / f"{kernels_version()}-{user.uid}", user)


@contextmanager
def private_home(directory: Path, caches: Path, user: User | None) -> Iterator[dict[str, str]]:
    """Make a home in `directory` for as long as a program runs, and give the program's environment."""
    home = directory.absolute() / "home"
    shutil.rmtree(home, ignore_errors=True)
    temporary = home / "tmp"
    for made in (home, temporary):
        made.mkdir(mode=0o700)
        hand_over(made, user)
    own = {name: str(caches / below) for name, below in _CACHES.items()}
    try:
        yield own | allowed(os.environ) | {"HOME": str(home), "TMPDIR": str(temporary)}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _make(directory: Path, user: User | None) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise PermissionError(f"{directory} cannot be written")
    hand_over(directory, user)
    return directory
