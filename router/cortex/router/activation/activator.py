"""Holds requests while a function starts, and ensures that exactly one instance is started.

In this router all waiters of a function share one start; between routers a claim in Redis, held for milliseconds, gives
one of them the right to propose. Its holder reads the record again before it calls an agent, and the agent writes the
record before it answers: so the next holder sees the start. The agent owns the start; no disconnect of a client ends
it.

A start belongs to one revision. A waiter has a name and looks it up again whenever the catalogue changes: the start of
an undeclared revision ends without an answer.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from msgspec.structs import replace

from cortex.functions.lifecycle import PARKED
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Accepted, Ensure, PlacementPlan, Rejected
from cortex.platform.cancel import cancelled
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Failure, FailureKind, Instance, use
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.placement import Need, NoRoom, When, misfit, need, place
from cortex.router.activation.agents import TIMEOUT_S, Agents, AgentUnavailable, AgentUnreachable
from cortex.router.activation.load_balancing import candidates, hosts_to_ask, why_nowhere
from cortex.router.activation.waits import ready_in_s, waits
from cortex.router.decision_log import DecisionLog, RouterDecision
from cortex.router.errors import (
    SEE_WHY,
    FunctionNotFound,
    NoCapacity,
    NotReadyInTime,
    RecordIsAway,
    RequestError,
    StartFailed,
)
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.request.probe import Pulse

log = structlog.get_logger()

CLAIM_S = TIMEOUT_S + 5.0
"""A claim is released in milliseconds, or at the latest after one agent that does not answer, which it must outlast. It
expires if its router dies."""
PROPOSE_S = 3.0
"""After this time no further host is tried under the same claim."""
SLOW_S = 30.0
"""How long an agent that did not answer is tried after all others."""
CLAIMED_ELSEWHERE_S = 0.05
NO_ROOM_S = 1.0
UNSEEN_S = 10.0
"""How long a started instance may be missing from the record before it is started again."""
RETRY_AFTER_S = 5
MOST_RETRY_AFTER_S = 3600


class Declarations(Protocol):
    """The current catalogue."""

    digest: str

    def get(self, name: str) -> Target | None: ...
    async def change(self, timeout_s: float, *others: asyncio.Future[Any]) -> None: ...


class Prober(Protocol):
    """Checks a worker's health."""

    async def pulse(self, instance: Instance) -> Pulse: ...


class AnswerLost(NoCapacity):
    """An agent did not answer in time. It may have started an instance: the record must be read before the next host
    is tried."""


