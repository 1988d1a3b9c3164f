"""The environment variables and the deadline of programs that access the hub."""

import time
from collections.abc import Callable, Mapping

from service.contracts.progress import Failed
from workers.failures import JobFailed

_NAMES = frozenset(
    {
        "PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME",
        "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HUGGING_FACE_HUB_TOKEN",
        "ATEN_CPU_CAPABILITY",
    }
)  # fmt: skip
_PREFIXES = ("HF_", "LC_", "CUDA_", "NVIDIA_")


def hub_environment(present: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that such a program needs, with the hub's token and no other credential."""
    return {
        name: value for name, value in present.items() if name.upper() in _NAMES or name.upper().startswith(_PREFIXES)
    }


def in_time(check: Callable[[], None], model: str, seconds: float) -> Callable[[], None]:
    """Return a check that also raises JobFailed when `seconds` have passed from now."""
    deadline = time.monotonic() + seconds

    def check_both() -> None:
        check()
        if time.monotonic() > deadline:
            message = (
                f"model: {model!r} could not be fetched from the hub within {seconds:g} s (HEADROOM_FETCH_SECONDS of "
                "the worker); what was fetched is kept, so a retry goes on from there"
            )
            raise JobFailed(Failed(code="hub-timeout", message=message, bad_input=False))

    return check_both
