"""Holds requests while a function comes up, and sees to it that exactly one instance is started.

In this router all waiters of a function share one `_Start`; between routers a claim in Redis, held for
milliseconds, gives one of them the right to propose. Whoever has the claim reads the record again before it
asks an agent, and the agent writes the record before it answers: so the next one finds the start that was
made. The load itself belongs to the agent. Nobody's disconnect ends it.

A start is of one revision. Who waits holds a name, and looks it up again whenever the catalogue changes: a start of
what is not declared any more ends without an answer.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import structlog
from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, LIVE
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Accepted, Ensure, PlacementPlan, Rejected
from cortex.platform.api_keys import Priority
from cortex.platform.cancel import cancelled
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Failure, FailureKind, Fleet, Instance, use
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.placement import Need, NoRoom, When, misfit, need, place
from cortex.router.activation.agents import TIMEOUT_S, Agents, AgentUnavailable, AgentUnreachable
from cortex.router.activation.load_balancing import considered, hosts_to_ask, why_nowhere
from cortex.router.activation.waits import ready_in_s, waits
from cortex.router.decision_log import DecisionLog
from cortex.router.errors import SEE_WHY, NoCapacity, NotReadyInTime, QueueFull, RecordIsAway, RequestError, StartFailed
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.request.probe import Pulse

log = structlog.get_logger()

CLAIM_S = TIMEOUT_S + 5.0
"""A claim is released in milliseconds, and after one agent that does not answer at the latest: it must outlast that. It
expires for a router that died holding it."""
PROPOSE_S = 3.0
"""After so long no further host is asked under the same claim."""
SLOW_S = 30.0
"""How long an agent that did not answer comes after all others."""
CLAIMED_ELSEWHERE_S = 0.05
NO_ROOM_S = 1.0
UNSEEN_S = 10.0
"""How long a started instance may be missing from the record before it is started again."""
RETRY_AFTER_S = 5
MOST_RETRY_AFTER_S = 3600


class Declarations(Protocol):
    """The catalogue as it stands."""

    digest: str

    def get(self, name: str) -> Target | None: ...
    async def change(self, timeout_s: float, *others: asyncio.Future[Any]) -> None: ...


class Prober(Protocol):
    """Asks a worker how it is."""

    async def pulse(self, instance: Instance) -> Pulse: ...


class AnswerLost(NoCapacity):
    """An agent did not answer in time. It may have started an instance: the record must be read before the next host
    is asked."""


class Activator:
    """Brings functions up. `run()` owns the starts; requests come and go."""

    def __init__(
        self,
        view: FleetView,
        registry: Registry,
        agents: Agents,
        flights: InFlight,
        directory: Declarations,
        probe: Prober,
        receipts: DecisionLog | None = None,
    ) -> None:
        self._receipts = receipts or DecisionLog("")
        self._view, self._registry, self._agents, self._flights = view, registry, agents, flights
        self._directory, self._probe = directory, probe
        self._starts: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._slow: dict[str, float] = {}

    async def close(self) -> None:
        """End every start this router drives. What the agents have begun goes on."""
        await cancelled(self._starts.values())

    @contextlib.contextmanager
    def in_queue(self, function: Function, priority: Priority = Priority.NORMAL) -> Iterator[None]:
        """Count as one that waits for a function. Raises QueueFull."""
        waiting = self._flights.waiting_for(function.id) + self._view.waiting_elsewhere(function.id)
        if waiting >= priority.share(function.queue):
            why = f"{waiting} requests wait for '{function.id}' already"
            raise QueueFull(why, retry_after=self._retry_after(function.id))
        with self._flights.waiting(function.id):
            yield

    async def wait_until_ready(self, target: Target, timeout_s: float) -> None:
        """Return once an instance is ready, which may be gone again when the caller looks, or the catalogue has
        changed, so that the caller looks its name up again. The caller is `in_queue`.

        Raises NotReadyInTime, NoCapacity, StartFailed or RecordIsAway.
        """
        deadline = time.monotonic() + timeout_s
        start = self._joined(target)
        await self._directory.change(timeout_s, start)
        if not start.done():
            if time.monotonic() >= deadline:
                raise self.late(target.function)
            return
        if start.cancelled():
            raise NotReadyInTime("this router is stopping", retry_after=1)
        start.result()

    def late(self, function: Function) -> NotReadyInTime:
        """Return what is raised when a function's start clock has run out."""
        public = f"'{function.id}' was not ready after {function.start_timeout_s:g} s"
        return NotReadyInTime(
            f"{public}: {self._progress(function)}",
            retry_after=self._retry_after(function.id),
            public=public + SEE_WHY,
        )

    async def ensure(self, find: Callable[[], Target], *, force: bool = False) -> str:
        """Return an instance that is up or coming, anywhere; have one started when there is none. `find` looks the
        name up: the catalogue may change meanwhile.

        Raises Refusal.
        """
        deadline = time.monotonic() + UNSEEN_S
        retry = True
        try:
            while time.monotonic() < deadline:
                target = find()
                function, rev = target.function, target.revision
                there = next(iter(self._view.ready(function.id, rev)), None) or self._coming(function, rev)
                if there is not None:
                    return there.id
                if await self._recovered(function, rev):
                    continue
                try:
                    going = await self._claimed(function, rev, force=force)
                except AnswerLost:
                    if not retry:
                        raise
                    retry, deadline = False, time.monotonic() + UNSEEN_S
                    continue
                if going is not None:
                    return going.instance
                await self._view.changed(CLAIMED_ELSEWHERE_S)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=RETRY_AFTER_S) from None
        raise NotReadyInTime(f"another router keeps the claim on '{find().function.id}'", retry_after=RETRY_AFTER_S)

    async def add(self, target: Target, *, minimum: bool) -> Accepted | None:
        """Have one more instance started beside those that serve: for the function's `min`, or into free room; None
        when one is coming already, or another router is at it. Raises Refusal or RecordAway.
        """
        function, rev = target.function, target.revision
        async with self._claim(function.id) as claimed:
            if not claimed or self._coming(function, rev):
                return None
            beside = tuple(i.id for h in self._view.fleet.hosts.values() for i in h.of(function.id))
            return await self.propose(Ensure(function, beside=beside, evict=minimum, minimum=minimum))

    async def propose(self, asked: Ensure) -> Accepted:
        """Have an instance started on the first host that takes it, whatever others have.

        Raises Refusal; AnswerLost when an agent may have started one without saying so.
        """
        function = asked.function
        wanted = need(function, None)
        fleet = self._view.fleet
        usage = use(fleet)
        order = self._slow_last(hosts_to_ask(wanted, function, fleet, usage, clock.now(), asked.beside))
        refusals: dict[str, Rejected] = {}
        taker = await self._taker(order, replace(asked, turn=asked.turn and len(order) == 1), refusals)
        if taker is None and asked.turn and len(order) > 1 and (host := _soonest_turn(refusals)):
            taker = await self._taker([host], asked, refusals)  # a host with room goes before a turn
        if taker is None:
            refusal = self._refusal(function, wanted, refusals)
            self._receipts.note_once("nowhere", function.id, why=refusal.message)
            raise refusal
        host, going = taker
        refusals.pop(host, None)
        self._note_proposed(function, wanted, fleet, refusals, host, going)
        return going

    async def _taker(
        self, order: Iterable[str], asked: Ensure, refusals: dict[str, Rejected]
    ) -> tuple[str, Accepted] | None:
        """Return the first host that takes a function, and its answer; add what the others say to `refusals`.

        Raises AnswerLost.
        """
        hosts, began = self._view.fleet.hosts, time.monotonic()
        for host in order:
            if host not in hosts:
                continue
            try:
                answer = await self._agents.ensure(hosts[host], asked)
            except AgentUnavailable as error:
                log.warning("agent_away", host=host, why=str(error))
                self._slow[host] = time.monotonic() + SLOW_S
                if not isinstance(error, AgentUnreachable) or time.monotonic() - began > PROPOSE_S:
                    public = f"no room for '{asked.function.id}' now"
                    why = f"{public}: {host}: {error}"
                    raise AnswerLost(why, retry_after=RETRY_AFTER_S, public=public + SEE_WHY) from None
                refusals[host] = Rejected(str(error), When.LATER)
                continue
            if isinstance(answer, Accepted):
                return host, answer
            refusals[host] = answer
        return None

    def _slow_last(self, hosts: list[str]) -> list[str]:
        """Return the hosts with those last whose agents did not answer a moment ago, the latest at the end."""
        now = time.monotonic()
        self._slow = {host: until for host, until in self._slow.items() if until > now}
        return sorted(hosts, key=lambda host: self._slow.get(host, 0.0))

    def _note_proposed(
        self,
        function: Function,
        wanted: Need,
        fleet: Fleet,
        refusals: Mapping[str, Rejected],
        host: str,
        going: Accepted,
    ) -> None:
        """Leave a receipt: which hosts there were, what each was good for, and who said no before this one."""
        numbers = {
            "considered": considered(wanted, function, fleet, use(fleet), clock.now()),
            "said_no": {name: refused.reason for name, refused in refusals.items()},
            "waiting": self._flights.waiting_for(function.id),
        }
        why = "the best of the hosts that take it" if not refusals else "the best of those that did not refuse"
        self._receipts.note("proposed", function.id, host=host, instance=going.instance, why=why, numbers=numbers)

    async def plan(self, function: Function) -> tuple[PlacementPlan | None, dict[str, str]]:
        """Return what a start would do, and why the hosts that come before it, or all, will not have it."""
        wanted = need(function, None)
        fleet = self._view.fleet
        refusals: dict[str, str] = {}
        usage, now = use(fleet), clock.now()
        for host in hosts_to_ask(wanted, function, fleet, usage, now):
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
            guess = misfit(wanted, record) or place(wanted, record, usage, now, cordoned=name in fleet.cordoned)
            if isinstance(guess, NoRoom):
                refusals.setdefault(name, guess.reason)
        return None, refusals

    def _refusal(self, function: Function, wanted: Need, refusals: Mapping[str, Rejected]) -> RequestError:
        """Put the agents' answers into one: crashing beats full, full beats never."""
        if not refusals:
            fleet = self._view.fleet
            why = why_nowhere(wanted, fleet, use(fleet), clock.now())
            public = f"no host can run '{function.id}'"
            return NoCapacity(
                f"{public}: {why}",
                public=public + SEE_WHY,
                # A cordon may be lifted and a host may join: that can be waited for.
                retry_after=RETRY_AFTER_S if fleet.cordoned or not fleet.hosts else None,
            )
        said = "; ".join(f"{host}: {refused.reason}" for host, refused in refusals.items())
        public = f"'{function.id}' cannot be started"
        if any(r.failure for r in refusals.values()):
            return StartFailed(f"{public}: {said}", public=public + SEE_WHY)
        if all(r.when is When.NEVER for r in refusals.values()):
            return StartFailed(f"{public}: {said}", public=public + SEE_WHY)
        public = f"no room for '{function.id}' now"
        return NoCapacity(f"{public}: {said}", retry_after=self._retry_after(function.id), public=public + SEE_WHY)

    def _retry_after(self, function: str) -> int:
        """Return after how many seconds a function that waits for memory is ready, by the agents' own estimate."""
        ready = ready_in_s(self._view.fleet, function, clock.now())
        return RETRY_AFTER_S if ready is None else min(max(1, math.ceil(ready)), MOST_RETRY_AFTER_S)

    def _joined(self, target: Target) -> asyncio.Task[None]:
        """Return the start of this revision that is under way in this router, or begin it."""
        key = (target.function.id, target.revision)
        start = self._starts.get(key)
        if start is None or start.done():
            start = self._starts[key] = asyncio.create_task(self._start(target))
            start.add_done_callback(lambda t: self._ended(key, t))
        return start

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._starts.get(key) is task:
            del self._starts[key]
        if not task.cancelled():
            task.exception()  # every waiter may have left: nobody else would look at it

    async def _start(self, target: Target) -> None:
        """Drive one start to its end, as long as requests wait for it and it is of what is declared:

        (1) an instance is ready: done;
        (2) one is on its way: wait for it;
        (3) the one we waited for failed: that is the answer, unless only its place was lost, or it had been
            ready (we saw it before its agent saw it die), or its host knows nothing of it any more (its agent
            began anew): then another is proposed;
        (4) one that refused a request a moment ago is well: done;
        (5) no host has room now: ask again as soon as something changes;
        (6) else propose one, under the claim.
        """
        function, rev = target.function, target.revision
        awaited, host, unseen_since = "", "", 0.0
        while self._flights.waiting_for(function.id) and self._declares(function, rev):
            if self._view.ready(function.id, rev):  # (1)
                return
            coming = self._coming(function, rev)
            if coming is not None:  # (2)
                awaited, unseen_since = coming.id, time.monotonic()
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
            elif awaited and not self._forgotten(awaited, host) and time.monotonic() - unseen_since < UNSEEN_S:
                # Asked for, but not in our view yet, or its host is away just now.
                await self._view.changed(NO_ROOM_S)
                continue
            if await self._recovered(function, rev):  # (4)
                return
            try:
                going = await self._claimed(function, rev, turn=True)  # (6)
            except RecordUnavailable as error:
                raise RecordIsAway(
                    f"'{function.id}' is cold, and {error}",
                    retry_after=RETRY_AFTER_S,
                    public=f"'{function.id}' is cold, and nothing can be started now{SEE_WHY}",
                ) from None
            except NoCapacity as refusal:  # (5)
                if refusal.retry_after is None:
                    raise
                await self._view.changed(NO_ROOM_S)
                continue
            if going is not None:
                awaited, host, unseen_since = going.instance, "", time.monotonic()
            else:
                await self._view.changed(CLAIMED_ELSEWHERE_S)

    def _declares(self, function: Function, rev: str) -> bool:
        """Whether the catalogue still declares a function in this revision."""
        target = self._directory.get(function.id)
        return target is not None and (target.function.id, target.revision) == (function.id, rev)

    async def _recovered(self, function: Function, rev: str) -> bool:
        """Try those instances again that refused a request a moment ago; return whether one may be chosen.

        One broken connection says little of an instance, and a second one beside it would be one too many.
        """
        suspects = self._view.suspected(function.id, rev)
        for instance, pulse in zip(suspects, await asyncio.gather(*map(self._probe.pulse, suspects)), strict=True):
            if pulse is Pulse.WELL:
                self._view.trust(instance.id)
            else:
                self._view.drop(instance.id)
        return bool(self._view.ready(function.id, rev))

    async def _claimed(
        self, function: Function, rev: str, *, force: bool = False, turn: bool = False
    ) -> Accepted | None:
        """Propose under the claim, with `turn` also where instances in use have to be closed for it; None when another
        router has it, or has been faster."""
        async with self._claim(function.id) as claimed:
            if not claimed or self._coming(function, rev) or self._view.ready(function.id, rev):
                return None
            waited_s = self._flights.waited_s(function.id)
            return await self.propose(Ensure(function, force=force, waited_s=waited_s, turn=turn))

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

    def _coming(self, function: Function, rev: str) -> Instance | None:
        for host in self._view.fleet.hosts.values():
            for instance in host.instances:
                if (instance.function, instance.revision) == (function.id, rev) and instance.state in COMING:
                    return instance
        return None

    def _forgotten(self, instance: str, host: str) -> bool:
        """Whether the host that had an instance is there and has it no more."""
        return host in self._view.fleet.hosts and self._view.placed(instance) is None

    def _progress(self, function: Function) -> str:
        """Say how far a start has come."""
        for host in self._view.fleet.hosts.values():
            for instance in host.of(function.id):
                if instance.state in LIVE:
                    so_far = clock.now() - instance.created
                    phase = f" ({instance.phase})" if instance.phase not in ("", instance.state) else ""
                    return f"it is {instance.state} on {host.name} since {math.ceil(so_far)} s{phase}"
        unreadable = [
            f"{h.name}: {why}" for h in self._view.fleet.hosts.values() if (why := h.unreadable.get(function.id))
        ]
        in_line = [f"it {wait}" for wait in waits(self._view.fleet, function.id, clock.now())[:1]]
        return "; ".join(unreadable or in_line) or "no host has had room for it"


def _soonest_turn(refusals: Mapping[str, Rejected]) -> str:
    """Return the host on which a function's turn comes first; empty: on none."""
    turns = [(refused.turn_in_s, host) for host, refused in refusals.items() if refused.turn_in_s is not None]
    return min(turns)[1] if turns else ""


def _with_back_off(planned: PlacementPlan, failures: Iterable[Failure], function: str) -> PlacementPlan:
    """Return a plan whose end of the back-off is by the wall clock here; the agent's answer has it by its own clock."""
    retry_at = next((f.retry_at for f in failures if f.function == function), 0.0)
    return replace(planned, retry_at=clock.wall(retry_at) if planned.retry_at and retry_at else 0.0)
