"""The fetches a host's agent has under way: which instances wait for which download, and when nobody does any more.

A download is a job of the host's queue and belongs to its job worker: it outlives the agent. Here it is asked for,
followed, and called off when the last instance that waited for it is given up, unless somebody asked for it by name
(`prefetch`). An agent that stops calls nothing off: the next one joins.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol, TypeVar

import redis
import structlog

from cortex.functions.sources import BadSource, Demo, Repo, source_of
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Fetching
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.record import Instance
from cortex.platform.record_keys import RecordKeys
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.weights import store as weights
from cortex.platform.weights.jobs import JobFailed, JobLost, Jobs

log = structlog.get_logger()
T = TypeVar("T")

POLL_FIRST_S, POLL_MOST_S = 0.03, 0.5
TOLD_EVERY_S = 1.0
"""Every progress that is told rings all routers."""
WORKER_WAIT_S = 15.0
"""How long a queued job may wait for a job worker to show itself."""
RECORD_AWAY_S = 120.0
"""How long the record may be away before a start that waits for weights has failed."""
ASKED_AGAIN = 3
"""How often a job that was lost or stopped by others is asked for again."""


QUEUE_S = 10.0
"""How long the job queue may take to answer: its client bounds reads, but not the look-up of its server's name."""


class Tell(Protocol):
    """Tells the agent what happened."""

    def __call__(self, step: Callable[[Scheduler, float], object]) -> None: ...


