"""An attempt and its artifact store: an outage is waited for, and ends when the work must stop."""

from pathlib import Path

import httpx
import pytest

from service.errors import StoreFailed, StoreUnreachable
from service.storage import bucket
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.store.artifacts import ArtifactStore
from workers import retrying_artifacts
from workers.lease import CancelAsked
from workers.retrying_artifacts import RetryingArtifacts


class Outage(ArtifactStore):
    """A store that does not answer so many times, and then does; or fails for good."""

    def __init__(self, root: Path, times: int, failure: type[StoreFailed] = StoreUnreachable) -> None:
        super().__init__(root)
        self.times = times
        self.failure = failure

    def _fail(self) -> None:
        if self.times:
            self.times -= 1
            raise self.failure("the store does not answer")

    def put(self, content: Path | bytes) -> tuple[str, int]:
        self._fail()
        return super().put(content)

    def path(self, sha256: str) -> Path:
        self._fail()
        return super().path(sha256)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_artifacts, "RETRY_SECONDS", 0.0)


def test_an_outage_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, checks = Outage(tmp_path, 3), []
    retrying = RetryingArtifacts(store, lambda: checks.append(None))
    name, size = retrying.put(b"content")
    assert (size, len(checks)) == (7, 3)
    store.times = 2
    assert retrying.path(name).read_bytes() == b"content"
    assert len(checks) == 5
    assert caplog.messages == ["the artifact store is asked again: the store does not answer"] * 5


def test_work_that_must_stop_does_not_wait(tmp_path: Path) -> None:
    def check() -> None:
        raise CancelAsked

    store = Outage(tmp_path, 1)
    for ask in (RetryingArtifacts(store, check).put, RetryingArtifacts(store, check).path):
        store.times = 1
        with pytest.raises(CancelAsked):
            ask(b"x" if ask.__name__ == "put" else "0" * 64)


def test_a_store_that_fails_for_good_is_not_asked_again(tmp_path: Path) -> None:
    store = Outage(tmp_path, 2, StoreFailed)
    with pytest.raises(StoreFailed):
        RetryingArtifacts(store, lambda: None).put(b"content")
    assert store.times == 1


def test_a_real_server_that_comes_back_takes_what_was_kept_waiting(
    tmp_path: Path, shared_object_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the errors that the client library makes of a server that is not there."""
    server = type(shared_object_store)(tmp_path / "log")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_RETRIES", 0)
    server.start()
    try:
        name = server.make_bucket()
        store = ArtifactStore(open_storage(f"s3://{name}/x", FileCache(tmp_path / "cache", 1 << 20)))
        server.stop()
        checks = []

        def start_again() -> None:
            checks.append(None)
            if len(checks) == 1:
                server.start()
                assert httpx.put(f"{server.url}/{name}", trust_env=False).is_success

        sha256, _ = RetryingArtifacts(store, start_again).put(b"content")
        assert checks
        assert store.path(sha256).read_bytes() == b"content"
    finally:
        server.stop()
