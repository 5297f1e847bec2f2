"""The requests that a process has in flight and waiting, as sets of live requests.

A set cannot become negative, and its entries cannot leak: a `finally` removes them. The report for the record and the
last uses are computed from these sets; last uses are by this process's clock.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from cortex.platform import clock
from cortex.platform.record import KeepAlive, RouterReport, ShareUse, used_function, used_instance

MOST_KEEPING = 10_000
"""Instances with a `keep_alive` of a request."""
LATE_S = 60.0
"""How long after the end of its time an instance is reaped at the latest."""


class InFlight:
    """Live requests by instance and by function. Where functions share instances, all requests
    count for the base, and also for their own function."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._in_flight: dict[str, set[object]] = {}
        self._waiting: dict[str, dict[object, float]] = {}
        self._shares: dict[str, set[object]] = {}
        self._shares_waiting: dict[str, set[object]] = {}
        self._used_functions: dict[str, float] = {}
        self._used_instances: dict[str, float] = {}
        self._keep: dict[str, tuple[float, float]] = {}

    def track(self, function: str, instance: str, share: str = "") -> "Tracked":
        """Count a request as in flight on an instance, which is in use meanwhile."""
        return Tracked(self, function, instance, share)

    def enter(self, mark: object, function: str, instance: str, share: str = "") -> None:
        """Add a request in flight."""
        self._in_flight.setdefault(instance, set()).add(mark)
        if share:
            self._shares.setdefault(share, set()).add(mark)
        self._touch(function, instance, share)

    def leave(self, mark: object, function: str, instance: str, share: str = "") -> None:
        """Remove a request in flight."""
        _leave(self._in_flight, instance, mark)
        if share:
            _leave(self._shares, share, mark)
        self._touch(function, instance, share)

    @contextmanager
    def waiting(self, function: str, share: str = "") -> Iterator[None]:
        """Count a request as waiting for a function."""
        mark = object()
        self._waiting.setdefault(function, {})[mark] = clock.now()
        if share:
            self._shares_waiting.setdefault(share, set()).add(mark)
        try:
            yield
        finally:
            if share:
                _leave(self._shares_waiting, share, mark)
            live = self._waiting[function]
            live.pop(mark, None)
            if not live:
                del self._waiting[function]

    def on(self, instance: str) -> int:
        """Return how many requests are in flight on an instance."""
        return len(self._in_flight.get(instance, ()))

    def waiting_for(self, function: str) -> int:
        """Return how many requests wait for a function, with its variants."""
        return len(self._waiting.get(function, ()))

    def waiting_for_share(self, share: str) -> int:
        """Return how many of these wait for one of the functions that share its instances."""
        return len(self._shares_waiting.get(share, ()))

    def _by_share(self) -> dict[str, ShareUse]:
        """Return the requests of each function that shares its instances."""
        names = self._shares.keys() | self._shares_waiting.keys()
        return {n: ShareUse(len(self._shares.get(n, ())), len(self._shares_waiting.get(n, ()))) for n in names}

    def waited_s(self, function: str) -> float:
        """Return how long the first of the requests that wait for a function has waited."""
        since = next(iter(self._waiting.get(function, {}).values()), None)
        return 0.0 if since is None else max(0.0, clock.now() - since)

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return how many are in flight per instance, and how many wait per function."""
        return {k: len(v) for k, v in self._in_flight.items()}, {k: len(v) for k, v in self._waiting.items()}

    def keep(self, instance: str, seconds: float | None) -> None:
        """Note how long an instance may stay idle after its last request; None: as long as its function says."""
        self._keep.pop(instance, None)
        if seconds is not None:
            self._keep[instance] = (seconds, clock.now())
            if len(self._keep) > MOST_KEEPING:
                del self._keep[next(iter(self._keep))]

    def _keep_alives(self, now: float) -> dict[str, KeepAlive]:
        """Return how long instances may stay idle, without those that are gone by now."""
        self._keep = {i: (s, at) for i, (s, at) in self._keep.items() if i in self._in_flight or now - at < s + LATE_S}
        return {
            i: KeepAlive(seconds, 0.0 if i in self._in_flight else max(0.0, now - at))
            for i, (seconds, at) in self._keep.items()
        }

    def report(self, seen: dict[str, int], now: float) -> RouterReport:
        """Return the process's report; `seen` are the epochs its choices respect."""
        in_flight, waiting = self.counts()
        keep = self._keep_alives(now)
        shares = self._by_share()
        return RouterReport(
            id=self._process, at=now, in_flight=in_flight, waiting=waiting, seen=seen, keep=keep, shares=shares
        )

    def take_used(self) -> dict[str, float]:
        """Return the last uses since the last call. Requests still in flight count as used now."""
        used, now = self.recent(), clock.now()
        self._used_functions, self._used_instances = {}, {}
        return used | {used_instance(i): now for i in self._in_flight}

    def recent(self) -> dict[str, float]:
        """Return the last uses since the last `take_used`."""
        functions = {used_function(f): at for f, at in self._used_functions.items()}
        return functions | {used_instance(i): at for i, at in self._used_instances.items()}

    def put_back(self, used: dict[str, float]) -> None:
        """Return last uses that could not be written, for the next `take_used`."""
        for name, at in used.items():
            uses = self._used_functions if name[:2] == used_function("") else self._used_instances
            uses.setdefault(name[2:], at)

    def _touch(self, function: str, instance: str, share: str) -> None:
        now = clock.now()
        if share:
            self._used_functions[share] = now
        self._used_functions[function] = self._used_instances[instance] = now
        if wish := self._keep.get(instance):
            self._keep[instance] = (wish[0], now)


class Tracked:
    """A request in flight, as a context."""

    __slots__ = ("_function", "_in_flight", "_instance", "_share")

    def __init__(self, in_flight: InFlight, function: str, instance: str, share: str) -> None:
        self._in_flight, self._function, self._instance, self._share = in_flight, function, instance, share

    def __enter__(self) -> None:
        self._in_flight.enter(self, self._function, self._instance, self._share)

    def __exit__(self, *_: object) -> None:
        self._in_flight.leave(self, self._function, self._instance, self._share)


def _leave(sets: dict[str, set[object]], key: str, mark: object) -> None:
    live = sets[key]
    live.discard(mark)
    if not live:
        del sets[key]
