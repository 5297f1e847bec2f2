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
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import structlog

from cortex.functions.lifecycle import PARKED
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Accepted, Ensure
from cortex.platform.cancel import cancel_tasks
from cortex.platform.in_flight import InFlight
from cortex.platform.record import FailureKind, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.activation.agents import TIMEOUT_S
from cortex.router.activation.probe import Pulse
from cortex.router.activation.proposer import RETRY_AFTER_S, AnswerLost, Proposer
from cortex.router.activation.waits import room_text, waits
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

log = structlog.get_logger()

CLAIM_S = TIMEOUT_S + 5.0
"""A claim is released in milliseconds, or at the latest after one agent that does not answer, which it must outlast. It
expires if its router dies."""
CLAIMED_ELSEWHERE_S = 0.05
MOST_CLAIMS = 32
"""Functions for which this router takes the claim and reads the record at a time; others wait in order. When a thousand
become cold together, each would need a connection to Redis, of which the client opens a hundred at most."""
NO_ROOM_S = 1.0
UNSEEN_S = 10.0
"""How long a started instance may be missing from the record before it is started again."""


class Declarations(Protocol):
    """The current catalogue."""

    digest: str

    def get(self, name: str) -> Target | None: ...
    async def change(self, timeout_s: float, *others: asyncio.Future[Any]) -> None: ...


class Prober(Protocol):
    """Checks a worker's health."""

    async def pulse(self, instance: Instance) -> Pulse: ...


class Activator:
    """Starts functions on request. It owns the starts; requests may leave at any time."""

    def __init__(
        self,
        view: FleetView,
        registry: Registry,
        proposer: Proposer,
        in_flight: InFlight,
        catalogue: Declarations,
        probe: Prober,
        now: Callable[[], float] = lambda: clock.now(),
    ) -> None:
        """`now` is the time of the view's fleet."""
        self._now = now
        self._view, self._registry, self._proposer, self._in_flight = view, registry, proposer, in_flight
        self._catalogue, self._probe = catalogue, probe
        self._starts: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._refusals: dict[tuple[str, str], NoCapacity] = {}
        self._warming: dict[str, asyncio.Task[None]] = {}
        self._claiming, self._releasing = asyncio.Semaphore(MOST_CLAIMS), asyncio.Semaphore(MOST_CLAIMS)
        self._away: RecordUnavailable | None = None
        self._away_at = 0.0
        """When a claim failed last, with its error: those that waited for their turn at that time fail, too."""

    async def close(self) -> None:
        """End every start that this router drives. Starts on agents continue."""
        await cancel_tasks([*self._starts.values(), *self._warming.values()])

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

    def retry_after_s(self, function: str) -> int:
        """Return in how many seconds a function that waits for memory is ready, by the agents' estimate."""
        return self._proposer.retry_after_s(function)

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
                instance = next(iter(self._view.ready(function.id, rev)), None) or self._view.coming(function.id, rev)
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
                await self._view.wait_for_change(CLAIMED_ELSEWHERE_S)
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
            if not claimed or self._view.coming(function.id, rev):
                return None
            existing = tuple(i.id for i in self._view.of(function.id))
            request = Ensure(function, beside=existing, evict=evict, minimum=not for_request, unused_s=unused_s)
            return await self._proposer.propose(request)

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
            return await self._proposer.propose(Ensure(function, beside=leaving))

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
            starting = self._view.coming(function.id, rev)
            if starting is not None:  # (2)
                self._refusals.pop((function.id, rev), None)
                awaited, unseen_since = starting.id, time.monotonic()
                _, host = self._view.place_of(awaited) or ("", host)
                await self._view.wait_for_change(NO_ROOM_S)
                continue
            failure = self._view.failure(awaited) if awaited else None  # (3)
            if failure is not None:
                awaited = ""
                if failure.kind is FailureKind.ROOM:
                    await self._view.wait_for_change(NO_ROOM_S)
                    continue
                if not failure.served:
                    public = f"'{function.id}' did not start"
                    raise StartFailed(f"{public}: {failure.reason}", public=public + SEE_WHY)
            elif awaited and not self._has_left(awaited, host) and time.monotonic() - unseen_since < UNSEEN_S:
                # Requested, but not in this router's view yet, or its host is away.
                await self._view.wait_for_change(NO_ROOM_S)
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
                await self._view.wait_for_change(NO_ROOM_S)
                continue
            if started is not None:
                awaited, host, unseen_since = started.instance, "", time.monotonic()
            else:
                await self._view.wait_for_change(CLAIMED_ELSEWHERE_S)

    def _declares(self, function: Function, rev: str) -> bool:
        """Whether the catalogue still declares a function in this revision."""
        target = self._catalogue.get(function.id)
        return target is not None and (target.function.id, target.revision) == (function.id, rev)

    async def _recover_suspects(self, function: Function, rev: str) -> bool:
        """Probe the instances that just refused a request; return whether one may be chosen.

        One broken connection proves little, and starting a second instance for it would waste memory.
        """
        suspects = self._view.suspect_instances(function.id, rev)
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
            if not claimed or self._view.coming(function.id, rev) or self._view.ready(function.id, rev):
                return None
            waited_s, failed = self._in_flight.waited_s(function.id), self._view.failed(function.id, rev)
            request = Ensure(function, force=force, waited_s=waited_s, turn=turn, failed=failed)
            return await self._proposer.propose(request)

    @contextlib.asynccontextmanager
    async def _claim(self, function: str) -> AsyncIterator[bool]:
        """Hold the right to propose a start, with the record read again; False: another router has it."""
        token = secrets.token_hex(8)
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as release:
            async with self._claiming:
                if self._away_at > began and self._away is not None:
                    raise self._away
                try:
                    has_claim = await self._registry.claim(function, token, CLAIM_S)
                    if has_claim:
                        release.push_async_callback(self._release, function, token)
                        await self._view.refresh()
                except RecordUnavailable as error:
                    self._away, self._away_at = error, time.monotonic()
                    raise
            yield has_claim

    async def _release(self, function: str, token: str) -> None:
        async with self._releasing:
            with contextlib.suppress(RecordUnavailable):
                await self._registry.release(function, token)

    def _has_left(self, instance: str, host: str) -> bool:
        """Whether the host of an instance is alive and no longer has it, or has it parked."""
        record = self._view.fleet.hosts.get(host)
        return record is not None and all(i.id != instance or i.state in PARKED for i in record.instances)

    def _progress(self, function: Function) -> str:
        """Return the progress of a start as text."""
        for host in self._view.fleet.hosts.values():
            for instance in host.of(function.base_id):
                so_far = self._now() - instance.created
                step = instance.phase or room_text(instance, host, self._now())
                phase = f" ({step})" if step not in ("", instance.state) else ""
                return f"it is {instance.state} on {host.name} since {math.ceil(so_far)} s{phase}"
        unreadable = [
            f"{h.name}: {why}" for h in self._view.fleet.hosts.values() if (why := h.unreadable.get(function.base_id))
        ]
        in_line = [f"it {wait}" for wait in waits(self._view.fleet, function.base_id, self._now())[:1]]
        return "; ".join(unreadable or in_line) or "no host has had room for it"
