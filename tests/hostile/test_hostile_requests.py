"""Requests that try to stall the API or to fill its memory: each is refused, names few errors, and costs little."""

import time
from collections.abc import Iterator

import pytest
from hostile_api import CASES, MIB, Api, body, running, watched

MOST_RESIDENT = 400 * MIB
MOST_ERRORS = 20


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_body_is_refused_and_costs_little(api: Api, name: str) -> None:
    content = body(name)
    api.forget_peak()
    with api.client() as client, watched(api) as health:
        began = time.perf_counter()
        response = client.post("/v1/jobs", content=content)
        took = time.perf_counter() - began
    peak = api.peak_bytes()
    print(f"{name}: {took:.3f} s, /healthz within {max(health):.3f} s, peak {peak / MIB:.0f} MiB")
    assert response.status_code == CASES[name], response.text[:500]
    document = response.json()
    assert len(document.get("errors", ())) <= MOST_ERRORS
    assert len(response.content) < 20_000
    assert peak < MOST_RESIDENT


def test_a_body_without_an_end_is_read_no_further_than_the_limit(api: Api) -> None:
    """The caller stops at the refusal, which comes before the body's end."""
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * MIB:
            sent += 1 << 16
            yield b" " * (1 << 16)

    with api.client() as client:
        try:
            status = client.post("/v1/jobs", content=pieces()).status_code
        except Exception as error:  # the connection may be closed while the caller sends
            status = type(error).__name__
    print(f"refused after {sent / MIB:.1f} MiB: {status}")
    assert status in (413, "WriteError", "ReadError", "RemoteProtocolError")
    assert api.peak_bytes() < MOST_RESIDENT


def test_a_large_upload_is_never_in_memory_whole(api: Api) -> None:
    line = b'{"text": "' + b"word " * 200 + b'"}\n'
    size = 200 * MIB

    def pieces() -> Iterator[bytes]:
        block = line * (MIB // len(line))
        for _ in range(size // len(block)):
            yield block

    api.forget_peak()
    before = api.peak_bytes()
    with api.client() as client, watched(api) as health:
        began = time.perf_counter()
        response = client.post("/v1/files", params={"name": "large.jsonl"}, content=pieces())
        took = time.perf_counter() - began
    grown = api.peak_bytes() - before
    print(f"200 MiB: {took:.2f} s, /healthz within {max(health):.3f} s, {grown / MIB:.0f} MiB more than before")
    assert response.status_code == 201, response.text
    assert response.json()["bytes"] > 199 * MIB
    assert grown < 64 * MIB
