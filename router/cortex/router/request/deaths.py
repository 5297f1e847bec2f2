"""What follows from a connection to a worker that broke: whether the worker died, whether the request may be sent
again, and which requests are refused because workers die of them.

Deaths are shared with the other routers through the record, when they happen and never else.
"""

import asyncio
import contextlib
import enum
import math
import secrets
import time
from typing import Protocol

import structlog
from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.cancel import cancelled
from cortex.platform.record import Death, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.decision_log import DecisionLog
from cortex.router.errors import Suspected
from cortex.router.fleet_view import FleetView
from cortex.router.request.open_requests import OpenRequests
from cortex.router.request.probe import Pulse
from cortex.router.request.suspects import REFUSED_S, Fingerprint, Suspects
from cortex.router.request.upstream import Broken, EngineFailed, NotReached, NotRead

log = structlog.get_logger()

SAYS_WITHIN_S = 2.0
"""How long the agent may take to say what became of a worker that is gone."""
MOST_MARKS_HEARD = 2


class Prober(Protocol):
    """Finds out whether a worker is there."""

    async def pulse(self, instance: Instance) -> Pulse: ...


class End(enum.Enum):
    """What became of the worker."""

    LIVES = enum.auto()
    """Only the connection broke."""
    STOPPED = enum.auto()
    """Its agent ended it on purpose: it was idle, cooled, evicted, or its host is drained."""
    BEFORE = enum.auto()
    """It died, but it had not read the request, or its engine may have died before: another reason is likely."""
    DIED = enum.auto()
    HUNG = enum.auto()
    """Its agent stopped it because it made no progress."""


class Loss(Struct, frozen=True):
    """A request lost its worker."""

    end: End
    aboard: int = 1
    """How many requests were at the worker, this one included."""
    later: bool = False
    """The worker owed another request an answer when this one was sent."""

    @property
    def deadly(self) -> bool:
        """Whether the request may be the cause."""
        return self.end is End.DIED or (self.end is End.HUNG and not self.later)


def may_replay(loss: Loss, deaths: int) -> bool:
    """Whether a request may be sent to another worker; `deaths` counts those that it lost, this one included:

    (1) the worker lives, or was stopped on purpose: yes;
    (2) the worker hung and the request may be why: no, the next one would hang for it, too;
    (3) the request had been read and was alone aboard: no, it is the likely cause;
    (4) it was in company, came after the worker hung, or was not read: once.
    """
    if loss.end in (End.LIVES, End.STOPPED):  # (1)
        return True
    if (loss.end is End.HUNG and not loss.later) or (loss.end is End.DIED and loss.aboard == 1):  # (2), (3)
        return False
    return deaths < 2  # (4)


class Deaths:
    """The deaths that one router worker sees or hears of."""

    def __init__(self, view: FleetView, probe: Prober, registry: Registry, receipts: DecisionLog, router: str) -> None:
        self._view, self._probe, self._registry, self._receipts = view, probe, registry, receipts
        self._router = router
        self._tasks: set[asyncio.Task[Loss]] = set()
        self.aboard, self.suspects = OpenRequests(), Suspects()
        view.on_death = self._heard

    async def close(self) -> None:
        """Look into no death any more."""
        await cancelled(self._tasks)

    def admit(self, passenger: Fingerprint) -> None:
        """Let a request through, unless workers keep dying of it. Raises Suspected."""
        wait_s = self.suspects.refused_for(passenger.marks, time.monotonic())
        if wait_s:
            log.warning("suspect_refused", function=passenger.function, request=passenger.request, who=passenger.who)
            raise Suspected(passenger.function, retry_after=math.ceil(wait_s))

    def lost(
        self, passenger: Fingerprint, instance: Instance, broken: Broken, *, earlier: int = 0
    ) -> "asyncio.Task[Loss]":
        """Look into why a request lost its worker, after `earlier` others that died. This goes on when the request's
        client leaves meanwhile."""
        aboard = self.aboard.lose(instance.id)  # now: the others that were aboard leave, too
        later = self.aboard.came_later(instance.id, broken.sent_at)
        task = asyncio.create_task(self._look_into(passenger, instance, broken, aboard, later, earlier))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look_into(
        self, passenger: Fingerprint, instance: Instance, broken: Broken, aboard: int, later: bool, earlier: int
    ) -> Loss:
        """An engine that answers that it is dead may have died of this request or before it. A request that two
        engines in a row answer so is the likely cause."""
        end = await self._end(instance, broken)
        innocent = isinstance(broken, NotRead) or (isinstance(broken, EngineFailed) and not earlier)
        if innocent and end is End.DIED:
            end = End.BEFORE
        loss = Loss(end, aboard, later)
        if loss.deadly:
            await self._strike(passenger, instance.id, loss)
        return loss

    async def _end(self, instance: Instance, broken: Broken) -> End:
        """Return what became of the worker behind a broken connection, after PROBE_S and SAYS_WITHIN_S at most:

        (1) the request never reached it, so it is not the cause of whatever happened;
        (2) the agent says what happened, or the worker itself does;
        (3) the worker is there, or may be;
        (4) the worker is gone: the agent says why, or is dead, too.
        """
        if isinstance(broken, NotReached):  # (1)
            return End.LIVES
        if (end := self._recorded(instance.id)) is not None:  # (2)
            return end
        if isinstance(broken, EngineFailed):
            return End.DIED
        if await self._probe.pulse(instance) is not Pulse.GONE:  # (3)
            self.aboard.recovered(instance.id)
            return End.LIVES
        deadline = time.monotonic() + SAYS_WITHIN_S  # (4)
        while (end := self._recorded(instance.id)) is None and (left_s := deadline - time.monotonic()) > 0:
            await self._view.changed(left_s)
        return end or End.DIED

    def _recorded(self, instance: str) -> End | None:
        """Return what the agent says of a worker's end; None: nothing yet."""
        failure = self._view.failure(instance)
        if failure is not None:
            return End.HUNG if failure.hung else End.DIED
        placed = self._view.instance(instance)
        if placed is not None and placed[1].state in (State.STOPPING, State.RECLAIMING):
            return End.STOPPED
        return None

    async def _strike(self, passenger: Fingerprint, instance: str, loss: Loss) -> None:
        """Count a death against a request, name it in the log and in a receipt, and tell the other routers."""
        alone, now, others = loss.aboard == 1, time.monotonic(), loss.aboard - 1
        for mark in passenger.marks:
            self.suspects.strike(mark, alone=alone, now=now)
        refused = self.suspects.refused_for(passenger.marks, now) > 0
        log.warning(
            "aboard_a_death",
            function=passenger.function,
            instance=instance,
            request=passenger.request,
            who=passenger.who,
            others=others,
            refused=refused,
        )
        end = "made no progress and was stopped" if loss.end is End.HUNG else "died"
        why = f"it was {'alone' if alone else f'with {others} others'} aboard a worker that {end}"
        self._receipts.note(
            "suspected" if refused else "aboard",
            passenger.function,
            instance=instance,
            request=passenger.request,
            why=f"{why}; requests like it are refused for {REFUSED_S:.0f} s" if refused else why,
            numbers={"key": passenger.who or passenger.key, "others": others},
        )
        with contextlib.suppress(RecordUnavailable):
            death = Death(router=self._router, marks=passenger.marks, alone=alone)
            await self._registry.share_death(secrets.token_hex(8), death)

    def _heard(self, death: Death) -> None:
        for mark in death.marks[:MOST_MARKS_HEARD]:
            self.suspects.strike(mark, alone=death.alone, now=time.monotonic())
