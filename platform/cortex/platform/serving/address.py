"""Addresses to listen on."""

import ipaddress
import socket


def is_loopback(listen: str) -> bool:
    """Return whether `host:port` is reachable from this machine only."""
    return is_loopback_name(listen.rpartition(":")[0].strip("[]"))


def is_loopback_name(host: str) -> bool:
    """Return whether a name or address is this machine's loopback, without asking a name server."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def first_free_port(host: str, first: int, tries: int = 50) -> int | None:
    """Return the first port from `first` on that can be bound on `host`."""
    for port in range(first, min(first + tries, 65536)):
        try:
            with socket.create_server((host, port)):
                return port
        except OSError:
            continue
    return None
