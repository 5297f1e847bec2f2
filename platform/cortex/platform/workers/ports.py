"""Assigns ports to workers.

A router without Redis still sends requests to the ports in its last record. So a released port rests, and during that
time goes only to a worker that cannot be mistaken for the previous one: of the same function, or with a server that
rejects the previous key. After that time the router knows that its record is stale, and checks a worker's model before
it sends a request.
"""

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterable

from cortex.platform import clock

REST_S = 60.0
"""Rest time of a port: much longer than a router takes to notice that Redis does not answer."""

TRIES = 8
"""How often to request a port from the kernel until one is not resting."""


class NoPort(Exception):
    """No port of the allowed range is free."""


class Ports:
    """The ports of one host's workers."""

    def __init__(self, host: str, ports: str, now: Callable[[], float] = clock.now) -> None:
        """`ports` is a range such as "20000-20100"; "" leaves the choice to the kernel."""
        self._host, self._range, self._now = host.strip("[]"), ports, now
        self._assigned: dict[str, tuple[int, str]] = {}
        self._resting: dict[int, tuple[float, str]] = {}
        """Release time and function of each released port, the oldest first."""
        first, _, last = ports.partition("-")
        self._ports = range(int(first), int(last or first) + 1) if ports else range(0)
        self._start = secrets.randbelow(len(self._ports)) if ports else 0

    def take(self, instance: str, function: str, *, checks_key: bool) -> int:
        """Return a port that can be bound now, for an instance until it is released. Raises NoPort."""
        assigned = {port for port, _ in self._assigned.values()}
        for port in self._candidates(function, checks_key=checks_key):
            bound = bindable(self._host, port)
            if bound and bound not in assigned and (port or bound not in self._resting):
                self._assigned[instance] = (bound, function)
                return bound
        place = f"of {self._range} on {self._host}" if self._range else f"on {self._host}"
        resting = (
            f"; {len(self._resting)} of them rest for {REST_S:.0f} s after their last worker" if self._resting else ""
        )
        raise NoPort(f"no port {place} is free{resting}")

    def hold(self, instance: str, function: str, port: int) -> None:
        """Register the port of a running worker."""
        self._assigned[instance] = (port, function)

    def release(self, instance: str) -> None:
        """Release the port of an instance whose worker has exited; it rests."""
        port, function = self._assigned.pop(instance, (0, ""))
        if port:
            self._resting.pop(port, None)
            self._resting[port] = (self._now(), function)

    def held(self) -> Iterable[str]:
        """Return the instances that have a port."""
        return tuple(self._assigned)

    def _candidates(self, function: str, *, checks_key: bool) -> Iterable[int]:
        """Yield ports in order of preference: (1) unused ones, (2) rested ones, the longest first, (3) resting ones
        that are safe for this worker."""
        rested_before = self._now() - REST_S
        self._resting = {
            port: entry for port, entry in self._resting.items() if self._ports or entry[0] > rested_before
        }
        if not self._ports:
            yield from (0,) * TRIES
            return
        ordered = (self._ports[(self._start + n) % len(self._ports)] for n in range(len(self._ports)))
        yield from (port for port in ordered if port not in self._resting)  # (1)
        yield from (port for port, (released, _) in self._resting.items() if released <= rested_before)  # (2)
        for port, (released, previous) in self._resting.items():  # (3)
            if released > rested_before and (checks_key or previous == function):
                yield port


def bindable(host: str, port: int) -> int:
    """Return `port` if it can be bound on `host` now, else 0. For port 0, return one that the kernel chooses.

    Uses SO_REUSEADDR as servers do, so connections in TIME_WAIT do not block a port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
    return 0
