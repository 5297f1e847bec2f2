"""The router's view of the fleet: an in-memory copy of the record, refreshed by bell messages.

The warm path reads only this. While Redis is unavailable, the last view stays in use and `away` is true. The instances
of a host whose record has expired stay eligible for as long as they answer (`silence.py`).
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

import structlog
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.platform import clock
from cortex.platform.fleet import Fleet, newest_uses, shift_fleet, use, without_successors
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Death, Failure, HostRecord, Instance, ShareUse
from cortex.platform.record_codec import beat as heartbeat
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry
from cortex.router.instance_index import InstanceIndex
from cortex.router.silence import silent_hosts, without

log = structlog.get_logger()

FULL_READ_S = 3.0
OWN_USES_S = 30.0
"""How long this router remembers its own last uses: longer than any read of the record takes."""
RETRY_S = 0.5
GIVEN_UP_S = 30.0
"""How long an instance with a failed engine is not chosen: longer than its HTTP server, which still answers, lives."""
SUSPECT_S = 2.0
"""How long an instance that refused a connection is not chosen; by then its agent has reported its state."""
FRESH_S = 5.0
"""How long the data of a read is trusted; full reads are more frequent."""
SILENT_S = 30.0
"""How much longer a suspect is not chosen while its host does not report: the worker may be well."""
MISSES_TO_DROP = 3
"""Consecutive probes without an answer after which an instance of a silent host is dropped."""


class FleetView:
    """The fleet as this router last read it. `follow()` refreshes it while the router runs."""

    def __init__(self, registry: Registry, router: str) -> None:
        self._registry, self.router = registry, router
        self.on_question: Callable[[str], None] = lambda _: None
        self.on_death: Callable[[Death], None] = lambda _: None
        self.fleet = Fleet()
        self.away = True
        self.company = 0
        """Increases whenever the record lists other routers or cannot be read."""
        self._reading = asyncio.Lock()
        self._calls = self._answered = 0
        """How often the whole record was to be read, and how many of these calls have their read."""
        self._read_error: RecordUnavailable | None = None
        """Of the last read."""
        self._own_uses: dict[str, float] = {}
        self._index = InstanceIndex()
        self._elsewhere: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._shares: dict[str, ShareUse] = {}
        self._suspects: dict[str, tuple[float, float]] = {}
        self._given_up: dict[str, float] = {}
        self._unsure: frozenset[str] = frozenset()
        self._misses: dict[str, int] = {}
        self._next: asyncio.Future[None] | None = None
        self._read_at = 0.0
        self._others = False

    # Reading.

    def display(self, in_flight: InFlight) -> Fleet:
        """Return the fleet for display, with this router's current report and wall-clock times."""
        own = in_flight.report(self.epochs(), clock.now())
        used = self.fleet.used | in_flight.recent()
        fleet = replace(self.fleet, routers={**self.fleet.routers, self.router: own}, used=used)
        ahead_s = round(clock.wall(0.0), 1)
        return shift_fleet(fleet, ahead_s) if ahead_s else fleet

    def ready(self, function: str, revision: str) -> tuple[Instance, ...]:
        """Return the instances that may receive requests now."""
        instances = self._index.ready(function, revision)
        if not self._suspects or not instances:
            return instances
        now = time.monotonic()
        return tuple(i for i in instances if not self._is_suspect(i.id, now))

    def suspect_instances(self, function: str, revision: str) -> tuple[Instance, ...]:
        """Return the ready instances that are suspects, but not given up."""
        now = time.monotonic()
        instances = self._index.ready(function, revision)
        return tuple(i for i in instances if self._is_suspect(i.id, now) and self._given_up.get(i.id, 0.0) < now)

    def failed(self, function: str, revision: str) -> tuple[str, ...]:
        """Return the instances that were given up and are still ready in the record."""
        now = time.monotonic()
        ready = self._index.ready(function, revision)
        return tuple(i.id for i in ready if self._given_up.get(i.id, 0.0) >= now)

    def unsure(self, instance: str) -> bool:
        """Whether an instance's data may be stale: the record is unavailable or was not read lately, or its host is
        silent. The instance may have exited, and another process may use its port."""
        return self.away or instance in self._unsure or time.monotonic() - self._read_at > FRESH_S

    def key_hosts(self, instance: Instance) -> tuple[str, ...]:
        """Return the names of its host from which an instance's key may follow: the present one, and that of its start
        if the host has been renamed since. A record of that name has to be gone, or of the same home: otherwise another
        machine would get the keys of that host's workers."""
        if instance.key_host in ("", instance.host):
            return (instance.host,)
        former, own = self.fleet.hosts.get(instance.key_host), self.fleet.hosts.get(instance.host)
        is_own = former is None or (own is not None and former.home == own.home != "")
        return (instance.host, instance.key_host) if is_own else (instance.host,)

    @property
    def alone(self) -> bool:
        """Whether the record is available and lists no other router."""
        return not self.away and not self._others

    def elsewhere(self, instance: str) -> int:
        """Return how many requests other routers have in flight on an instance."""
        return self._elsewhere.get(instance, 0)

    def waiting_elsewhere(self, function: str) -> int:
        """Return how many requests for a function, with its variants, wait at other routers."""
        return self._waiting.get(function, 0)

    def share_waiting_elsewhere(self, function: str) -> int:
        """Return how many of these wait for one of the functions that share its instances."""
        share = self._shares.get(function)
        return share.waiting if share else 0

    def waited_for(self) -> frozenset[str]:
        """Return the functions that requests wait for at other routers."""
        return frozenset(self._waiting)

    def profile(self, function: str) -> ModelProfile | None:
        """Return the profile of a function's model, read from a host's weights."""
        return self._index.profiles.get(function)

    def instance(self, instance: str) -> tuple[HostRecord, Instance] | None:
        """Return an instance and its host."""
        placed = self._index.place_of(instance)
        host = self.fleet.record(placed[1]) if placed else None
        return next(((host, i) for i in host.instances if i.id == instance), None) if host else None

    def of(self, function: str) -> list[Instance]:
        """Return a function's instances that are ready or starting, on hosts that report."""
        return [
            instance
            for host, instances in self._index.of(function).items()
            for instance in instances
            if host in self.fleet.hosts and (instance.state is State.READY or instance.is_coming)
        ]

    def by_host(self, function: str) -> Mapping[str, tuple[Instance, ...]]:
        """Return a function's instances by host, also of silent hosts."""
        return self._index.of(function)

    def is_closing(self, instance: str) -> bool:
        """Whether an instance takes no new requests because it is another function's turn."""
        entry = self.instance(instance)
        return entry is not None and entry[1].state is State.DRAINING and bool(entry[1].yields_to)

    def coming(self, function: str, revision: str) -> Instance | None:
        """Return an instance of a function's revision on its way up, on a host that reports; none that only replaces
        one that serves."""
        same = without_successors(self.of(function))
        return next((i for i in same if i.is_coming and i.revision == revision), None)

    def place_of(self, instance: str) -> tuple[str, str] | None:
        """Return the function and the host of an instance in the record."""
        return self._index.place_of(instance)

    def instances(self) -> Collection[str]:
        """Return the ids of all instances in the record."""
        return self._index.ids()

    def suspects(self) -> list[str]:
        """Return the suspects: instances that recently refused a connection."""
        now = time.monotonic()
        return [i for i in self._suspects if self._is_suspect(i, now)]

    def failure(self, instance: str) -> Failure | None:
        """Return an instance's failure, if its host still reports it."""
        for host in self.fleet.hosts.values():
            for failure in host.failures:
                if failure.instance == instance:
                    return failure
        return None

    def epochs(self) -> dict[str, int]:
        """Return, per host, the epoch up to which this view includes every drain."""
        return {name: host.epoch for name, host in self.fleet.hosts.items()}

    async def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until the view changes. False after the timeout."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait((self._next,), timeout=timeout_s)
        return bool(done)

    # Updating.

    def suspect(self, instance: str) -> None:
        """Exclude an instance for a while: it refused the connection, or another worker answered."""
        now = time.monotonic()
        self._suspects = {i: s for i, s in self._suspects.items() if self._is_suspect(i, now)}
        self._suspects[instance] = (now + SUSPECT_S, self._reported_at(instance))

    def give_up(self, instance: str) -> None:
        """Exclude an instance whatever a probe reports: its engine has failed, and it is about to exit."""
        now = time.monotonic()
        self.suspect(instance)
        self._suspects[instance] = (now + GIVEN_UP_S, self._reported_at(instance))
        self._given_up = {i: until for i, until in self._given_up.items() if until > now} | {instance: now + GIVEN_UP_S}

    def trust(self, instance: str) -> None:
        """Include an instance again: it has authenticated itself."""
        self._misses.pop(instance, None)
        if self._suspects.pop(instance, None) is not None:
            self.wake()

    def drop(self, instance: str) -> None:
        """Remove an exited instance of a silent host. For other hosts their record decides."""
        self._misses.pop(instance, None)
        if instance in self._unsure:
            silent = {n: without(h, (instance,)) for n, h in self.fleet.silent.items()}
            self._take(replace(self.fleet, silent=silent))

    def miss(self, instance: str) -> None:
        """Count a probe without an answer; drop the instance after `MISSES_TO_DROP` in a row."""
        misses = self._misses[instance] = self._misses.get(instance, 0) + 1
        if misses >= MISSES_TO_DROP:
            self.drop(instance)

    def silent_instances(self) -> list[Instance]:
        """Return the instances of silent hosts."""
        return [i for h in self.fleet.silent.values() for i in h.record.instances]

    def _is_suspect(self, instance: str, now: float) -> bool:
        """Whether the instance is a suspect; longer while its host has not reported since."""
        until, reported_at = self._suspects.get(instance, (0.0, -1.0))
        return now < until or (now < until + SILENT_S and 0 < reported_at == self._reported_at(instance))

    def _reported_at(self, instance: str) -> float:
        entry = self.instance(instance)
        return entry[0].at if entry else 0.0

    def note_uses(self, used: Mapping[str, float]) -> None:
        """Add last uses that are being written; a full read that began earlier lacks them."""
        since = clock.now() - OWN_USES_S
        self._own_uses = newest_uses({m: at for m, at in self._own_uses.items() if at > since}, used)
        self.fleet = replace(self.fleet, used=newest_uses(self.fleet.used, used))

    async def refresh(self) -> Fleet:
        """Read the whole record now: a read that began after this call. Calls during a read share the next one, so that
        a hundred claims at a time cost two reads. Raises RecordUnavailable."""
        self._calls += 1
        call = self._calls
        async with self._reading:
            if self._answered < call:
                await self._read_all()
            if self._read_error is not None:
                raise self._read_error
        return self.fleet

    async def _read_all(self) -> None:
        """Read the whole record for every call so far, or note for them why it cannot be read."""
        calls = self._calls
        try:
            fleet = await self._registry.fleet(clock.now())
        except RecordUnavailable as error:
            self._answered, self._read_error = calls, error
            return
        self._answered, self._read_error = calls, None
        self._apply(replace(fleet, used=newest_uses(fleet.used, self._own_uses)))

    async def follow(self) -> None:
        """Follow the record until cancelled."""
        while True:
            try:
                await self._listen()
            except RecordUnavailable as error:
                self._set_away(str(error))
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        full = time.monotonic()
        async for message in self._registry.bell():
            kind, _, name = message.partition(":")
            if kind == "host":
                self.apply_host(name, await self._registry.host(name, clock.now()))
            elif kind == "beat" and (beat := heartbeat(name)):
                now = clock.now()
                record = self._registry.after(beat, now) or await self._registry.host(beat.host, now)
                self.apply_host(beat.host, record)
            elif kind == "removed":
                self._forget(name)
            elif kind in ("override", "cordon"):
                await self.refresh()
            elif kind == "ask":
                self.on_question(name)
            elif kind == "death":
                death = await self._registry.death(name)
                if death is not None and death.router != self.router:
                    self.on_death(death)
            elif kind == "router" and name != self.router:
                self._apply(self._with(routers={name: await self._registry.router(name)}))
            if message == SUBSCRIBED or time.monotonic() - full > FULL_READ_S:
                await self.refresh()
                self._set_away()
                full = time.monotonic()

    def _with(self, *, hosts: Mapping[str, object] | None = None, routers: Mapping[str, object] | None = None) -> Fleet:
        """Return the fleet with some entries replaced; None removes an entry."""
        changes = {
            field: {k: v for k, v in {**getattr(self.fleet, field), **new}.items() if v is not None}
            for field, new in (("hosts", hosts), ("routers", routers))
            if new is not None
        }
        return replace(self.fleet, at=clock.now(), **changes)

    def _forget(self, host: str) -> None:
        """Remove a host that an operator removed, so that it does not become silent."""
        self._take(
            replace(
                self.fleet,
                hosts={n: h for n, h in self.fleet.hosts.items() if n != host},
                silent={n: h for n, h in self.fleet.silent.items() if n != host},
                at=clock.now(),
            )
        )

    def apply_host(self, name: str, record: HostRecord | None) -> None:
        """Apply a read of one host. While it has the same instances and models, so have the indexes of all hosts: with
        a thousand hosts, their heartbeats would take all of a router's time."""
        before = self.fleet.hosts.get(name)
        if record is None or before is None or record.instances != before.instances or record.models != before.models:
            self._apply(self._with(hosts={name: record}))
            return
        self._read_at = time.monotonic()
        self.fleet = replace(self.fleet, hosts={**self.fleet.hosts, name: record}, at=clock.now())
        self.wake()

    def _apply(self, fleet: Fleet) -> None:
        """Apply a read of the record."""
        self._read_at = time.monotonic()
        self._take(replace(fleet, silent=silent_hosts(self.fleet, fleet.hosts, clock.now())))

    def _take(self, fleet: Fleet) -> None:
        self._index.update({h.name: h for h in fleet.records()})
        self._others = any(router != self.router for router in fleet.routers)
        self.company += self._others
        others = use(replace(fleet, routers={i: r for i, r in fleet.routers.items() if i != self.router}))
        if fleet.silent.keys() != self.fleet.silent.keys():
            self._log_silence(self.fleet, fleet)
        self.fleet = fleet
        self._elsewhere, self._waiting, self._shares = others.in_flight, others.waiting, others.shares
        self._unsure = frozenset(i.id for i in self.silent_instances())
        self._misses = {i: n for i, n in self._misses.items() if i in self._unsure}
        self.wake()

    def _log_silence(self, before: Fleet, after: Fleet) -> None:
        for name in after.silent.keys() - before.silent.keys():
            log.warning("host_silent", host=name, instances=len(after.silent[name].record.instances))
        for name in before.silent.keys() - after.silent.keys():
            log.info("host_reports_again" if name in after.hosts else "host_forgotten", host=name)

    def wake(self) -> None:
        """Wake the waiters of `wait_for_change()`, also after a change outside the view."""
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def _set_away(self, why: str = "") -> None:
        """Record that Redis is unavailable, with the reason; without a reason, that it is available."""
        if bool(why) != self.away:
            self.company += 1
            log.warning("record_away", why=why) if why else log.info("record_back")
        self.away = bool(why)
