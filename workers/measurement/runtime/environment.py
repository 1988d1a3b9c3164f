"""Sets the environment variables that libraries read when they are loaded, before the first `import torch`.

torch's OpenMP threads spin for a while when a parallel loop is done, so as to be at hand for the next. By default that
takes milliseconds, in which they keep the statistics' own threads (`statistics.cpu.threads`) off the cores; with no
spinning at all, torch's loops begin late. The gap between two of its loops is some ten microseconds long.
"""

import os

_SPINS = "4000"


def settle_environment() -> None:
    """Say how this process uses its libraries; but for the network, what the caller's environment says stays."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a measurement knows no network
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # pyarrow's own pool keeps what it has had
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