class Fetches:
    """One agent's."""

    def __init__(self, settings: Settings, tell: Tell, looks: BlockingCalls) -> None:
        self._host, self._cache = settings.host_name, Path(settings.agent.cache_dir)
        self._looks = looks
        self._calls = BlockingCalls(QUEUE_S, hint="is Redis reachable?")
        self._jobs = Jobs(settings.redis_url, RecordKeys(settings.redis.prefix).queue(settings.host_name))
        self._tell = tell
        self._wanted: dict[str, set[str]] = {}
        self._for: dict[str, set[str]] = {}
        self._called_off: set[str] = set()
        self._asking = asyncio.Lock()

    def close(self) -> None:
        """Close the connection. What is under way goes on."""
        self._jobs.close()

    async def bring(self, instance: Instance, function: Function) -> None:
        """Have the weights of an instance fetched, tell how it goes, and at the end that they are here, or why not."""
        name = ""
        try:
            source = _fetchable(function)
            name = self._jobs.id_of(source)
            self._wanted.setdefault(name, set()).add(instance.id)
            self._for.setdefault(name, set()).add(function.id)
            await self._followed(source, instance)
            found = await self._here(function)
            if found is None:
                raise JobFailed("they are still missing after the job that fetched them")
        except (JobFailed, JobLost, weights.WeightsUnavailable, redis.RedisError, OSError) as error:
            reason = f"the weights of '{function.id}' ('{function.weights}') could not be fetched: {error}"
            self._tell(lambda s, now: s.fetch_failed(instance.id, reason, now))
            return
        finally:
            self._wanted.get(name, set()).discard(instance.id)
        here = found
        self._tell(lambda s, now: s.fetched(instance.id, here, now))

    async def _here(self, function: Function) -> LocalWeights | None:
        """Return the weights that were just fetched; a disk that is slow after that is waited for."""
        until = time.monotonic() + RECORD_AWAY_S
        while True:
            try:
                return await disk.weights(self._looks, function, self._cache)
            except NoAnswer:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(POLL_MOST_S)

    async def _call(self, kind: str, work: Callable[[], T]) -> T:
        """Call the job queue in a thread. Raises what the call raises, or NoAnswer."""
        return await self._calls.look("the job queue", kind, work)

    async def given_up(self, function: Function) -> None:
        """An instance that waited for these weights is gone: call the fetch off if it was the last."""
        try:
            source = _fetchable(function)
        except weights.WeightsUnavailable:
            return
        name = self._jobs.id_of(source)
        if self._wanted.get(name):
            return
        try:
            async with self._asking:
                fetching = await self._call(f"look {name}", lambda: self._jobs.look(name))
                if fetching.alive and not fetching.kept and not self._wanted.get(name):
                    log.info("fetch_called_off", source=str(source))
                    await self._call(f"cancel {name}", lambda: self._jobs.cancel(name))
        except (JobLost, redis.RedisError, OSError) as error:
            log.warning("fetch_not_called_off", source=str(source), why=str(error))

    async def prefetch(self, function: Function) -> str:
        """Have a function's weights fetched though no instance waits for them. Return the job's id."""
        source = _fetchable(function)
        self._for.setdefault(self._jobs.id_of(source), set()).add(function.id)
        return await self._asked(source, kept=True)

    async def cancel(self, name: str) -> bool:
        """Stop a fetch, whoever waits for it. False when there is none."""
        self._called_off.add(name)
        async with self._asking:
            stopped = await self._call(f"cancel {name}", lambda: self._jobs.cancel(name))
        if not stopped:
            self._called_off.discard(name)
        return stopped

    async def all(self, declared: Collection[Function]) -> list[Fetching]:
        """Return every fetch that the record knows of, with the functions it is for."""
        found = await self._call("all", self._jobs.all)
        self._for = {f.id: self._for.get(f.id, set()) for f in found}
        for_whom = self._for_whom(declared)  # who asked may be newer than the catalogue here
        return [f.named(tuple(sorted({*for_whom.get(f.id, ()), *self._for[f.id]}))) for f in found]

    async def keep_only(self, declared: Collection[Function]) -> None:
        """Call off what no declared function wants and no instance waits for."""
        wanted = self._for_whom(declared)
        for fetching in await self._call("all", self._jobs.all):
            if fetching.alive and fetching.id not in wanted and not self._wanted.get(fetching.id):
                log.info("fetch_called_off", source=fetching.source)
                await self.cancel(fetching.id)

    def _for_whom(self, declared: Collection[Function]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for function in declared:
            try:
                name = self._jobs.id_of(_fetchable(function))
            except weights.WeightsUnavailable:
                continue
            found[name] = (*found.get(name, ()), function.id)
        return found

    async def _asked(self, source: Demo | Repo, *, kept: bool = False) -> str:
        async with self._asking:
            name = await self._call(f"ask {source} {kept}", lambda: self._jobs.ask(source, kept=kept))
            self._called_off.discard(name)
            return name

    async def _followed(self, source: Demo | Repo, instance: Instance) -> None:
        """Follow a fetch to its end. Raises JobFailed, or JobLost when the record goes on losing it."""
        name = await self._asked(source)
        asked, told, wait = 1, 0.0, POLL_FIRST_S
        answered = seen_worker = time.monotonic()
        while True:
            try:
                fetching = await self._looked(name)
                answered = time.monotonic()
                if fetching is not None and fetching.state == "done":
                    return
                if fetching is not None and fetching.state == "failed":
                    raise JobFailed(fetching.why)
                if fetching is None or fetching.state == "stopped":
                    if name in self._called_off:
                        raise JobFailed("the fetch was cancelled")
                    if asked >= ASKED_AGAIN:
                        raise JobLost("its job was stopped again and again")
                    asked += 1
                    await self._asked(source)
                elif fetching.state != "queued" or await self._call("workers", self._jobs.workers) > 0:
                    seen_worker = time.monotonic()
                elif time.monotonic() - seen_worker > WORKER_WAIT_S:
                    raise JobFailed(f"no job worker runs for host '{self._host}': start `cortex jobs` there")
                if fetching is not None and time.monotonic() - told > TOLD_EVERY_S:
                    told = time.monotonic()
                    self._tell_of(instance, fetching)
            except (redis.RedisError, OSError) as error:
                if time.monotonic() - answered > RECORD_AWAY_S:
                    raise JobFailed(f"the record cannot be reached: {error}") from None
            await asyncio.sleep(wait)
            wait = min(wait * 1.3, POLL_MOST_S)

    async def _looked(self, name: str) -> Fetching | None:
        try:
            return await self._call(f"look {name}", lambda: self._jobs.look(name))
        except JobLost:
            return None

    def _tell_of(self, instance: Instance, fetching: Fetching) -> None:
        phase, done = said(fetching, time.time()), fetching.fraction
        self._tell(lambda s, now: s.fetching(instance.id, phase, done, now))


def said(fetching: Fetching, now: float) -> str:
    """Say in a line how a fetch stands."""
    if fetching.state == "queued":
        return "queued on its host"
    so_far = f"{_size(fetching.done)} of {_size(fetching.total)}" if fetching.total else "asking the hub"
    if fetching.state == "waiting":
        return f"{so_far}, trying again in {max(0, round(fetching.retry_at - now))} s: {fetching.why}"
    left = f", {round(fetching.remaining_s)} s left" if fetching.remaining_s is not None else ""
    return so_far + (f", {_size(fetching.rate)}/s{left}" if fetching.rate else "")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.{int(count < 9.95 and unit != 'B')}f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _fetchable(function: Function) -> Demo | Repo:
    try:
        source = source_of(function)
    except BadSource as error:
        raise weights.WeightsUnavailable(str(error)) from None
    if not isinstance(source, Demo | Repo):
        raise weights.WeightsUnavailable(
            f"the weights of '{function.id}' are not fetched: they are on the host or nowhere"
        )
    return source
