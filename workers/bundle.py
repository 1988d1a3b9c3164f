"""The files of a report, and all of them in one: `bundle.zip`, the same bytes for the same report."""

import zipfile
from pathlib import Path

BUNDLE = "bundle.zip"
_PATTERNS = ("report.json", "report.html", "summary.md", "figures/*", "tables/*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip file can hold
_MEDIA_TYPES = {
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".parquet": "application/vnd.apache.parquet",
    ".zip": "application/zip",
}


def report_files(directory: Path) -> dict[str, Path]:
    """Return the files of the report in `directory` by name, sorted.

    Links, files in linked directories, and files of a kind that no report has, are left out.
    """
    real = directory.resolve()
    matching = (path for pattern in _PATTERNS for path in real.glob(pattern))
    kept = (path for path in matching if path.is_file() and path.resolve() == path and path.suffix in _MEDIA_TYPES)
    return {path.relative_to(real).as_posix(): path for path in sorted(kept)}


def write_bundle(files: dict[str, Path], target: Path) -> None:
    """Write `files` into one zip file, without dates, owners or anything else that differs from run to run."""
    with zipfile.ZipFile(target, "w") as bundle:
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.create_system = 3  # Unix, wherever this runs
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.suffix in (".png", ".parquet") else zipfile.ZIP_DEFLATED
            with path.open("rb") as source, bundle.open(entry, "w", force_zip64=True) as sink:
                while chunk := source.read(1 << 20):
                    sink.write(chunk)


def media_type(name: str) -> str:
    """Return the media type of a report's file by its name."""
    return _MEDIA_TYPES[Path(name).suffix]
