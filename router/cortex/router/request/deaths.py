"""Handle broken connections to workers: whether the worker died, whether to send the request again, and which requests
to refuse because they kill workers.

Deaths are shared with the other routers through the record, only when they happen.
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
from cortex.platform.cancel import cancel_tasks
from cortex.platform.record import Death, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.activation.probe import Pulse
from cortex.router.decision_log import DecisionLog, RouterDecision
from cortex.router.errors import Suspected
from cortex.router.fleet_view import FleetView
from cortex.router.request.open_requests import OpenRequests
from cortex.router.request.suspects import REFUSED_S, Fingerprint, Suspects
from cortex.router.request.upstream import Broken, EngineFailed, NotReached, NotRead

log = structlog.get_logger()

SAYS_WITHIN_S = 2.0
"""How long to wait for the agent's report on a lost worker."""
MOST_MARKS_HEARD = 2


class Prober(Protocol):
    """Probes whether a worker is alive."""

    async def pulse(self, instance: Instance) -> Pulse: ...


class End(enum.Enum):
    """The worker's state after a broken connection."""

    LIVES = enum.auto()
    """Only the connection broke."""
    STOPPED = enum.auto()
    """Its agent ended it on purpose: it was idle, cooled, evicted, or its host is drained."""
    BEFORE = enum.auto()
    """It died, but had not read the request, or its engine may have died before: another cause is likely."""
    DIED = enum.auto()
    HUNG = enum.auto()
    """Its agent stopped it because it made no progress."""


class Loss(Struct, frozen=True):
    """A request lost its worker."""

    end: End
    open_requests: int = 1
    """Those at the worker, including this one."""
    later: bool = False
    """Another request had waited for an answer when this one was sent."""

    @property
    def deadly(self) -> bool:
        """Whether the request may be the cause."""
        return self.end is End.DIED or (self.end is End.HUNG and not self.later)


def may_replay(loss: Loss, deaths: int) -> bool:
    """Whether to send a request to another worker; `deaths` counts the workers that it lost, including this one:

    (1) the worker lives, or was stopped on purpose: yes;
    (2) the worker hung and the request may be the cause: no, the next one may hang too;
    (3) the worker had read the request and had no other: no, it is the likely cause;
    (4) there were other requests, it was sent after the worker hung, or it was not read: once.
    """
    if loss.end in (End.LIVES, End.STOPPED):  # (1)
        return True
    if (loss.end is End.HUNG and not loss.later) or (loss.end is End.DIED and loss.open_requests == 1):  # (2), (3)
        return False
    return deaths < 2  # (4)


