"""The artifact store as an attempt uses it: while the store does not answer, it is asked again."""

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


class PatientArtifacts:
    """Waits for a store that does not answer, for as long as the work may go on."""

    def __init__(self, artifacts: ArtifactStore, check: Callable[[], None]) -> None:
        """`check` raises when the work must stop."""
        self._artifacts = artifacts
        self._check = check

    def put(self, content: Path | bytes) -> tuple[str, int]:
        """Do as `ArtifactStore.put`."""
        return self._patiently(lambda: self._artifacts.put(content))

    def path(self, sha256: str) -> Path:
        """Do as `ArtifactStore.path`."""
        return self._patiently(lambda: self._artifacts.path(sha256))

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        while True:
            try:
                return ask()
            except StoreUnreachable as error:
                log.warning("the artifact store is asked again: %s", error)
            self._check()
            time.sleep(RETRY_SECONDS)
