"""A report arrives whole or not at all, and nowhere but in its directory."""

import errno
import os
import stat
import zipfile

import pytest

from service.cli.client import DownloadBroken, fetch, unpack
from service.errors import StoreFailed

GOOD = {"report.json": b"{}", "figures/a.svg": b"<svg/>", "tables/a.parquet": b"PAR1"}


class Source:
    """A service that sends one archive."""

    def __init__(self, archive=None, error=None):
        self.archive, self.error, self.asked = archive, error, None

    def download(self, path, to):
        """Send the archive, or part of it and an error."""
        self.asked = path
        to.write_bytes(self.archive.read_bytes() if self.archive else b"PK")
        if self.error:
            raise self.error


@pytest.fixture
def packed(tmp_path):
    """Make an archive of entries: name -> content, or a ZipInfo -> content."""

    def pack(entries):
        archive = tmp_path / "made.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            for name, content in entries.items():
                bundle.writestr(name, content)
        return archive

    return pack


@pytest.mark.parametrize("exists", [False, True])
def test_the_files_of_the_report_become_the_directory(tmp_path, packed, exists):
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    if exists:
        out.mkdir()
    source = Source(packed(GOOD))
    fetch(source, "abc", out)
    assert source.asked == "/v1/reports/abc/bundle.zip"
    assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == GOOD
    assert list(out.parent.iterdir()) == [out]


def test_the_directory_is_open_to_those_whom_the_user_lets_in(tmp_path, packed):
    before = os.umask(0o027)
    try:
        fetch(Source(packed(GOOD)), "abc", tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), DownloadBroken("broken")])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, error):
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises((StoreFailed, DownloadBroken), match=r"No space left|broken"):
        fetch(Source(error=error), "abc", place / "out")
    assert list(place.iterdir()) == []


def test_a_place_that_cannot_be_written_to_leaves_the_report_at_the_service(tmp_path, packed):
    (tmp_path / "out").touch()
    told = "--out: '.*out' could not be written: Not a directory; the service keeps the report: headroom reports "
    with pytest.raises(StoreFailed, match=f"^{told}download abc --out DIR$"):
        fetch(Source(packed(GOOD)), "abc", tmp_path / "out")
    assert (tmp_path / "out").is_file()


def link(name):
    """Return an entry that is a symbolic link."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "entry",
    ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "figures/..", link("figures/a")],
    ids=["above", "hidden-above", "absolute", "backslash", "dots", "link"],
)
def test_an_archive_that_reaches_outside_is_refused_before_anything_is_written(tmp_path, packed, entry):
    archive = packed({**GOOD, entry: b"evil"})
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(DownloadBroken, match="not a regular file of a report"):
        fetch(Source(archive), "abc", place / "out")
    assert list(place.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_what_is_no_archive_or_no_report_is_refused(tmp_path, packed):
    (tmp_path / "junk.zip").write_bytes(b"junk")
    with pytest.raises(DownloadBroken, match="the bundle is damaged"):
        unpack(tmp_path / "junk.zip", tmp_path / "junk")
    with pytest.raises(DownloadBroken, match=r"no report\.json"):
        unpack(packed({"figures/a.svg": b""}), tmp_path / "other")


def test_a_damaged_archive_leaves_nothing(tmp_path, packed):
    archive = packed({"report.json": b"0123456789" * 10})
    content = bytearray(archive.read_bytes())
    content[content.index(b"0123456789")] ^= 1
    archive.write_bytes(content)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(DownloadBroken, match="the bundle is damaged"):
        fetch(Source(archive), "abc", place / "out")
    assert list(place.iterdir()) == []
