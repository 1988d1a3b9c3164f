"""From the service to a directory: the report appears whole, or not at all."""

import os
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from service.cli.client import Client, DownloadBroken
from service.errors import StoreFailed


def fetch(client: Client, report_id: str, out: Path) -> None:
    """Download a report's bundle and make it the directory `out`.

    It is unpacked beside `out` and renamed. Raises DownloadBroken for an archive that is not a report, and
    StoreFailed when the disk refuses; nothing is left of either.
    """
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as beside:
            archive, unpacked = Path(beside, "bundle.zip"), Path(beside, "report")
            client.download(f"/v1/reports/{report_id}/bundle.zip", archive)
            unpack(archive, unpacked)
            os.rename(unpacked, out)
    except OSError as error:
        reason = error.strerror or error
        anew = f"the service keeps the report: headroom reports download {report_id} --out DIR"
        raise StoreFailed(f"--out: {str(out)!r} could not be written: {reason}; {anew}") from error


def unpack(archive: Path, into: Path) -> None:
    """Unpack a bundle into the new directory `into`. Raises DownloadBroken.

    An archive is somebody else's word for where files go: every name is checked before the first is written.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            for entry in bundle.infolist():
                _check(entry)
            if "report.json" not in bundle.namelist():
                raise DownloadBroken("the bundle has no report.json")
            into.mkdir()
            bundle.extractall(into)
    except zipfile.BadZipFile as error:
        raise DownloadBroken(f"the bundle is not a sound archive: {error}") from error


def _check(entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in entry.filename and path.parts
    if not plain or stat.S_ISLNK(entry.external_attr >> 16):
        raise DownloadBroken(f"the bundle holds {entry.filename!r}, which is no plain file inside a report")
