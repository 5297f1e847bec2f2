"""Starts a program like a service manager that holds its listener."""

import socket
import sys
from collections.abc import Sequence
from typing import Any

_START = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.execv(sys.argv[2], sys.argv[2:])
"""


def activated(argv: Sequence[str], env: dict[str, str], held: socket.socket, name: str = "http") -> dict[str, Any]:
    """Return what `subprocess` takes to start a program with a listener passed to it."""
    return {
        "args": [sys.executable, "-c", _START, str(held.fileno()), *argv],
        "env": {**env, "LISTEN_FDS": "1", "LISTEN_FDNAMES": name},
        "pass_fds": [held.fileno()],
    }
