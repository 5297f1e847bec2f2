"""systemd's socket activation and notifications (`sd_listen_fds`, `sd_notify`).

Without a service manager both do nothing. A listener of the manager outlives the process: clients that connect during
a restart wait in its backlog instead of being rejected.
"""

import contextlib
import os
import socket

FIRST_LISTENER = 3
"""The first descriptor of passed listeners."""


def listeners() -> dict[str, socket.socket]:
    """Return the listening sockets passed to this process, by name."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    names += [str(n) for n in range(len(names), count)]
    return {names[n]: socket.socket(fileno=FIRST_LISTENER + n) for n in range(count)}


def notify(*states: str) -> None:
    """Notify the service manager, if any: "READY=1", "WATCHDOG=1", "STOPPING=1", "STATUS=…"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        # A leading @ means the zero byte of an abstract address.
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send("\n".join(states).encode())