class Activator:
    """Starts functions on request. It owns the starts; requests may leave at any time."""

    def __init__(
        self,
        view: FleetView,
        registry: Registry,
        agents: Agents,
        in_flight: InFlight,
        catalogue: Declarations,
        probe: Prober,
        decision_log: DecisionLog | None = None,
        now: Callable[[], float] = lambda: clock.now(),
    ) -> None:
        """`now` is the time of the view's fleet."""
        self._now = now
        self._decision_log = decision_log or DecisionLog("")
        self._view, self._registry, self._agents, self._in_flight = view, registry, agents, in_flight
        self._catalogue, self._probe = catalogue, probe
        self._starts: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._refusals: dict[tuple[str, str], NoCapacity] = {}
        self._slow: dict[str, float] = {}
        self._warming: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """End every start that this router drives. Starts on agents continue."""
        await cancelled([*self._starts.values(), *self._warming.values()])

    async def wait_until_ready(self, target: Target, timeout_s: float) -> None:
        """Return once an instance is ready (it may be gone when the caller uses it), or the catalogue has changed, so
        that the caller looks its name up again. The caller counts as waiting for the function.

        Raises NotReadyInTime, NoCapacity, StartFailed or RecordIsAway.
        """
        deadline = time.monotonic() + timeout_s
        start = self._join(target)
        await self._catalogue.change(timeout_s, start)
        if not start.done():
            if time.monotonic() >= deadline:
                raise self.late(target.function)
            return
        if start.cancelled():
            raise NotReadyInTime("this router is stopping", retry_after=1)
        start.result()

    def refusal(self, target: Target) -> NoCapacity | None:
        """Return why no host has room for the start that requests wait for; None: it is under way, or none is."""
        return self._refusals.get((target.base.id, target.revision))

    def late(self, function: Function) -> NotReadyInTime:
        """Return the error for a start that exceeds `start_timeout_s`."""
        public = f"'{function.id}' was not ready after {function.start_timeout_s:g} s"
        return NotReadyInTime(
            f"{public}: {self._progress(function)}",
            retry_after=self.retry_after_s(function.base_id),
            public=public + SEE_WHY,
        )

    async def ensure(self, find: Callable[[], Target], *, force: bool = False) -> str:
        """Return an instance that is ready or on its way up on any host; start one when there is none. `find` looks the
        name up: the catalogue may change meanwhile.

        Raises RequestError.
        """
        deadline = time.monotonic() + UNSEEN_S
        retry = True
        try:
            while time.monotonic() < deadline:
                target = find()
                function, rev = target.base, target.revision
                instance = next(iter(self._view.ready(function.id, rev)), None) or self._starting(function, rev)
                if instance is not None:
                    return instance.id
                if await self._recover_suspects(function, rev):
                    continue
                try:
                    started = await self._propose_under_claim(function, rev, force=force)
                except AnswerLost:
                    if not retry:
                        raise
                    retry, deadline = False, time.monotonic() + UNSEEN_S
                    continue
                if started is not None:
                    return started.instance
                await self._view.changed(CLAIMED_ELSEWHERE_S)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=RETRY_AFTER_S) from None
        raise NotReadyInTime(f"another router keeps the claim on '{find().function.id}'", retry_after=RETRY_AFTER_S)

    def warm(self, target: Target) -> None:
        """Start a function for which no request waits. One that is on its way up stays the only one."""
        function = target.base.id
        if function in self._warming:
            return
        task = self._warming[function] = asyncio.create_task(self._warm(function))
        task.add_done_callback(lambda _: self._warming.pop(function, None))

    async def _warm(self, function: str) -> None:
        def find() -> Target:
            target = self._catalogue.get(function)
            if target is None:
                raise FunctionNotFound(function, [])
            return target

        try:
            await self.ensure(find)
        except RequestError as error:
            log.warning("not_warmed", function=function, why=error.message)

    async def add(self, target: Target, *, evict: bool, for_request: bool, unused_s: float = 0.0) -> Accepted | None:
        """Start one more instance: with `evict` others that are unused for `unused_s` may leave for it, else it starts
        in free room. Only one `for_request` is protected until its first request. None when one is already on its way
        up, or another router has the claim. Raises RequestError or RecordUnavailable.
        """
        function, rev = target.base, target.revision
        async with self._claim(function.id) as claimed:
            if not claimed or self._starting(function, rev):
                return None
            existing = tuple(i.id for h in self._view.fleet.hosts.values() for i in h.of(function.id))
            return await self.propose(
                Ensure(function, beside=existing, evict=evict, minimum=not for_request, unused_s=unused_s)
            )

    async def move(self, target: Target, source: str) -> Accepted | None:
        """Ensure an instance on another host than `source`, which is being drained; None when another router has the
        claim. Raises RequestError or RecordUnavailable.
        """
        function = target.base
        async with self._claim(function.id) as claimed:
            if not claimed:
                return None
            host = self._view.fleet.hosts.get(source)
            leaving = tuple(i.id for i in host.of(function.id)) if host else ()
            return await self.propose(Ensure(function, beside=leaving))

    async def propose(self, request: Ensure) -> Accepted:
        """Start an instance on the first host that accepts it, whatever other hosts have.

        Raises RequestError; AnswerLost when an agent may have started one without an answer.
        """
        function = request.function
        function_need = need(function, None)
        fleet = self._view.fleet
        usage = use(fleet)
        order = self._slow_last(hosts_to_ask(function_need, function, fleet, usage, self._now(), request.beside))
        refusals: dict[str, Rejected] = {}
        accepted = await self._first_host(order, replace(request, turn=request.turn and len(order) == 1), refusals)
        if accepted is None and request.turn and len(order) > 1 and (host := _soonest_turn(refusals)):
            accepted = await self._first_host([host], request, refusals)  # a host with room goes before a turn
        if accepted is None:
            refusal = self._refusal(function, function_need, refusals)
            self._decision_log.note_once(RouterDecision.NO_HOST, function.id, why=refusal.message)
            raise refusal
        host, started = accepted
        refusals.pop(host, None)
        estimates = candidates(function_need, order, fleet, usage, self._now())
        self._note_proposed(function, estimates, refusals, host, started)
        return started

    async def _first_host(
        self, order: Iterable[str], request: Ensure, refusals: dict[str, Rejected]
    ) -> tuple[str, Accepted] | None:
        """Return the first host that accepts a function, and its answer; add the rejections of others to `refusals`.

        Raises AnswerLost.
        """
        hosts, started_at = self._view.fleet.hosts, time.monotonic()
        for host in order:
            if host not in hosts:
                continue
            try:
                answer = await self._agents.ensure(hosts[host], request)
            except AgentUnavailable as error:
                log.warning("agent_away", host=host, why=str(error))
                self._slow[host] = time.monotonic() + SLOW_S
                if not isinstance(error, AgentUnreachable) or time.monotonic() - started_at > PROPOSE_S:
                    public = f"no room for '{request.function.id}' now"
                    why = f"{public}: {host}: {error}"
                    raise AnswerLost(why, retry_after=RETRY_AFTER_S, public=public + SEE_WHY) from None
                refusals[host] = Rejected(str(error), When.LATER)
                continue
            if isinstance(answer, Accepted):
                return host, answer
            refusals[host] = answer
        return None

    def _slow_last(self, hosts: list[str]) -> list[str]:
        """Return the hosts, with those last whose agents recently did not answer."""
        now = time.monotonic()
        self._slow = {host: until for host, until in self._slow.items() if until > now}
        return sorted(hosts, key=lambda host: self._slow.get(host, 0.0))

    def _note_proposed(
        self,
        function: Function,
        estimates: Sequence[Mapping[str, object]],
        refusals: Mapping[str, Rejected],
        host: str,
        started: Accepted,
    ) -> None:
        """Log the decision: the estimates for hosts, and the rejections before this one."""
        inputs = {
            "candidates": estimates,
            "rejections": {name: rejection.reason for name, rejection in refusals.items()},
            "waiting": self._in_flight.waiting_for(function.id),
        }
        why = "the best of the hosts that take it" if not refusals else "the best of those that did not refuse"
        self._decision_log.note(
            RouterDecision.PROPOSED, function.id, host=host, instance=started.instance, why=why, inputs=inputs
        )

    async def plan(self, function: Function) -> tuple[PlacementPlan | None, dict[str, str]]:
        """Return the plan of a start, and why the hosts before it, or all hosts, reject it."""
        function_need = need(function, None)
        fleet = self._view.fleet
        refusals: dict[str, str] = {}
        usage, now = use(fleet), self._now()
        for host in hosts_to_ask(function_need, function, fleet, usage, now):
            try:
                answer = await self._agents.plan(fleet.hosts[host], function)
            except AgentUnavailable as error:
                refusals[host] = str(error)
                continue
            if isinstance(answer, PlacementPlan):
                return _with_back_off(answer, fleet.hosts[host].failures, function.id), refusals
            refusals[host] = answer.reason
            if answer.turn_in_s is not None:
                refusals[host] += f"; for a request, instances in use are closed in at most {answer.turn_in_s:.0f} s"
        for name, record in fleet.hosts.items():
            estimate = misfit(function_need, record) or place(
                function_need, record, usage, now, cordoned=name in fleet.cordoned
            )
            if isinstance(estimate, NoRoom):
                refusals.setdefault(name, estimate.reason)
        return None, refusals

    def _refusal(self, function: Function, function_need: Need, refusals: Mapping[str, Rejected]) -> RequestError:
        """Merge the agents' rejections into one error: crashing beats full, full beats never."""
        if not refusals:
            fleet = self._view.fleet
            why = why_nowhere(function_need, fleet, use(fleet), self._now())
            public = f"no host can run '{function.id}'"
            return NoCapacity(
                f"{public}: {why}",
                public=public + SEE_WHY,
                # Waiting may help: a cordon may be lifted, a host may join.
                retry_after=RETRY_AFTER_S if fleet.cordoned or not fleet.hosts else None,
            )
        reasons = "; ".join(f"{host}: {refused.reason}" for host, refused in refusals.items())
        public = f"'{function.id}' cannot be started"
        if any(r.failure for r in refusals.values()):
            return StartFailed(f"{public}: {reasons}", public=public + SEE_WHY)
        if all(r.when is When.NEVER for r in refusals.values()):
            return StartFailed(f"{public}: {reasons}", public=public + SEE_WHY)
        public = f"no room for '{function.id}' now"
        if all(r.foreign_mb or r.when is When.NEVER for r in refusals.values()):
            # No instance that leaves makes room, so waiting does not help.
            public += ": processes outside cortex hold the memory"
            return NoCapacity(f"{public}: {reasons}", public=public + SEE_WHY)
        return NoCapacity(f"{public}: {reasons}", retry_after=self.retry_after_s(function.id), public=public + SEE_WHY)

    def retry_after_s(self, function: str) -> int:
        """Return in how many seconds a function that waits for memory is ready, by the agents' estimate."""
        ready = ready_in_s(self._view.fleet, function, self._now())
        return RETRY_AFTER_S if ready is None else min(max(1, math.ceil(ready)), MOST_RETRY_AFTER_S)

    def _join(self, target: Target) -> asyncio.Task[None]:
        """Return this router's running start of this revision, or begin one."""
        key = (target.base.id, target.revision)
        start = self._starts.get(key)
        if start is None or start.done():
            start = self._starts[key] = asyncio.create_task(self._start(target))
            start.add_done_callback(lambda t: self._end(key, t))
        return start

    def _end(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._starts.get(key) is task:
            del self._starts[key]
            self._refusals.pop(key, None)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: every waiter may have left

    async def _start(self, target: Target) -> None:
        """Drive one start to its end, while requests wait for it and its revision is declared:

        (1) an instance is ready: done;
        (2) one is on its way up: wait for it;
        (3) the awaited one failed: raise that, unless it only lost its place, or had been ready (the router saw it
            before its agent saw it die), or its host no longer has it (its agent restarted): then propose another;
        (4) an instance that just refused a request is healthy: done;
        (5) no host has room now: try again on the next change;
        (6) otherwise propose one, under the claim.
        """
        function, rev = target.base, target.revision
        awaited, host, unseen_since = "", "", 0.0
        while self._in_flight.waiting_for(function.id) and self._declares(function, rev):
            if self._view.ready(function.id, rev):  # (1)
                return
            starting = self._starting(function, rev)
            if starting is not None:  # (2)
                self._refusals.pop((function.id, rev), None)
                awaited, unseen_since = starting.id, time.monotonic()
                _, host = self._view.placed(awaited) or ("", host)
                await self._view.changed(NO_ROOM_S)
                continue
            failure = self._view.failure(awaited) if awaited else None  # (3)
            if failure is not None:
                awaited = ""
                if failure.kind is FailureKind.ROOM:
                    await self._view.changed(NO_ROOM_S)
                    continue
                if not failure.served:
                    public = f"'{function.id}' did not start"
                    raise StartFailed(f"{public}: {failure.reason}", public=public + SEE_WHY)
            elif awaited and not self._has_left(awaited, host) and time.monotonic() - unseen_since < UNSEEN_S:
                # Requested, but not in this router's view yet, or its host is away.
                await self._view.changed(NO_ROOM_S)
                continue
            if await self._recover_suspects(function, rev):  # (4)
                return
            try:
                started = await self._propose_under_claim(function, rev, turn=True)  # (6)
            except RecordUnavailable as error:
                raise RecordIsAway(
                    f"'{function.id}' is cold, and {error}",
                    retry_after=RETRY_AFTER_S,
                    public=f"'{function.id}' is cold, and nothing can be started now{SEE_WHY}",
                ) from None
            except NoCapacity as refusal:  # (5)
                if refusal.retry_after is None:
                    raise
                self._refusals[function.id, rev] = refusal
                await self._view.changed(NO_ROOM_S)
                continue
            if started is not None:
                awaited, host, unseen_since = started.instance, "", time.monotonic()
            else:
                await self._view.changed(CLAIMED_ELSEWHERE_S)

    def _declares(self, function: Function, rev: str) -> bool:
        """Whether the catalogue still declares a function in this revision."""
        target = self._catalogue.get(function.id)
        return target is not None and (target.function.id, target.revision) == (function.id, rev)

    async def _recover_suspects(self, function: Function, rev: str) -> bool:
        """Probe the instances that just refused a request; return whether one may be chosen.

        One broken connection proves little, and starting a second instance for it would waste memory.
        """
        suspects = self._view.suspected(function.id, rev)
        for instance, pulse in zip(suspects, await asyncio.gather(*map(self._probe.pulse, suspects)), strict=True):
            if pulse is Pulse.WELL:
                self._view.trust(instance.id)
            else:
                self._view.drop(instance.id)
        return bool(self._view.ready(function.id, rev))

    async def _propose_under_claim(
        self, function: Function, rev: str, *, force: bool = False, turn: bool = False
    ) -> Accepted | None:
        """Propose under the claim, with `turn` also where instances in use must be closed; None when another router has
        the claim, or was faster."""
        async with self._claim(function.id) as claimed:
            if not claimed or self._starting(function, rev) or self._view.ready(function.id, rev):
                return None
            waited_s, failed = self._in_flight.waited_s(function.id), self._view.failed(function.id, rev)
            return await self.propose(Ensure(function, force=force, waited_s=waited_s, turn=turn, failed=failed))

    @contextlib.asynccontextmanager
    async def _claim(self, function: str) -> AsyncIterator[bool]:
        """Hold the right to propose a start, with the record read again; False: another router has it."""
        token = secrets.token_hex(8)
        if not await self._registry.claim(function, token, CLAIM_S):
            yield False
            return
        try:
            await self._view.refresh()
            yield True
        finally:
            with contextlib.suppress(RecordUnavailable):
                await self._registry.release(function, token)

    def _starting(self, function: Function, rev: str) -> Instance | None:
        for host in self._view.fleet.hosts.values():
            for instance in host.instances:
                if (instance.function, instance.revision) == (function.id, rev) and instance.is_coming:
                    return instance
        return None

    def _has_left(self, instance: str, host: str) -> bool:
        """Whether the host of an instance is alive and no longer has it, or has it parked."""
        record = self._view.fleet.hosts.get(host)
        return record is not None and all(i.id != instance or i.state in PARKED for i in record.instances)

    def _progress(self, function: Function) -> str:
        """Return the progress of a start as text."""
        for host in self._view.fleet.hosts.values():
            for instance in host.of(function.base_id):
                so_far = self._now() - instance.created
                phase = f" ({instance.phase})" if instance.phase not in ("", instance.state) else ""
                return f"it is {instance.state} on {host.name} since {math.ceil(so_far)} s{phase}"
        unreadable = [
            f"{h.name}: {why}" for h in self._view.fleet.hosts.values() if (why := h.unreadable.get(function.base_id))
        ]
        in_line = [f"it {wait}" for wait in waits(self._view.fleet, function.base_id, self._now())[:1]]
        return "; ".join(unreadable or in_line) or "no host has had room for it"


def _soonest_turn(refusals: Mapping[str, Rejected]) -> str:
    """Return the host on which a function's turn comes first; empty: on none."""
    turns = [(refused.turn_in_s, host) for host, refused in refusals.items() if refused.turn_in_s is not None]
    return min(turns)[1] if turns else ""


def _with_back_off(planned: PlacementPlan, failures: Iterable[Failure], function: str) -> PlacementPlan:
    """Return a plan whose end of the back-off is by the wall clock here; the agent's answer has it by its own clock."""
    retry_at = next((f.retry_at for f in failures if f.function == function), 0.0)
    return replace(planned, retry_at=clock.wall(retry_at) if planned.retry_at and retry_at else 0.0)
