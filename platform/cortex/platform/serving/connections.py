"""Limits of one process's connections, in total and per peer, and of the bytes of their unfinished heads.

Pure bookkeeping: the protocol reports new and closed connections, and closes rejected ones. A peer is an address, or
an IPv6 /64 network, because one machine usually has all of it. Reverse proxies, which serve many clients, are exempt
from the limit per peer but not from the limit per process.
"""

import ipaddress
from collections.abc import Iterable

MAX_CONNECTIONS = 4096
MAX_CONNECTIONS_PER_PEER = 1024
HEADS_BYTES = 8 * 1024 * 1024
"""Bytes of unfinished heads over all connections of a process."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Connections:
    """The connections of one listener in one process."""

    def __init__(
        self,
        most: int = MAX_CONNECTIONS,
        most_per_peer: int = MAX_CONNECTIONS_PER_PEER,
        exempt: Iterable[str] = (),
        heads_bytes: int = HEADS_BYTES,
    ) -> None:
        """`exempt` are addresses and networks without a limit per peer; invalid ones are ignored."""
        self.most, self._most_per_peer, self._heads_bytes = most, most_per_peer, heads_bytes
        exempt = list(exempt)
        self._all_exempt = "*" in exempt
        self._exempt = [network for text in exempt if (network := _network(text)) is not None]
        self._peers: dict[str, int] = {}
        self.total = self.heads = 0

    def admit(self, peer: str) -> bool:
        """Count a new connection. False, without counting it, at a limit."""
        if self.total >= self.most:
            return False
        count = self._peers.get(peer, 0)
        if count >= self._most_per_peer and not self._is_exempt(peer):
            return False
        self._peers[peer] = count + 1
        self.total += 1
        return True

    def release(self, peer: str) -> None:
        """Stop counting an admitted connection."""
        self.total -= 1
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]

    def hold(self, change: int) -> bool:
        """Account for bytes of an unfinished head. False when all heads together are over their limit."""
        self.heads += change
        return self.heads <= self._heads_bytes

    def _is_exempt(self, peer: str) -> bool:
        if self._all_exempt:
            return True
        network = _network(peer)
        return network is not None and any(_is_in(network, network_exempt) for network_exempt in self._exempt)


def peer_of(host: str) -> str:
    """Return the peer of an address: itself, or the /64 network of an IPv6 address."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return host if address.is_loopback else str(ipaddress.IPv6Network((address, 64), strict=False))


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_in(peer: Network, exempt: Network) -> bool:
    """Return whether a peer is in an exempt network, or is the /64 network of an exempt IPv6 address."""
    if isinstance(peer, ipaddress.IPv4Network) and isinstance(exempt, ipaddress.IPv4Network):
        return peer.subnet_of(exempt)
    if isinstance(peer, ipaddress.IPv6Network) and isinstance(exempt, ipaddress.IPv6Network):
        return peer.subnet_of(exempt) or exempt.subnet_of(peer)
    return False
