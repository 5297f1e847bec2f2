"""Which port a worker listens on.

A router that is cut off from Redis goes on sending requests to the ports it knew. So a port rests after a worker has
left it, and meanwhile is given only to one that cannot be mistaken for the last: of the same function, or with a
server that refuses the last one's key. After that time the router knows that its record is old, and asks a worker for
its model before it sends a request.
"""

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterable

from cortex.platform import clock

REST_S = 60.0
"""How long a port rests: much longer than a router takes to notice that Redis does not answer."""

TRIES = 8
"""How often the kernel is asked for a port that is not at rest."""


class NoPort(Exception):
    """No port of the allowed range is free."""


class Ports:
    """The ports of one host's workers."""

    def __init__(self, host: str, ports: str, now: Callable[[], float] = clock.now) -> None:
        """`ports` is a range such as "20000-20100"; "" leaves the choice to the kernel."""
        self._host, self._range, self._now = host, ports, now
        self._taken: dict[str, tuple[int, str]] = {}
        self._left: dict[int, tuple[float, str]] = {}
        """When a port was left, and by which function; the one left longest ago first."""
        first, _, last = ports.partition("-")
        self._ports = range(int(first), int(last or first) + 1) if ports else range(0)
        self._start = secrets.randbelow(len(self._ports)) if ports else 0

    def take(self, instance: str, function: str, *, checks_key: bool) -> int:
        """Return a port that can be bound now, for an instance until it is released. Raises NoPort."""
        taken = {port for port, _ in self._taken.values()}
        for port in self._candidates(function, checks_key=checks_key):
            found = bindable(self._host, port)
            if found and found not in taken and (port or found not in self._left):
                self._taken[instance] = (found, function)
                return found
        where = f"of {self._range} on {self._host}" if self._range else f"on {self._host}"
        resting = f"; {len(self._left)} of them rest for {REST_S:.0f} s after their last worker" if self._left else ""
        raise NoPort(f"no port {where} is free{resting}")

    def hold(self, instance: str, function: str, port: int) -> None:
        """Note the port of a worker that runs already."""
        self._taken[instance] = (port, function)

    def release(self, instance: str) -> None:
        """An instance's worker has ended: its port rests."""
        port, function = self._taken.pop(instance, (0, ""))
        if port:
            self._left.pop(port, None)
            self._left[port] = (self._now(), function)

    def held(self) -> Iterable[str]:
        """Return the instances that have a port."""
        return tuple(self._taken)

    def _candidates(self, function: str, *, checks_key: bool) -> Iterable[int]:
        """Yield ports in the order in which they are tried: (1) those no worker had, (2) those that have rested, the
        longest first, (3) those at rest that this worker may have all the same."""
        over = self._now() - REST_S
        self._left = {port: left for port, left in self._left.items() if self._ports or left[0] > over}
        if not self._ports:
            yield from (0,) * TRIES
            return
        at = [self._ports[(self._start + n) % len(self._ports)] for n in range(len(self._ports))]
        yield from (port for port in at if port not in self._left)  # (1)
        yield from (port for port, (when, _) in self._left.items() if when <= over)  # (2)
        for port, (when, last) in self._left.items():  # (3)
            if when > over and (checks_key or last == function):
                yield port


def bindable(host: str, port: int) -> int:
    """Return the port if it can be bound on `host` now (0: one that can), else 0.

    With SO_REUSEADDR, as servers bind: connections of the last server that are in TIME_WAIT are no obstacle.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
    return 0
