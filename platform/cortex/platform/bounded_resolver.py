"""A `socket.getaddrinfo` with a time limit, for blocking code.

glibc waits 5 s for each server, times the attempts and search domains of `resolv.conf`, and indefinitely for a module
of `nsswitch.conf` that hangs. Event loops use `name_lookups.py` instead.
"""

import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

LOOK_UP_S = 5.0

Infos = list[tuple[Any, Any, int, str, Any]]


def install() -> None:
    """Bound the lookups of this process and of those that it forks."""
    socket.getaddrinfo = bound(socket.getaddrinfo)


def bound(resolve: Callable[..., Infos], within_s: float = LOOK_UP_S) -> Callable[..., Infos]:
    """Return a `socket.getaddrinfo` that raises socket.gaierror when `resolve` takes longer than `within_s`.

    While a lookup of a name hangs, further lookups of that name fail at once: a name has one thread at most.
    """
    overdue: dict[str, threading.Thread] = {}
    os.register_at_fork(after_in_child=overdue.clear)  # threads do not survive a fork

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Infos:
        if is_address(host):
            return resolve(host, *rest, **options)
        results: list[Infos] = []
        errors: list[Exception] = []

        def look_up() -> None:
            try:
                results.append(resolve(host, *rest, **options))
            except Exception as error:
                errors.append(error)

        thread = overdue.pop(str(host), None)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=look_up, name=f"look up {host}", daemon=True)
            thread.start()
            thread.join(within_s)
        if results:
            return results[0]
        if errors:
            raise errors[0]
        overdue[str(host)] = thread
        raise socket.gaierror(socket.EAI_AGAIN, f"no answer to the lookup of {host}")

    return getaddrinfo


def is_address(host: Any) -> bool:
    """Return whether a host needs no lookup."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not text:
        return True
    try:
        ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        return False
    return True
