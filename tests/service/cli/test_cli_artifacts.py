"""`headroom artifacts copy`: the files of a home go to a bucket."""

from pathlib import Path

from service.cli.running import BAD_INPUT, DONE
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.store.artifacts import ArtifactStore


def test_a_home_is_copied_to_a_bucket(headroom, tmp_path: Path, bucket_url: str) -> None:
    local = ArtifactStore(tmp_path / "home" / "artifacts")
    local.write_id("1" * 32)
    name, _ = local.put(b"report")
    ran = headroom("artifacts", "copy", bucket_url)
    assert (ran.code, ran.err) == (DONE, "")
    assert ran.out.splitlines() == [
        f"1 files (6 bytes) copied to {bucket_url}; 0 were there already",
        f"Set HEADROOM_ARTIFACTS_URL={bucket_url} for API, scheduler and workers.",
    ]
    assert ArtifactStore(open_storage(bucket_url, FileCache(tmp_path, 0))).path(name).read_bytes() == b"report"
    document = {"from": local.url, "to": bucket_url, "files": 0, "size": 0, "present": 1}
    assert headroom("artifacts", "copy", bucket_url, "--json").document == document


def test_what_is_no_place_or_the_same_place_is_refused(headroom, tmp_path: Path) -> None:
    refused = headroom("artifacts", "copy", "ftp://host/path")
    assert (refused.code, "TO_URL: 'ftp://host/path' is not allowed" in refused.err) == (BAD_INPUT, True)
    here = (tmp_path / "home" / "artifacts").as_uri()
    refused = headroom("artifacts", "copy", here)
    assert (refused.code, "TO_URL: " in refused.err, "is where the files are" in refused.err) == (BAD_INPUT, True, True)
