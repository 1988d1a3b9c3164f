"""The HTTP client of the command line, and the download of reports, which are put in place whole or not at all."""

import hashlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from service.cli.options import option_of
from service.cli.running import Refused
from service.cli.uploads import LargeFile
from service.errors import HeadroomError, InvalidRequest, ServiceUnreachable, StoreFailed

ANSWER_SECONDS = 60.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that no proxy of the environment can reach for us."""
SHOWN_CHARACTERS = 40
"""Characters of a request that cannot be sent, shown on either side of the one that is not allowed."""
_BY_KEYS = "/v1/audits"
"""Paths of resources whose fields have the names of keys in a file: messages keep these."""
_TYPE_PREFIX = "urn:headroom:problem:"

Document = dict[str, Any]


class DownloadBroken(HeadroomError):
    """The downloaded file is not the one that the service sent."""

    code = "download-broken"


class Client:
    """A connection to one service. Every call raises ServiceUnreachable, and Refused for a problem document."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        if not _is_address(url):
            raise InvalidRequest("HEADROOM_URL", url, "http://HOST:PORT or https://HOST:PORT")
        if not (key.isascii() and key.isprintable()):
            raise InvalidRequest("HEADROOM_API_KEY", "...", "printable ASCII characters")
        self._uploads: dict[Path, str] = {}
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=ANSWER_SECONDS,
            trust_env=httpx.URL(url).host not in LOOPBACK,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Document:
        """Return the document at `path`; parameters that are None are left out."""
        present = {name: value for name, value in parameters.items() if value is not None}
        return self._document(self._send("GET", path, params=present))

    def post(self, path: str, body: Document | None = None, *, idempotency_key: str | None = None) -> Document:
        """Post `body` as JSON, and return the answer."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._document(self._send("POST", path, json=self._with_uploads(body), headers=headers))

    def change(self, method: str, path: str, body: Document | None = None, **parameters: Any) -> Document:
        """Send a request to change something, with `body` as JSON, and return the answer; `{}` if it is empty."""
        response = self._send(method, path, json=self._with_uploads(body), params=parameters)
        return {} if response.status_code == httpx.codes.NO_CONTENT else self._document(response)

    def download(self, path: str, to: Path) -> None:
        """Write what is at `path` into the file `to`, and check it against its entity tag.

        Raises DownloadBroken when they differ; OSError when the file cannot be written.
        """
        try:
            with self._http.stream("GET", path) as response:
                if response.has_redirect_location:
                    sha256 = _from_bucket(response.headers["location"], to)
                elif response.is_success:
                    sha256 = _save(response, to)
                else:
                    response.read()
                    self._document(response)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.headers.get("etag", "").strip('"') != sha256:
            raise DownloadBroken(f"{self.url}{path}: the downloaded file is not what was sent; try again")

    def _with_uploads(self, body: Document | None) -> Document | None:
        """Return a body with the ids of its large files, which are uploaded first, each once."""
        if body is None:
            return None
        return {key: self._reference(item) if isinstance(item, LargeFile) else item for key, item in body.items()}

    def _reference(self, file: LargeFile) -> Document:
        if file.path not in self._uploads:
            headers = {"Content-Type": "application/octet-stream"}
            with file.path.open("rb") as content:
                response = self._send(
                    "POST", "/v1/files", params={"name": file["name"]}, content=content, headers=headers
                )
            self._uploads[file.path] = self._document(response)["id"]
        return {**file, "file": self._uploads[file.path]}

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except UnicodeEncodeError as error:  # the system's own names need not be UTF-8
            shown = error.object[max(0, error.start - SHOWN_CHARACTERS) : error.end + SHOWN_CHARACTERS]
            raise InvalidRequest("request", shown, "text and file names in UTF-8") from error

    def _document(self, response: httpx.Response) -> Document:
        try:
            document = response.json()
        except ValueError:
            document = None
        if isinstance(document, dict) and response.is_success:
            return document
        if isinstance(document, dict) and str(document.get("type", "")).startswith(_TYPE_PREFIX):
            code = document["type"].removeprefix(_TYPE_PREFIX)
            errors = document.get("errors", ())
            detail = str(document.get("detail"))
            if not response.request.url.path.startswith(_BY_KEYS):
                detail = _with_options(detail, errors)
            if response.status_code == 401:
                detail = (
                    f"HEADROOM_API_KEY: {self.url} does not accept this key; set it to a valid API key of the service"
                )
            raise Refused(code, response.status_code, detail, errors)
        raise ServiceUnreachable(
            f"{self.url} is not a Headroom service: its answer ({response.status_code}) is not a Headroom document; "
            "correct HEADROOM_URL"
        )

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"no Headroom service answers at {self.url}: {str(error) or type(error).__name__}; "
            "start one with `headroom serve`, or correct HEADROOM_URL"
        )


def _save(response: httpx.Response, to: Path) -> str:
    """Write the content of an answer into the file `to`; return its SHA-256."""
    digest = hashlib.sha256()
    with to.open("wb") as file:
        for chunk in response.iter_bytes():
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _from_bucket(url: str, to: Path) -> str:
    """Do the same with a presigned URL, which must not get the API key."""
    with httpx.stream("GET", url, timeout=ANSWER_SECONDS, trust_env=httpx.URL(url).host not in LOOPBACK) as response:
        if not response.is_success:
            where = url.partition("?")[0]
            raise DownloadBroken(f"{where}: the service's bucket does not give the file ({response.status_code})")
        return _save(response, to)


def _with_options(detail: str, errors: Sequence[Document]) -> str:
    """Return a problem's message with the names of options in place of the fields."""
    for error in errors:
        field = str(error.get("field"))
        if detail.startswith(f"{field}: "):
            detail = option_of(field) + detail.removeprefix(field)
        else:
            detail = detail.replace(f"; {field}: ", f"; {option_of(field)}: ", 1)
    return detail


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and parsed.host != ""


def fetch(client: Client, report_id: str, out: Path) -> None:
    """Download a report's bundle and make it the directory `out`.

    It is unpacked beside `out` and renamed. Raises DownloadBroken for an archive that is not a report, and
    StoreFailed where a file cannot be written; in both cases `out` is not made.
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
        retry = f"the service keeps the report: headroom reports download {report_id} --out DIR"
        raise StoreFailed(f"--out: {str(out)!r} could not be written: {reason}; {retry}") from error


def unpack(archive: Path, into: Path) -> None:
    """Unpack a bundle into the new directory `into`. Raises DownloadBroken.

    An archive could name files outside of `into`, so every name is checked before the first file is written.
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
        raise DownloadBroken(f"the bundle is damaged: {error}") from error


def _check(entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in entry.filename and path.parts
    if not plain or stat.S_ISLNK(entry.external_attr >> 16):
        raise DownloadBroken(f"the bundle holds {entry.filename!r}, which is not a regular file of a report")
