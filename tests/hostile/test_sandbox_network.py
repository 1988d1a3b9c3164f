"""Programs that try to reach the network from the sandbox of a job: by a namespace, or by a filter of system calls."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from test_sandbox import Runs, runs

from workers.sandbox.probe import _IS_CUT_OFF, Offer, launched, offer

__all__ = ["runs"]


def test_the_network_cannot_be_reached_or_the_worker_says_so(runs: Runs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = runs(f"socket.create_connection(('127.0.0.1', {port}), timeout=5)")
    if runs.sandbox.offer.network is None:
        assert ended.status == 0
        assert "with the network of this machine, for no namespace can be had" in runs.sandbox.description()
    else:
        assert "unreachable" in ended.last_error or "Permission denied" in ended.last_error
        assert "jobs run without network" in runs.sandbox.description()


def test_a_user_namespace_cuts_the_network_off_and_keeps_the_user_or_nothing_runs(runs: Runs) -> None:
    runs.sandbox = replace(runs.sandbox, offer=replace(runs.sandbox.offer, network="user-namespace"))
    code = "print(json.dumps(os.getuid()))\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    ended = runs(code)
    if ended.status == 125:  # the machine forbids user namespaces
        assert (runs.lines, "cannot be confined" in ended.last_error) == ([], True)
    else:
        assert runs.said() == os.getuid()
        assert "unreachable" in ended.last_error


def test_a_filter_refuses_all_but_unix_sockets_where_no_namespace_can_be_had(runs: Runs) -> None:
    filtered = Offer("seccomp", None, {"namespace": "unshare: Operation not permitted", "cgroups": "none"})
    runs.sandbox = replace(runs.sandbox, offer=filtered)
    with socket.create_server(("127.0.0.1", 0)) as server:
        runs(f"""
import ctypes, platform
said = {{}}
def tried(name, make):
    try: said[name] = make() and "made"
    except OSError as error: said[name] = error.strerror
tried("connect", lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5))
for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"):
    tried(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_DGRAM))
tried("AF_UNIX", lambda: socket.socket(socket.AF_UNIX))
tried("pair", socket.socketpair)
libc = ctypes.CDLL(None, use_errno=True)
said["io_uring"] = [libc.syscall(425, 8, ctypes.create_string_buffer(120)), os.strerror(ctypes.get_errno())]
child = "import socket; socket.socket(socket.AF_INET)"
said["child"] = b"PermissionError" in subprocess.run([sys.executable, "-c", child], stderr=subprocess.PIPE).stderr
print(json.dumps(said))
""")
    refused = dict.fromkeys(
        ("connect", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"), "Permission denied"
    )
    made = {"AF_UNIX": "made", "pair": "made"}
    assert runs.said() == refused | made | {"io_uring": [-1, "Permission denied"], "child": True}
    assert "jobs run without network by a filter, for no namespace can be had (unshare: " in runs.sandbox.description()


@pytest.mark.parametrize(
    ("refused", "way", "troubles"),
    [
        ((), "namespace", []),
        (("namespace", "user-namespace"), "seccomp", ["namespace"]),
        (("namespace", "user-namespace", "seccomp"), None, ["namespace", "network"]),
    ],
)
def test_the_first_way_out_of_the_network_that_works_is_taken(
    monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], way: str | None, troubles: list[str]
) -> None:
    def tried(command: Sequence[str]) -> str | None:
        network = json.loads(command[4])["network"]
        return f"{network}: Operation not permitted" if network in refused else None

    monkeypatch.setattr("workers.sandbox.probe._try", tried)
    made = offer.__wrapped__()
    assert (made.network or "").removeprefix("user-") == (way or "")
    assert [name for name in made.troubles if name != "cgroups"] == troubles


def test_the_filter_is_shown_to_work_on_this_machine() -> None:
    ran = subprocess.run(launched([sys.executable, "-c", _IS_CUT_OFF], network="seccomp"), capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_machine_without_namespaces_and_filters_keeps_its_network(runs: Runs) -> None:
    why = {"namespace": "unshare: Operation not permitted", "network": "seccomp: Invalid argument", "cgroups": "none"}
    runs.sandbox = replace(runs.sandbox, offer=Offer(None, None, why))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert runs(f"socket.create_connection(('127.0.0.1', {port}), timeout=30)").status == 0
    assert "with the network of this machine" in runs.sandbox.description()
    assert "unshare: Operation not permitted" in runs.sandbox.description()
    assert "seccomp: Invalid argument" in runs.sandbox.description()
