"""What a service manager gives a process and hears from it: listeners it opened, signs that all is well.

Only the two small protocols that systemd documents (`sd_listen_fds`, `sd_notify`); without a service manager
both do nothing. A listener that the manager holds outlives the process: clients that connect during a restart
wait in its backlog instead of being refused.
"""

import contextlib
import os
import socket

FIRST_LISTENER = 3
"""Listeners are passed from this descriptor on."""


def listeners() -> dict[str, socket.socket]:
    """Return the listening sockets that were passed to this very process, by their names."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    names += [str(n) for n in range(len(names), count)]
    return {names[n]: socket.socket(fileno=FIRST_LISTENER + n) for n in range(count)}


def notify(*states: str) -> None:
    """Tell the service manager, if there is one: "READY=1", "WATCHDOG=1", "STOPPING=1", "STATUS=…"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        # A leading @ stands for the zero byte of an abstract address.
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send("\n".join(states).encode())
