"""Reads the record all the time and checks what must hold at every moment."""

import threading
import time
from collections.abc import ItemsView, Iterable

import msgspec
import redis

from cortex.functions.lifecycle import COMING, LIVE, TRANSITIONS, State
from cortex.platform.process.process_id import is_alive
from cortex.platform.record import HostRecord, Instance, RouterReport
from cortex.platform.record_codec import text
from tests.support.soak.functions import SIZES_MB
from tests.support.soak.harm import Harm, Wrong

EVERY_S = 0.05
GAP_S = 1.0
HOLDING = frozenset({State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.RECLAIMING})
"""States in which memory of a device is, or may be, taken."""


class Record:
    """The record, read with a short patience: it is one of the things that are away now and then."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self.pid = int(self._redis.info("server")["process_id"])

    def read(self) -> tuple[list[HostRecord], list[RouterReport]] | None:
        """Return what hosts and routers say at one moment; None when the record is away."""
        try:
            routers = [f"cortex:router:{text(name)}" for name in sorted(self._redis.smembers("cortex:routers"))]
            with self._redis.pipeline(transaction=True) as pipe:
                for key in (*(f"cortex:host:{name}" for name in SIZES_MB), *routers):
                    pipe.get(key)
                values = pipe.execute()
        except redis.RedisError:
            return None
        hosts = [msgspec.json.decode(v, type=HostRecord) for v in values[: len(SIZES_MB)] if v]
        return hosts, [msgspec.json.decode(v, type=RouterReport) for v in values[len(SIZES_MB) :] if v]

    def instances(self) -> list[Instance]:
        """Return every instance whose process lives."""
        fleet = self.read()
        return [i for h in fleet[0] for i in h.instances if i.process and is_alive(i.process)] if fleet else []

    def claims(self) -> int:
        """Return how many claims are held."""
        return sum(1 for _ in self._redis.scan_iter(match="cortex:claim:*"))


class Watch:
    """Looks until it is told to stop; what is wrong goes into `wrong`."""

    def __init__(self, record: Record, harm: Harm, wrong: Wrong) -> None:
        self._record, self._harm, self._wrong = record, harm, wrong
        self._states: dict[str, State] = {}
        self._whole_since = self._read_at = time.time()
        self.samples, self.fullest = 0, 0.0

    def run(self, over: threading.Event) -> None:
        """Look again and again."""
        while not over.wait(EVERY_S):
            if fleet := self._record.read():
                self.samples += 1
                self.check(*fleet)

    def check(self, hosts: list[HostRecord], routers: list[RouterReport]) -> None:
        """Check one reading of the record."""
        for host in hosts:
            self._budgets(host)
            self._one_of_each(host)
            self._steps(host)
        self._one_start(hosts)
        for report in routers:
            if any(n <= 0 for n in (*report.in_flight.values(), *report.waiting.values())):
                self._wrong.add(f"{report.id} has a count of zero or less: {report.in_flight} {report.waiting}")

    def _budgets(self, host: HostRecord) -> None:
        for device in host.devices:
            there = [i for i in host.instances if device.id in i.devices and i.state in HOLDING]
            used_mb = sum(i.held_mb for i in there)
            self.fullest = max(self.fullest, used_mb / device.budget_mb)
            if used_mb > device.budget_mb:
                held = ", ".join(f"{i.function} {i.state} {i.held_mb}" for i in there)
                self._wrong.add(f"{host.name} {device.id} holds {used_mb} of {device.budget_mb} MiB: {held}")

    def _one_of_each(self, host: HostRecord) -> None:
        """One host never has two of a function, unless its agent came back and took one over that was leaving."""
        for function, them in _by_function(i for i in host.instances if i.state in LIVE):
            since = min(i.created for i in them)
            if len(them) > 1 and not self._harm.explains(f"agent {host.name}", since, host.at):
                self._wrong.add(f"{host.name} has {len(them)} live instances of {function}")

    def _steps(self, host: HostRecord) -> None:
        for instance in host.instances:
            before = self._states.get(instance.id, instance.state)
            if instance.state not in REACHABLE[before]:
                self._wrong.add(f"{instance.id} of {instance.function} went from {before} to {instance.state}")
            self._states[instance.id] = instance.state

    def _one_start(self, hosts: list[HostRecord]) -> None:
        """One start of a function at a time in the whole fleet, unless a host or the record was away just then."""
        now = time.time()
        if len(hosts) < len(SIZES_MB) or now - self._read_at > GAP_S:
            self._whole_since = now
        self._read_at = now
        for function, them in _by_function(i for h in hosts for i in h.instances if i.state in COMING):
            first, last = min(i.created for i in them), max(i.created for i in them)
            unheard = first < self._whole_since + GAP_S or self._harm.explains("agents", first, last)
            if len(them) > 1 and not unheard and not self._harm.explains(f"start of {function}", first, last):
                report = ", ".join(f"{i.id} {i.state} since {i.created:.3f}" for i in them)
                self._wrong.add(f"{function} is started {len(them)} times at once: {report}")


def _by_function(instances: Iterable[Instance]) -> ItemsView[str, list[Instance]]:
    matches: dict[str, list[Instance]] = {}
    for instance in instances:
        matches.setdefault(instance.function, []).append(instance)
    return matches.items()


def _reachable(start: State) -> set[State]:
    matches, new = {start}, {start}
    while new:
        new = {after for state in new for after in TRANSITIONS[state].values()} - matches
        matches |= new
    return matches


REACHABLE = {state: _reachable(state) for state in State}
