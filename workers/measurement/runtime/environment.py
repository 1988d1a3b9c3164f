"""Sets the environment variables that libraries read when they are loaded, before the first `import torch`.

torch's OpenMP threads spin for a while when a parallel loop is done, so as to be at hand for the next. By default that
takes milliseconds, in which they keep the statistics' own threads (`statistics.cpu.threads`) off the cores; with no
spinning at all, torch's loops begin late. The gap between two of its loops is some ten microseconds long.
"""

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

_SPINS = "4000"
_KERNELS = Path(__file__).parents[1] / "statistics"


def settle_environment() -> None:
    """Set the libraries' environment variables; those of the caller are kept, except for network access."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a measurement knows no network
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # pyarrow's own pool keeps what it has had
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    with suppress(RuntimeError):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(kernel_cache() / "numba"))


def kernel_cache() -> Path:
    """Return the cache directory of compiled kernels. Raises RuntimeError for a user without a home."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "headroom" / kernels_version()


@cache
def kernels_version() -> str:
    """Return a name for the source of the kernels.

    numba sees that a kernel's own file has changed, but not that a module has, or is gone, which that imports.
    """
    digest = hashlib.sha256()
    for file in sorted(_KERNELS.rglob("*.py")):
        digest.update(file.read_bytes())
    return f"kernels-{digest.hexdigest()[:16]}"
