"""A fleet on a virtual clock: the agents' schedulers, and the router's choice of hosts, instances and minimums.

What decides is the product's own: `Scheduler`, `Proposer`, `choose`, `Scaling`. Workers are left out: a start takes as
long as the last one of its function did.
"""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cortex.cli.what_if.past import Measured, Past, Tally, Visit
from cortex.functions.hours import at_hours, next_change
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.in_flight import InFlight
from cortex.platform.record import HostRecord, Instance, ProcessId, RouterReport, used_function, used_instance
from cortex.platform.registry import Registry
from cortex.platform.scheduling import effects, events
from cortex.platform.scheduling.ledger import Entry, Reading, returned_from
from cortex.platform.scheduling.reaping import reap_at
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.scheduling.state import Rules
from cortex.router.activation.agents import Agents
from cortex.router.activation.load_balancing import choose
from cortex.router.activation.proposer import Proposer
from cortex.router.activation.scaling import Cause, Scaling
from cortex.router.errors import RequestError
from cortex.router.fleet_view import FleetView

T = TypeVar("T")

ROUTER = "replay"
TICK_S = 0.5
"""Interval at which the fleet is looked at while something waits or ends."""
STOP_S, RECLAIM_S = 1.0, 1.0
"""From TERM to the end of a worker, and until its memory is free."""
PARK_S, RETURN_S = 1.0, 1.0
"""To park a worker, and for a return that was not measured."""
UNKNOWN_START_S = 30.0
"""The start of a function when no start of any function was measured."""
NO_LIMIT_S = 1e9
EVICTIONS = frozenset({DecisionKind.EVICTED, DecisionKind.CLOSED})


class _Waiter(Struct):
    """A request that waits for an instance."""

    visit: Visit
    over: bool = False