class Deaths:
    """The deaths that one router worker observes or receives."""

    def __init__(
        self, view: FleetView, probe: Prober, registry: Registry, decision_log: DecisionLog, router: str
    ) -> None:
        self._view, self._probe, self._registry, self._decisions = view, probe, registry, decision_log
        self._router = router
        self._tasks: set[asyncio.Task[Loss]] = set()
        self.open_requests, self.suspects = OpenRequests(), Suspects()
        view.on_death = self._on_shared_death

    async def close(self) -> None:
        """Cancel all investigations."""
        await cancel_tasks(self._tasks)

    def admit(self, fingerprint: Fingerprint) -> None:
        """Raise Suspected for a request that workers keep dying of."""
        wait_s = self.suspects.refused_for(fingerprint.marks, time.monotonic())
        if wait_s:
            log.warning(
                "suspect_refused", function=fingerprint.function, request=fingerprint.request, who=fingerprint.who
            )
            raise Suspected(fingerprint.function, retry_after=math.ceil(wait_s))

    def investigate(
        self, fingerprint: Fingerprint, instance: Instance, broken: Broken, *, earlier: int = 0
    ) -> "asyncio.Task[Loss]":
        """Investigate why a request lost its worker, after `earlier` deaths. The task continues if the client
        disconnects."""
        open_requests = self.open_requests.lose(instance.id)  # now, before the other requests end too
        later = self.open_requests.came_later(instance.id, broken.sent_at)
        task = asyncio.create_task(self._investigate(fingerprint, instance, broken, open_requests, later, earlier))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _investigate(
        self,
        fingerprint: Fingerprint,
        instance: Instance,
        broken: Broken,
        open_requests: int,
        later: bool,
        earlier: int,
    ) -> Loss:
        """Return the loss, and count it against the request. An engine that reports its death may have died before the
        request; after two in a row the request is the likely cause."""
        end = await self._end(instance, broken)
        innocent = isinstance(broken, NotRead) or (isinstance(broken, EngineFailed) and not earlier)
        if innocent and end is End.DIED:
            end = End.BEFORE
        loss = Loss(end, open_requests, later)
        if loss.deadly:
            await self._strike(fingerprint, instance.id, loss)
        return loss

    async def _end(self, instance: Instance, broken: Broken) -> End:
        """Return the worker's state after a broken connection, within PROBE_S plus SAYS_WITHIN_S:

        (1) the request never reached the worker, so it is not the cause;
        (2) the agent or the worker itself reports the end;
        (3) the worker is alive, or may be;
        (4) the worker is gone: wait for the agent's report, which may be dead too.
        """
        if isinstance(broken, NotReached):  # (1)
            return End.LIVES
        if (end := self._reported_end(instance.id)) is not None:  # (2)
            return end
        if isinstance(broken, EngineFailed):
            return End.DIED
        if await self._probe.pulse(instance) is not Pulse.GONE:  # (3)
            self.open_requests.reset(instance.id)
            return End.LIVES
        deadline = time.monotonic() + SAYS_WITHIN_S  # (4)
        while (end := self._reported_end(instance.id)) is None and (left_s := deadline - time.monotonic()) > 0:
            await self._view.wait_for_change(left_s)
        return end or End.DIED

    def _reported_end(self, instance: str) -> End | None:
        """Return the agent's report of a worker's end; None without one."""
        failure = self._view.failure(instance)
        if failure is not None:
            return End.HUNG if failure.hung else End.DIED
        placed = self._view.instance(instance)
        if placed is not None and placed[1].state in (State.STOPPING, State.RECLAIMING):
            return End.STOPPED
        return None

    async def _strike(self, fingerprint: Fingerprint, instance: str, loss: Loss) -> None:
        """Count a death against a request, log it and share it with the other routers."""
        alone, now, others = loss.open_requests == 1, time.monotonic(), loss.open_requests - 1
        for mark in fingerprint.marks:
            self.suspects.strike(mark, alone=alone, now=now)
        refused = self.suspects.refused_for(fingerprint.marks, now) > 0
        log.warning(
            "worker_death",
            function=fingerprint.function,
            instance=instance,
            request=fingerprint.request,
            who=fingerprint.who,
            others=others,
            refused=refused,
        )
        end = "made no progress and was stopped" if loss.end is End.HUNG else "died"
        why = f"it was {'alone' if alone else f'with {others} others'} in flight on a worker that {end}"
        self._decisions.note(
            RouterDecision.SUSPECTED if refused else RouterDecision.DEATH,
            fingerprint.function,
            instance=instance,
            request=fingerprint.request,
            why=f"{why}; requests like it are refused for {REFUSED_S:.0f} s" if refused else why,
            inputs={"key": fingerprint.who or fingerprint.key, "others": others},
        )
        with contextlib.suppress(RecordUnavailable):
            death = Death(router=self._router, marks=fingerprint.marks, alone=alone)
            await self._registry.share_death(secrets.token_hex(8), death)

    def _on_shared_death(self, death: Death) -> None:
        for mark in death.marks[:MOST_MARKS_HEARD]:
            self.suspects.strike(mark, alone=death.alone, now=time.monotonic())
