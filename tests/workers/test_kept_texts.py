"""The texts of a job, which the measurement reads from copies on this machine that may go at any time."""

from pathlib import Path

import pytest
from bench import MEASURE, Bench

from service.contracts.files import StoredFile
from service.contracts.request import JobRequest
from service.storage.cache import FileCache
from service.storage.directory import DirectoryStorage
from service.store.artifacts import ArtifactStore
from service.store.statuses import Status

TEXT = b"a text of somebody's\n" * 100
READ_AND_DIE = """
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
copies, read = map(pathlib.Path, (CACHE, READ))
with read.open("a") as file: print(pathlib.Path(request["calibration"]["path"]).read_text() == TEXT, file=file)
if not [*copies.iterdir()]: pass
else:
    for copy in copies.iterdir(): copy.unlink()
    progress("sweep", 1, 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Reads the text; at its first start the copy is removed meanwhile, as another worker may, and the kernel ends it."""


class CopiedStorage(DirectoryStorage):
    """A store elsewhere, of which this machine has copies."""

    def __init__(self, root: Path, copies: Path) -> None:
        super().__init__(root)
        self._copies = FileCache(copies, limit=0)

    def path(self, key: str, sha256: str) -> Path:
        return self._copies.get(sha256, lambda target: self.copy(key, sha256, target))


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_a_measurement_that_goes_on_reads_its_text_though_the_copy_was_evicted(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr("os.link", _refused)
    copies, read = tmp_path / "copies", tmp_path / "read"
    bench.artifacts = ArtifactStore(CopiedStorage(tmp_path / "store", copies))
    sha256, size = bench.artifacts.put(TEXT)
    calibration = StoredFile(name="text.txt", sha256=sha256, size=size)
    bench.store.cancel(bench.job_id)
    bench.job_id = bench.store.submit(JobRequest(model="sample", calibration=calibration)).id
    code = READ_AND_DIE.replace("CACHE", repr(str(copies))).replace("READ", repr(str(read)))
    job = bench.run(code.replace("TEXT", repr(TEXT.decode())) + MEASURE)
    assert (job.status, job.attempts) == (Status.succeeded, 1)
    assert read.read_text().split() == ["True", "True"]
    assert list(copies.iterdir()) == []
    assert bench.no_work_is_left()


def _refused(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")
