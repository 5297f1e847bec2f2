"""Whether a worker is well, by its health checks, its counters and its CPU time.

Nothing is decided here: a result is an event. A failed check proves little, since a slow worker misses it too; one that
is stuck uses no CPU time.
"""

import asyncio
import contextlib
import enum
import signal
from collections.abc import Callable, Collection

import structlog

from cortex.functions.servers import server_of
from cortex.functions.spec import Engine
from cortex.platform.keys import HostToken
from cortex.platform.record import Instance
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import Prove
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.progress import PROOF_S
from cortex.platform.workers import activity, process
from cortex.platform.workers.probe import Probe

log = structlog.get_logger()

ADOPTION_PROBE_S = 2.0
STUCK_CPU_S = 0.05
"""CPU time between failed health checks that shows that a worker is alive."""


class Examined(enum.Enum):
    """The result of examining a worker of an earlier agent."""

    SERVES = enum.auto()
    """It lists its function, or is silent and may be busy."""
    REFUSES_KEY = enum.auto()
    """It refuses every key this host can derive, or lists no model: it was started under another token."""
    OTHER_MODEL = enum.auto()
    """It lists other models."""


class HealthChecks:
    """Checks the workers of one agent."""

    def __init__(self, probe: Probe, token: HostToken, tell: Callable[[Event], None]) -> None:
        self._probe, self._token, self._tell = probe, token, tell
        self._misses: dict[str, tuple[int, float]] = {}
        """By instance: its consecutive failed checks, and its CPU time at the first of them."""

    async def check(self, instance: Instance) -> None:
        """Check the health of a ready worker, and whether it uses CPU time while the checks fail."""
        served = await self._probe.served_models(instance)
        if served is not None:
            self._misses.pop(instance.id, None)
            return
        if instance.server == "vllm" and await self.end_if_failed(instance):
            return
        busy_s = await asyncio.to_thread(process.cpu_s, instance.pid)
        misses, first_busy_s = self._misses.get(instance.id, (0, busy_s))
        self._misses[instance.id] = (misses + 1, first_busy_s)
        # A second source: a worker that uses CPU time is slow, one that does not is stuck.
        stuck = busy_s - first_busy_s < STUCK_CPU_S
        log.warning("health_missed", function=instance.function, instance=instance.id, misses=misses + 1, stuck=stuck)
        self._tell(events.HealthCheckFailed(instance.id, misses + 1, stuck))

    async def end_if_failed(self, instance: Instance) -> bool:
        """Kill a worker whose API server says that its engine has failed; it may go on saying so for seconds."""
        leader = instance.process
        if leader is None or not await self._probe.fails_health_check(instance):
            return False
        log.warning("engine_failed", function=instance.function, instance=instance.id, pid=instance.pid)
        return process.signal_worker(leader, signal.SIGKILL)

    def forget_misses(self, present: Collection[str]) -> None:
        """Drop the failed checks of instances that do not exist any more."""
        self._misses = {i: m for i, m in self._misses.items() if i in present}

    async def look(self, instance: Instance) -> None:
        """Report whether a worker has requests or connections."""
        seen = await activity.look(instance.url, self._token.worker_keys(instance.id))
        self._tell(events.Looked(instance.id, seen.running, seen.connections))

    async def prove(self, effect: Prove) -> None:
        """Send a silent worker a request of one token, and check for other signs of progress."""
        instance, function = effect.instance, effect.function
        keys = self._token.worker_keys(instance.id)
        tokens = await activity.tokens(instance.url, keys)
        busy_s = await asyncio.to_thread(process.cpu_s, instance.pid)
        answered = await self._probe.responds(instance, server_of(function, instance.server).dialects, PROOF_S)
        # A command may wait for another machine without using CPU time.
        worked = await asyncio.to_thread(process.cpu_s, instance.pid) - busy_s >= STUCK_CPU_S
        worked = worked or function.engine is Engine.COMMAND
        answered = answered or await activity.tokens(instance.url, keys) != tokens
        log.warning(
            "silent_worker_probed", function=function.id, instance=instance.id, answered=answered, worked=worked
        )
        self._tell(events.Proved(instance.id, answered, worked))

    async def examine(self, instance: Instance) -> Examined:
        """Return what a worker of an earlier agent answers.

        One that is silent may be busy. The host must not wait for it: it is watched from now on like any other.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPTION_PROBE_S):
                served = await self._probe.served_models(instance)
                if served is None or instance.name_at_worker in served:
                    return Examined.SERVES
                return Examined.OTHER_MODEL if served else Examined.REFUSES_KEY
        return Examined.SERVES
