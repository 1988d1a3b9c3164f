"""The artifact store as an attempt uses it: calls are repeated while the store does not answer."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from service.errors import StoreUnreachable
from service.store.artifacts import ArtifactStore

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
Result = TypeVar("Result")


class RetryingArtifacts:
    """Repeats calls to a store that does not answer, until `check` raises."""

    def __init__(self, artifacts: ArtifactStore, check: Callable[[], None]) -> None:
        """`check` raises when the work must stop."""
        self._artifacts = artifacts
        self._check = check

    def put(self, content: Path | bytes) -> tuple[str, int]:
        """Do as `ArtifactStore.put`."""
        return self._repeated(lambda: self._artifacts.put(content))

    def path(self, sha256: str) -> Path:
        """Do as `ArtifactStore.path`."""
        return self._repeated(lambda: self._artifacts.path(sha256))

    def _repeated(self, call: Callable[[], Result]) -> Result:
        while True:
            try:
                return call()
            except StoreUnreachable as error:
                log.warning("the artifact store is asked again: %s", error)
            self._check()
            time.sleep(RETRY_SECONDS)
