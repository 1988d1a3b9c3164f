"""Real receivers on this machine, and certificates for them."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from receiving import Receiver, serve


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook's receiver."""
    yield from serve()


def _make_certificate(file: Path, name: str) -> Path:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=Headroom tests", "-addext", f"subjectAltName={name}", "-keyout", "-"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(made.stdout)
    return file


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a key and a certificate for `hook.example.test`, signed by itself."""
    return _make_certificate(tmp_path_factory.mktemp("certificate") / "both.pem", "DNS:hook.example.test")


@pytest.fixture(scope="session")
def local_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise, for 127.0.0.1."""
    return _make_certificate(tmp_path_factory.mktemp("certificate") / "both.pem", "IP:127.0.0.1")


@pytest.fixture
def tls_receiver(certificate: Path) -> Iterator[Receiver]:
    """A receiver that speaks TLS as `hook.example.test`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(context)


@pytest.fixture
def byte_by_byte() -> Iterator[int]:
    """Port of a server that sends one byte of a header every 50 ms, for as long as anybody listens."""
    stop = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)

    def trickle() -> None:
        while not stop.is_set():
            with suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while not stop.wait(0.05):
                        connection.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    yield listening.getsockname()[1]
    stop.set()
    thread.join()
    listening.close()
