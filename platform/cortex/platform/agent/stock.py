"""The weights on an agent's host: listed, found for a start, removed.

They are listed at an interval and after every change; fetches that no declared function needs are cancelled.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.functions.variants import with_adapters
from cortex.platform.agent_messages import Remove, Removed, Stored
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.scheduling import events
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.workers.supervisor import Supervisor

STOCK_S = 20.0
"""Interval of listing the weights on this host: an operator may add some by hand."""


class Stock:
    """The weights on one host."""

    def __init__(
        self,
        settings: Settings,
        supervisor: Supervisor,
        scheduler: Scheduler,
        tell: Callable[[Event], None],
        profiles_due: asyncio.Event,
    ) -> None:
        """`profiles_due` is set when the weights have changed."""
        self._own, self._cache = settings.agent, Path(settings.agent.cache_dir)
        self._supervisor, self._scheduler = supervisor, scheduler
        self._tell, self._profiles_due = tell, profiles_due
        self.due = asyncio.Event()
        """Set it to have the weights listed at once."""
        self._digest = ""
        """Digest of the catalogue for which unneeded fetches were cancelled."""
        self._fetching: set[str] = set()

    async def run(self) -> None:
        """List the weights at every interval, and on every change."""
        while True:
            await self._take()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOCK_S):
                    await self.due.wait()

    async def _take(self) -> None:
        """List the weights on this host, and cancel fetches that no declared function needs."""
        self.due.clear()
        declared = self._scheduler.catalogue().values()
        sizes = await disk.sizes(self._supervisor.looks, declared, self._cache)
        if sizes != self._scheduler.record().weights:
            self._tell(events.HostRead(weights=sizes))
            self._profiles_due.set()
        if (digest := self._scheduler.record().catalogue) != self._digest:
            with contextlib.suppress(RedisError, NoAnswer):
                await self._supervisor.fetches.keep_only(declared)
                self._digest = digest

    def look(self) -> None:
        """Have the weights listed if a fetch has ended."""
        fetching = {i.id for i in self._scheduler.record().instances if i.state is State.FETCHING}
        if self._fetching - fetching:
            self.due.set()
        self._fetching = fetching

    async def weights_of(self, function: Function) -> LocalWeights | None:
        """Return a function's weights on this host, or None if they or its adapters are to be fetched. Raises NoAnswer,
        and WeightsUnavailable, also for a path outside the weight roots."""
        local = await disk.weights(self._supervisor.looks, function, self._cache, self._own.weight_roots)
        if local is None or not function.adapters:
            return local
        local, missing = await disk.with_adapters(
            self._supervisor.looks, function, local, self._cache, self._own.weight_roots
        )
        return None if missing else local

    async def entries(self) -> list[Stored]:
        """Return all weights on this host. Raises NoAnswer."""
        declared, running = with_adapters(self._scheduler.catalogue().values()), self._scheduler.started_from()
        return await disk.inventory(self._supervisor.looks, self._cache, declared, running)

    async def remove(self, request: Remove) -> Removed:
        """Remove stored weights that nothing uses. Raises NoAnswer."""
        running = [f.source for f in await self._supervisor.fetches.all(()) if f.alive]
        removed = await disk.remove(self._supervisor.looks, self._cache, await self.entries(), request, running)
        self.due.set()
        return removed
