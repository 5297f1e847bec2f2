"""Addresses to listen on and to reach: `host:port`, where an IPv6 host stands in brackets."""

import functools
import ipaddress
import socket


def split(listen: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of an address."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def join(host: str, port: int) -> str:
    """Return the address of a host and port, as URLs have it."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def create_server(host: str, port: int, *, backlog: int | None = None) -> socket.socket:
    """Return a socket that listens on a host of either family. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


def is_loopback(listen: str) -> bool:
    """Return whether `host:port` is reachable from this machine only."""
    return is_loopback_name(listen.rpartition(":")[0].strip("[]"))


@functools.lru_cache(256)
def is_loopback_name(host: str) -> bool:
    """Return whether a name or address is this machine's loopback, without asking a name server."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def first_free_port(host: str, first: int, tries: int = 50) -> int | None:
    """Return the first port from `first` on that can be bound on `host`."""
    for port in range(first, min(first + tries, 65536)):
        try:
            with create_server(host, port):
                return port
        except OSError:
            continue
    return None
