"""Places that keep files, each in a directory and in a bucket of a real server."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from service.errors import InvalidRequest, NotFound, StoreFailed, StoreUnreachable
from service.storage import bucket, cache
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.storage.port import Storage, artifact_key
from service.store.artifacts import ArtifactStore

LARGE = os.urandom(bucket.PART_BYTES) + b"and a second part"
SOON = timedelta(minutes=5)
Opener = Callable[[str], Storage]


@pytest.fixture
def copies(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def opened(copies: FileCache) -> Opener:
    return lambda url: open_storage(url, copies)


@pytest.fixture(params=["directory", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return str(request.getfixturevalue("bucket_url"))
    return (tmp_path / "with space %41").as_uri()


@pytest.fixture
def storage(url: str, opened: Opener) -> Storage:
    return opened(url)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in storage.entries(prefix))


@pytest.mark.parametrize("content", [b"", b"content", LARGE], ids=["empty", "small", "large"])
def test_content_comes_back_by_its_hash(storage: Storage, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    store = ArtifactStore(storage)
    assert store.put(source) == store.put(content) == (sha256(content), len(content))
    assert store.path(sha256(content)).read_bytes() == content
    assert [(entry.key, entry.size) for entry in store.entries()] == [(sha256(content), len(content))]
    storage.copy(artifact_key(sha256(content)), sha256(content), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_another_process_sees_the_same_files(storage: Storage, url: str, tmp_path: Path) -> None:
    ArtifactStore(storage).put(b"content")
    other = ArtifactStore(open_storage(url, FileCache(tmp_path / "other", 0)))
    assert other.url == url
    assert other.path(sha256(b"content")).read_bytes() == b"content"


def test_the_same_content_at_once_is_kept_once(storage: Storage) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ArtifactStore(storage).put, [b"content"] * 8))
    assert keys(storage) == [artifact_key(sha256(b"content"))]


def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound, match=r"sha256: '0{64}' is not in the artifact store"):
        ArtifactStore(storage).path("0" * 64)
    with pytest.raises(FileNotFoundError):
        storage.read("missing")
    storage.delete("missing")
    assert not storage.delete_older("missing", datetime.now(UTC))


def test_small_files_are_replaced_listed_and_deleted(storage: Storage) -> None:
    for key in ("top", "one/a", "one/b", "onetwo"):
        storage.write(key, b"before")
    storage.write("one/a", b"after")
    assert storage.read("one/a") == b"after"
    assert keys(storage) == ["one/a", "one/b", "onetwo", "top"]
    assert keys(storage, "one/") == ["one/a", "one/b"]
    for key in ("one/a", "one/b"):
        storage.delete(key)
    assert keys(storage) == ["onetwo", "top"]


def test_a_file_that_was_put_lately_is_not_deleted_as_old(storage: Storage) -> None:
    key = artifact_key(ArtifactStore(storage).put(b"content")[0])
    (entry,) = storage.entries()
    assert abs(entry.modified - datetime.now(UTC)) < SOON
    assert not storage.delete_older(key, entry.modified - SOON)
    assert storage.read(key) == b"content"
    assert storage.delete_older(key, entry.modified + SOON)
    assert keys(storage) == []


def test_putting_again_counts_as_put_now(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "FRESH", timedelta(0))
    store = ArtifactStore(storage)
    name, _ = store.put(b"content")
    if (place := store.path(name)).parent.name == name[:2]:  # a directory's own file
        os.utime(place, (0, 0))
    (before,) = storage.entries()
    store.put(b"content")
    (after,) = storage.entries()
    assert after.modified >= before.modified
    assert abs(after.modified - datetime.now(UTC)) < SOON


def test_damaged_content_is_refused(storage: Storage, tmp_path: Path) -> None:
    key = artifact_key(sha256(b"content"))
    storage.write(key, b"other content")
    with pytest.raises(StoreFailed, match=r"is damaged: its SHA-256 is \w{64}, not"):
        storage.copy(key, sha256(b"content"), tmp_path / "copy")


def test_a_bucket_gives_no_damaged_copy(bucket_url: str, opened: Opener, tmp_path: Path) -> None:
    storage = opened(bucket_url)
    storage.write(artifact_key(sha256(b"content")), b"other content")
    with pytest.raises(StoreFailed, match="is damaged"):
        ArtifactStore(storage).path(sha256(b"content"))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("size", [10, 3 * bucket.CHUNK + 1])
def test_a_file_that_changes_while_it_is_sent_never_appears(
    bucket_url: str, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(size))
    first = bucket.digest_of

    def read_then_change(file: Any) -> tuple[str, int]:
        read = first(file)
        source.write_bytes(b"!" * size)
        return read

    monkeypatch.setattr(bucket, "digest_of", read_then_change)
    storage = opened(bucket_url)
    with pytest.raises(StoreFailed, match=r"source changed while it was stored; store it again"):
        ArtifactStore(storage).put(source)
    assert keys(storage) == []


def test_a_presigned_address_needs_no_key(bucket_url: str, opened: Opener) -> None:
    storage = opened(bucket_url)
    storage.write("file", b"content")
    address = storage.signed("file", 60)
    assert address is not None
    assert httpx.get(address, trust_env=False).content == b"content"


def test_a_directory_has_no_presigned_address(tmp_path: Path, opened: Opener) -> None:
    assert opened(tmp_path.as_uri()).signed("file", 60) is None


def test_a_bucket_without_a_prefix_is_used_whole(bucket_url: str, opened: Opener) -> None:
    name = bucket_url.split("/")[2]
    opened(f"s3://{name}/").write("file", b"content")
    listed = boto3.client("s3").list_objects_v2(Bucket=name)["Contents"]
    assert [one["Key"] for one in listed] == ["file"]


@pytest.mark.usefixtures("object_store")
def test_a_missing_bucket_is_named(opened: Opener) -> None:
    with pytest.raises(StoreFailed, match="s3://no-such-bucket: there is no such bucket"):
        ArtifactStore(opened("s3://no-such-bucket")).put(b"content")


@pytest.mark.usefixtures("object_store")
def test_a_store_that_does_not_answer_may_answer_later(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match=r"s3://bucket did not .*check AWS_ENDPOINT_URL"):
        ArtifactStore(opened("s3://bucket")).put(b"content")


@pytest.mark.usefixtures("object_store")
def test_missing_credentials_are_no_matter_of_time(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreFailed, match=r"AccessKeyId.*AWS_ACCESS_KEY_ID") as caught:
        ArtifactStore(opened("s3://bucket")).put(b"content")
    assert not isinstance(caught.value, StoreUnreachable)


@pytest.mark.usefixtures("object_store")
def test_an_endpoint_without_tls_must_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _may_be_http(monkeypatch, AWS_ENDPOINT_URL="https://127.0.0.1:9")
    assert _may_be_http(monkeypatch, AWS_ENDPOINT_URL="https://127.0.0.1:9", AWS_ALLOW_HTTP="true")
    assert _may_be_http(monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9")


def _may_be_http(monkeypatch: pytest.MonkeyPatch, **environment: str) -> bool:
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return bucket._may_be_http()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/artifacts",
        "file://host/var/artifacts",
        "file:relative",
        "s3:///prefix",
        "s3://UPPER",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://bucket/a?versionId=1",
        "gs://bucket",
    ],
)
def test_other_urls_are_refused(opened: Opener, url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"HEADROOM_ARTIFACTS_URL: .*; allowed: file:///DIRECTORY or s3://BUCKET"):
        opened(url)


def test_credentials_in_a_url_are_refused_and_not_repeated(opened: Opener) -> None:
    with pytest.raises(InvalidRequest, match="holds credentials") as caught:
        opened("s3://name:password@bucket/prefix")
    assert "password" not in str(caught.value)


def test_a_directory_that_cannot_be_made_is_refused(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be made"):
        opened((tmp_path / "file" / "below").as_uri())


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = FileCache(tmp_path / "cache", 250)
    fetched: list[str] = []

    def get(name: str) -> Path:
        def fetch(target: Path) -> None:
            fetched.append(name)
            target.write_bytes(bytes(100))

        return copies.get(name, fetch)

    for age, name in enumerate("ab"):
        os.utime(get(name), (age, age))
    os.utime(get("a"), (5, 5))
    get("c")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a", "c"]
    assert fetched == ["a", "b", "c"]
    for name in "xyz":
        get(name)  # all of them used a moment ago
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["c", "x", "y", "z"]
    monkeypatch.setattr(cache, "KEEP_SECONDS", 0.0)
    get("last")
    assert len(list((tmp_path / "cache").iterdir())) == 2
