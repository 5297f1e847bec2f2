"""The router's view of the fleet: the whole record in memory, kept fresh by the bell.

The warm path reads only this. When Redis goes away the last view stands, and `away` says so. A host whose record has
expired stays as a source of instances to choose, for as long as they answer (`silence.py`).
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

import structlog
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.platform import clock
from cortex.platform.record import Death, Failure, Fleet, HostRecord, Instance, newest_uses, use
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.request.model_traits import known_models
from cortex.router.silence import silent_hosts, without

log = structlog.get_logger()

FULL_READ_S = 3.0
NOTED_S = 30.0
"""How long this router remembers its own last uses: longer than any read of the record takes."""
RETRY_S = 0.5
GIVEN_UP_S = 30.0
"""How long an instance whose engine has failed is not chosen: longer than its front, which still answers, lives."""
SUSPECT_S = 2.0
"""How long an instance that refused us is not chosen: its agent will have said what became of it by then."""

FRESH_S = 5.0
"""How long after a reading of the record what it tells of instances is taken for true: a full read comes sooner."""

SILENT_S = 30.0
"""How much longer it is not chosen while its host says nothing: the record may be away, and the worker well."""

MISSES_TO_DROP = 3
"""So many probes in a row must go unanswered before an instance of a silent host is dropped."""


class FleetView:
    """What this router knows. `follow()` keeps it fresh for as long as it runs."""

    def __init__(self, registry: Registry, router: str) -> None:
        self._registry, self._router = registry, router
        self.on_question: Callable[[str], None] = lambda _: None
        self.on_death: Callable[[Death], None] = lambda _: None
        self.fleet = Fleet()
        self.away = True
        self.company = 0
        """Grows whenever the record shows other routers, or cannot be read."""
        self._full_at = 0.0
        self._noted: dict[str, float] = {}
        self._known: dict[str, ModelProfile] = {}
        self._ready: dict[tuple[str, str], tuple[Instance, ...]] = {}
        self._elsewhere: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._placed: dict[str, tuple[str, str]] = {}
        self._suspects: dict[str, tuple[float, float]] = {}
        self._given_up: dict[str, float] = {}
        self._unsure: frozenset[str] = frozenset()
        self._misses: dict[str, int] = {}
        self._next: asyncio.Future[None] | None = None
        self._read_at = 0.0
        self._others = False

    # Reading it.

    def ready(self, function: str, revision: str) -> tuple[Instance, ...]:
        """Return the instances that may be given requests now."""
        found = self._ready.get((function, revision), ())
        if not self._suspects or not found:
            return found
        now = time.monotonic()
        return tuple(i for i in found if not self._suspected(i.id, now))

    def suspected(self, function: str, revision: str) -> tuple[Instance, ...]:
        """Return the instances that are ready by the record and not chosen just now, because they refused us."""
        now = time.monotonic()
        found = self._ready.get((function, revision), ())
        return tuple(i for i in found if self._suspected(i.id, now) and self._given_up.get(i.id, 0.0) < now)

    def unsure(self, instance: str) -> bool:
        """Whether what is known of an instance may be old: the record is away or was not read lately, or its host is
        silent. It may have ended, and its port be another's."""
        return self.away or instance in self._unsure or time.monotonic() - self._read_at > FRESH_S

    @property
    def alone(self) -> bool:
        """Whether this is the only router, by a record that can be read."""
        return not self.away and not self._others

    def elsewhere(self, instance: str) -> int:
        """Return how many requests other routers have in flight on an instance."""
        return self._elsewhere.get(instance, 0)

    def waiting_elsewhere(self, function: str) -> int:
        """Return how many requests for a function other routers hold."""
        return self._waiting.get(function, 0)

    def known(self, function: str) -> ModelProfile | None:
        """Return what some host's weights say about a function."""
        return self._known.get(function)

    def instance(self, instance: str) -> tuple[HostRecord, Instance] | None:
        """Return an instance and its host."""
        for host in self.fleet.records():
            for found in host.instances:
                if found.id == instance:
                    return host, found
        return None

    def is_closing(self, instance: str) -> bool:
        """Whether an instance takes no new requests because it is another function's turn."""
        found = self.instance(instance)
        return found is not None and found[1].state is State.DRAINING and bool(found[1].yields_to)

    def placed(self, instance: str) -> tuple[str, str] | None:
        """Return the function and the host of an instance that is in the record."""
        return self._placed.get(instance)

    def instances(self) -> Collection[str]:
        """Return the ids of all instances in the record."""
        return self._placed.keys()

    def suspects(self) -> list[str]:
        """Return the instances that are not chosen just now, because they refused us."""
        now = time.monotonic()
        return [i for i in self._suspects if self._suspected(i, now)]

    def failure(self, instance: str) -> Failure | None:
        """Return why an instance failed, if its host still says."""
        for host in self.fleet.hosts.values():
            for failure in host.failures:
                if failure.instance == instance:
                    return failure
        return None

    def epochs(self) -> dict[str, int]:
        """Return, per host, the epoch up to which this view knows of every drain."""
        return {name: host.epoch for name, host in self.fleet.hosts.items()}

    async def changed(self, timeout_s: float) -> bool:
        """Wait until the view changes, at most so long. False when the time is up."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait((self._next,), timeout=timeout_s)
        return bool(done)

    # Keeping it fresh.

    def suspect(self, instance: str) -> None:
        """Choose an instance no more for a while: it refused the connection, or another worker answered."""
        now = time.monotonic()
        self._suspects = {i: s for i, s in self._suspects.items() if self._suspected(i, now)}
        self._suspects[instance] = (now + SUSPECT_S, self._said_at(instance))

    def give_up(self, instance: str) -> None:
        """Choose an instance no more, whatever a probe finds: its engine has failed, and it is about to end."""
        now = time.monotonic()
        self.suspect(instance)
        self._suspects[instance] = (now + GIVEN_UP_S, self._said_at(instance))
        self._given_up = {i: until for i, until in self._given_up.items() if until > now} | {instance: now + GIVEN_UP_S}

    def trust(self, instance: str) -> None:
        """Choose an instance again: it has answered with its key."""
        self._misses.pop(instance, None)
        if self._suspects.pop(instance, None) is not None:
            self.wake()

    def drop(self, instance: str) -> None:
        """Forget an instance of a silent host: it is not there any more. Of any other, the host's record decides."""
        self._misses.pop(instance, None)
        if instance in self._unsure:
            silent = {n: without(h, (instance,)) for n, h in self.fleet.silent.items()}
            self._take(replace(self.fleet, silent=silent))

    def miss(self, instance: str) -> None:
        """Note that an instance of a silent host has not answered in time. After a few times it is dropped."""
        misses = self._misses[instance] = self._misses.get(instance, 0) + 1
        if misses >= MISSES_TO_DROP:
            self.drop(instance)

    def silent_instances(self) -> list[Instance]:
        """Return the instances of silent hosts."""
        return [i for h in self.fleet.silent.values() for i in h.record.instances]

    def _suspected(self, instance: str, now: float) -> bool:
        """Whether it refused us a moment ago, or its host has said nothing since: its agent may be away, too."""
        until, said_at = self._suspects.get(instance, (0.0, -1.0))
        silent = said_at > 0 and self._said_at(instance) == said_at
        return now < until or (silent and now < until + SILENT_S)

    def _said_at(self, instance: str) -> float:
        placed = self.instance(instance)
        return placed[0].at if placed else 0.0

    def note_used(self, used: Mapping[str, float]) -> None:
        """Count last uses that are being written; a full read that began before does not have them."""
        since = clock.now() - NOTED_S
        self._noted = newest_uses({m: at for m, at in self._noted.items() if at > since}, used)
        self.fleet = replace(self.fleet, used=newest_uses(self.fleet.used, used))

    async def refresh(self) -> Fleet:
        """Read the whole record now. Raises RecordUnavailable."""
        fleet = await self._registry.fleet(clock.now())
        if fleet.at >= self._full_at:  # else one that began later has been faster
            self._full_at = fleet.at
            self._apply(replace(fleet, used=newest_uses(fleet.used, self._noted)))
        return self.fleet

    async def follow(self) -> None:
        """Follow the record for ever."""
        while True:
            try:
                await self.refresh()
                self._say()
                await self._listen()
            except RecordUnavailable as error:
                self._say(str(error))
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        full = time.monotonic()
        async for changed in self._registry.bell():
            kind, _, name = changed.partition(":")
            if time.monotonic() - full > FULL_READ_S:
                await self.refresh()
                full = time.monotonic()
            elif kind == "host":
                self._apply(self._with(hosts={name: await self._registry.host(name, clock.now())}))
            elif kind == "removed":
                self._forget(name)
            elif kind == "override":
                await self.refresh()
            elif kind == "ask":
                self.on_question(name)
            elif kind == "death":
                death = await self._registry.death(name)
                if death is not None and death.router != self._router:
                    self.on_death(death)
            elif kind == "router" and name != self._router:
                self._apply(self._with(routers={name: await self._registry.router(name)}))

    def _with(self, *, hosts: Mapping[str, object] | None = None, routers: Mapping[str, object] | None = None) -> Fleet:
        """Return the fleet with some entries replaced; None takes an entry out."""
        changes = {
            field: {k: v for k, v in {**getattr(self.fleet, field), **new}.items() if v is not None}
            for field, new in (("hosts", hosts), ("routers", routers))
            if new is not None
        }
        return replace(self.fleet, at=clock.now(), **changes)

    def _forget(self, host: str) -> None:
        """Take out a host that was removed on purpose: it is not silent, it is gone."""
        self._take(
            replace(
                self.fleet,
                hosts={n: h for n, h in self.fleet.hosts.items() if n != host},
                silent={n: h for n, h in self.fleet.silent.items() if n != host},
                at=clock.now(),
            )
        )

    def _apply(self, fleet: Fleet) -> None:
        """Take a reading of the record."""
        self._read_at = time.monotonic()
        self._take(replace(fleet, silent=silent_hosts(self.fleet, fleet.hosts, clock.now())))

    def _take(self, fleet: Fleet) -> None:
        ready: dict[tuple[str, str], list[Instance]] = {}
        for host in fleet.records():
            for instance in host.instances:
                if instance.state is State.READY:
                    ready.setdefault((instance.function, instance.revision), []).append(instance)
        self._others = any(router != self._router for router in fleet.routers)
        self.company += self._others
        others = use(replace(fleet, routers={i: r for i, r in fleet.routers.items() if i != self._router}))
        if fleet.hosts is not self.fleet.hosts:
            self._known = known_models({h.name: h for h in fleet.records()})
        if fleet.silent.keys() != self.fleet.silent.keys():
            self._say_silent(self.fleet, fleet)
        self.fleet = fleet
        self._ready = {k: tuple(v) for k, v in ready.items()}
        self._placed = {i.id: (i.function, h.name) for h in fleet.records() for i in h.instances}
        self._elsewhere, self._waiting = others.in_flight, others.waiting
        self._unsure = frozenset(i.id for i in self.silent_instances())
        self._misses = {i: n for i, n in self._misses.items() if i in self._unsure}
        self.wake()

    def _say_silent(self, before: Fleet, after: Fleet) -> None:
        for name in after.silent.keys() - before.silent.keys():
            log.warning("host_silent", host=name, instances=len(after.silent[name].record.instances))
        for name in before.silent.keys() - after.silent.keys():
            log.info("host_reports_again" if name in after.hosts else "host_forgotten", host=name)

    def wake(self) -> None:
        """Wake whoever waits for a change: something else that they look at has changed."""
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def _say(self, why: str = "") -> None:
        """Note that the record is away, and why; without a reason, that it is followed."""
        if bool(why) != self.away:
            self.company += 1
            log.warning("record_away", why=why) if why else log.info("record_followed")
        self.away = bool(why)