class ReplayFleet:
    """Hosts, functions, and the requests of a past time."""

    def __init__(
        self, functions: Mapping[str, Function], hosts: Sequence[HostRecord], cordoned: frozenset[str], past: Past
    ) -> None:
        self.now = past.begin
        self._functions, self._cordoned, self._past = dict(functions), cordoned, past
        self._revisions = {f.id: revision(f) for f in functions.values()}
        self._starts = _start_times(functions, past.measured)
        self._weights = {f: max((h.weights.get(f, 0) for h in hosts), default=0) for f in functions}
        self._hosts = {h.name: h for h in hosts}
        self._schedulers: dict[str, Scheduler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._waiting: dict[str, list[_Waiter]] = {}
        self._in_flight: dict[str, int] = {}
        self._used: dict[str, float] = {}
        self._scaling = Scaling()
        self.would: dict[str, Tally] = {}
        view = FleetView(_Record(self.fleet), ROUTER)
        self._view = view
        waits = _Waits(self._waiting, lambda: self.now)
        self._proposer = Proposer(view, _LocalAgents(self._ensure), waits, now=lambda: self.now)

    def run(self, progress: Callable[[float], None] = lambda _: None) -> dict[str, Tally]:
        """Replay the whole time, until no request waits. Return what comes of the requests, by function.

        `progress` gets a share of 1.
        """
        past = self._past
        early = past.begin - max(self._starts.values(), default=0.0) - 60.0
        self.now = early
        for name, host in self._hosts.items():
            bare = replace(host, instances=(), failures=(), line=(), epoch=0)
            rules = Rules(start_silence_s=NO_LIMIT_S, start_ceiling_s=NO_LIMIT_S)
            self._schedulers[name] = Scheduler(bare, rules)
            self._tell(name, events.LedgerRead(self._ledger()))
        for function in past.carried:
            self._at(early, partial(self._arrive, Visit(early, function)))
        for visit in past.visits:
            self._at(max(visit.at, early), partial(self._arrive, visit))
        looked_at, reported = early, 0.0
        while self.now <= past.end or any(self._waiting.values()):
            self._look()
            looked_at = self._next_look()
            at = min(looked_at, self._timers[0][0] if self._timers else NO_LIMIT_S * 1e3)
            self.now = max(self.now, at)
            while self._timers and self._timers[0][0] <= self.now:
                heappop(self._timers)[2]()
            done = (self.now - past.begin) / max(1.0, past.end - past.begin)
            if done - reported > 0.01:
                reported = done
                progress(min(1.0, done))
        return self.would

    def fleet(self) -> Fleet:
        """Return the record as it is now."""
        records = {name: self._record(name) for name in self._schedulers}
        waiting = {f: len(w) for f, w in self._waiting.items() if w}
        seen = {name: r.epoch for name, r in records.items()}
        report = RouterReport(id=ROUTER, at=self.now, in_flight=dict(self._in_flight), waiting=waiting, seen=seen)
        for instance in self._in_flight:
            self._used[used_instance(instance)] = self.now
        return Fleet(
            hosts=records, routers={ROUTER: report}, used=dict(self._used), cordoned=self._cordoned, at=self.now
        )

    # Time.

    def _at(self, at: float, call: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._timers, (at, self._number, call))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._at(self.now + seconds, call)

    def _next_look(self) -> float:
        """Return when the fleet has to be looked at again although nothing happens."""
        instances = [i for s in self._schedulers.values() for i in s.state.instances.values()]
        ends = any(i.state in (State.PLACING, State.DRAINING) for i in instances)
        coming = {i.function for i in instances if i.is_coming}
        if ends or any(w and f not in coming for f, w in self._waiting.items()) or self._is_over_target(instances):
            return self.now + TICK_S
        times = [next_change(f, self.now) for f in self._functions.values() if f.warm]
        for scheduler in self._schedulers.values():
            state = scheduler.state
            times += [reap_at(i, state.functions[i.id], state.use(), instances) for i in state.instances.values()]
        later = [at + 0.01 for at in times if at is not None and at > self.now]
        late = [self.now + TICK_S for at in times if at is not None and at <= self.now]
        return min([*later, *late], default=NO_LIMIT_S * 1e3)

    def _is_over_target(self, instances: Iterable[Instance]) -> bool:
        return any(
            self._in_flight.get(i.id, 0) > self._functions[i.function].target_concurrency
            for i in instances
            if i.function in self._functions
        )

    # Routers.

    def _arrive(self, visit: Visit) -> None:
        """A request comes."""
        function = self._functions.get(visit.function)
        waiting = self._waiting.setdefault(visit.function, [])
        if function is None or (len(waiting) >= function.queue and not self._ready(function)):
            self._count(visit.function).not_served += 1
            return
        waiter = _Waiter(visit)
        waiting.append(waiter)
        self._at(visit.at + function.start_timeout_s, lambda: self._give_up(waiter))

    def _give_up(self, waiter: _Waiter) -> None:
        if not waiter.over:
            self._reject(waiter)

    def _reject(self, waiter: _Waiter) -> None:
        waiter.over = True
        self._waiting[waiter.visit.function].remove(waiter)
        self._count(waiter.visit.function).not_served += 1

    def _look(self) -> None:
        """Let agents read the reports, and the router serve, start and scale."""
        fleet = self.fleet()
        for name in self._schedulers:
            self._tell(name, events.Reported(fleet))
        _run(self._view.refresh())
        for id in [f for f, waiting in self._waiting.items() if waiting]:
            function = self._functions[id]
            self._serve(function)
            if self._waiting[id] and not self._is_coming(function):
                self._start(function)
        self._scale()

    def _ready(self, function: Function) -> tuple[Instance, ...]:
        return self._view.ready(function.id, self._revisions[function.id])

    def _is_coming(self, function: Function) -> bool:
        states = (s.state.instances.values() for s in self._schedulers.values())
        return any(i.function == function.id and i.is_coming for instances in states for i in instances)

    def _serve(self, function: Function) -> None:
        for waiter in list(self._waiting[function.id]):
            instance = choose(self._ready(function), lambda i: self._in_flight.get(i, 0))
            if instance is None:
                return
            waiter.over = True
            self._waiting[function.id].remove(waiter)
            waited_s = self.now - waiter.visit.at
            if waited_s > 0:
                self._count(function.id).waited(waited_s)
            self._in_flight[instance.id] = self._in_flight.get(instance.id, 0) + 1
            self._touch(function.id, instance.id)
            self._later(waiter.visit.work_s, partial(self._finish, function.id, instance.id))

    def _finish(self, function: str, instance: str) -> None:
        self._touch(function, instance)
        left = self._in_flight.pop(instance, 1) - 1
        if left > 0:
            self._in_flight[instance] = left

    def _touch(self, function: str, instance: str) -> None:
        self._used[used_function(function)] = self._used[used_instance(instance)] = self.now

    def _start(self, function: Function) -> None:
        waited_s = self.now - self._waiting[function.id][0].visit.at
        try:
            _run(self._proposer.propose(Ensure(function, waited_s=waited_s, turn=True)))
        except RequestError as error:
            if error.retry_after is None:
                for waiter in list(self._waiting[function.id]):
                    self._reject(waiter)
        else:
            _run(self._view.refresh())

    def _scale(self) -> None:
        functions = [at_hours(f, self.now) for f in self._functions.values()]
        for want in self._scaling.wanted(functions, self._view.fleet, self.now):
            function = self._functions[want.function]
            try:
                minimum = want.cause is Cause.MINIMUM
                _run(self._proposer.propose(self._one_more(function, minimum=minimum)))
                _run(self._view.refresh())
            except RequestError:
                continue

    def _one_more(self, function: Function, *, minimum: bool) -> Ensure:
        existing = tuple(i.id for h in self._view.fleet.hosts.values() for i in h.of(function.id))
        return Ensure(function, beside=existing, evict=minimum, minimum=minimum)

    # Agents.

    def _record(self, host: str) -> HostRecord:
        record = self._schedulers[host].record()
        return replace(record, at=self.now, instances=tuple(replace(i, host=host) for i in record.instances))

    def _ensure(self, host: str, request: Ensure) -> Accepted | Rejected:
        self._number += 1
        weights = LocalWeights("", self._weights.get(request.function.id, 0))
        results = self._tell(host, events.EnsureRequest(request, weights, f"{self._number:016x}"))
        return next(e.answer for e in results if isinstance(e, effects.Answer))

    def _tell(self, host: str, event: events.Event) -> list[effects.Effect]:
        """Pass an event to a host's scheduler, and let its effects come about."""
        results = self._schedulers[host].handle(event, self.now)
        for effect in results:
            self._perform(host, effect)
        return results

    def _perform(self, host: str, effect: effects.Effect) -> None:
        def then(seconds: float, event: events.Event) -> None:
            self._later(seconds, lambda: void(self._tell(host, event)))

        match effect:
            case effects.Spawn(instance, function):
                self._number += 1
                self._tell(host, events.Spawned(instance.id, ProcessId(host, self._number, 0), f"replay://{host}"))
                then(self._starts[function.id], events.Answered(instance.id))
            case effects.Park(instance, _, tier):
                then(PARK_S, events.Parked(instance.id, tier, instance.parked_mb, instance.ram_mb, PARK_S))
            case effects.Wake(instance, function, tier):
                then(instance.return_s.get(tier, RETURN_S), events.Answered(instance.id))
            case effects.Stop(instance):
                then(STOP_S, events.Exited(instance.id, "ended"))
            case effects.Reclaim(instance):
                then(RECLAIM_S, events.Reclaimed(instance.id))
            case effects.Look(instance):
                then(0.0, events.Looked(instance.id, self._in_flight.get(instance.id, 0), 0))
            case effects.Decision(what, function_id, instance_id):
                tally = self._count(function_id)
                ready = self._schedulers[host].state.instances.get(instance_id)
                tally.starts += what is DecisionKind.READY and ready is not None and returned_from(ready) is None
                tally.evictions += what in EVICTIONS
            case _:
                pass

    def _ledger(self) -> dict[str, Entry]:
        entries = {}
        for id in self._functions:
            measured = self._past.measured.get(id)
            entry = Entry(function=id, start_s=self._starts[id], starts=1)
            if measured is not None and measured.memory_mb:
                readings = (Reading(start=1.0, memory_mb=measured.memory_mb),)
                entry = replace(entry, memory_mb=measured.memory_mb, readings=readings)
            entries[self._revisions[id]] = entry
        return entries

    def _count(self, function: str) -> Tally:
        """Return where an outcome is counted: what happens before the replayed time is not."""
        if self.now < self._past.begin:
            return Tally()
        return self.would.setdefault(function, Tally())


def void(_: object) -> None:
    """Drop a result."""


def _start_times(functions: Iterable[str], measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return the seconds of a start of each function: its last one, else the middle one of all functions."""
    known = sorted(m.start_s for m in measured.values() if m.start_s)
    usual_s = known[len(known) // 2] if known else UNKNOWN_START_S
    return {f: (measured[f].start_s if f in measured else 0.0) or usual_s for f in functions}


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a replay waits for nothing")


class _Record(Registry):
    """The record in memory, as far as a view reads it."""

    def __init__(self, read: Callable[[], Fleet]) -> None:
        self._read = read

    async def fleet(self, now: float, hosts_within_s: float = 0.0) -> Fleet:
        """Return the whole record."""
        return self._read()


class _LocalAgents(Agents):
    """The agents' answers, without HTTP."""

    def __init__(self, answer: Callable[[str, Ensure], Accepted | Rejected]) -> None:
        self._answer = answer

    async def ensure(self, host: HostRecord, request: Ensure) -> Accepted | Rejected:
        """Return an agent's answer."""
        return self._answer(host.name, request)


class _Waits(InFlight):
    """The requests that wait."""

    def __init__(self, waiting: Mapping[str, list[_Waiter]], now: Callable[[], float]) -> None:
        self._waiters, self._now = waiting, now

    def waiting_for(self, function: str) -> int:
        """Return how many wait for a function."""
        return len(self._waiters.get(function, ()))
