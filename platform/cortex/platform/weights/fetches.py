"""The fetches of a host's agent, and the instances that wait for each.

A download is a job in the host's queue and belongs to its job worker: it outlives the agent. The agent requests it,
follows it, and cancels it when the last instance that waited for it is gone, unless it was requested by name
(`prefetch`). An agent that stops cancels nothing: the next one joins.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

import redis
import structlog
from msgspec.structs import replace

from cortex.functions.sources import BadSource, Demo, Repo, source_of
from cortex.functions.spec import Function
from cortex.functions.variants import with_adapters
from cortex.platform.agent_messages import Fetching
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.record import Instance
from cortex.platform.record_keys import RecordKeys
from cortex.platform.scheduling.events import Event, Fetched, FetchFailed, FetchProgress
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.weights import store as weights
from cortex.platform.weights.fetch_job import JobFailed
from cortex.platform.weights.jobs import JobLost, Jobs

log = structlog.get_logger()
T = TypeVar("T")

POLL_FIRST_S, POLL_MOST_S = 0.03, 0.5
PROGRESS_EVERY_S = 1.0
"""Interval of progress events: each wakes all routers."""
WORKER_WAIT_S = 15.0
"""How long a queued job may wait for a job worker to appear."""
RECORD_AWAY_S = 120.0
"""How long the record may be away before a start that waits for weights fails."""
MOST_REQUESTS = 3
"""How often a job that was lost or stopped by others is requested."""


_FAILURES = (JobFailed, JobLost, weights.WeightsUnavailable, redis.RedisError, OSError)
QUEUE_S = 10.0
"""Timeout of the job queue: its client bounds reads, but not the lookup of its server's name."""


class FetchProblem(Exception):
    """An adapter could not be fetched; the message has the reason."""


class Fetches:
    """The fetches of one agent."""

    def __init__(self, settings: Settings, tell: Callable[[Event], None], looks: BlockingCalls) -> None:
        self._host, self._cache = settings.host_name, Path(settings.agent.cache_dir)
        self._roots = settings.agent.weight_roots
        self._looks = looks
        self._calls = BlockingCalls(QUEUE_S, hint="is Redis reachable?")
        self._jobs = Jobs(settings.redis_url, RecordKeys(settings.redis.prefix).queue(settings.host_name))
        self._tell = tell
        self._waiting: dict[str, set[str]] = {}
        self._for: dict[str, set[str]] = {}
        self._cancelled: set[str] = set()
        self._requesting = asyncio.Lock()

    def close(self) -> None:
        """Close the connection. Running downloads continue."""
        self._jobs.close()

    async def fetch(self, instance: Instance, function: Function) -> None:
        """Fetch the weights of an instance; report progress, and the result or the reason of a failure. An adapter that
        cannot be fetched is a problem of its variant only."""
        try:
            local_weights = await self._fetched(instance, function, partial(self._report_progress, instance))
        except _FAILURES as error:
            reason = f"the weights of '{function.id}' ('{function.weights}') could not be fetched: {error}"
            self._tell(FetchFailed(instance.id, reason))
            return
        if function.adapters:
            local_weights = await self._with_adapters(instance, function, local_weights)
        self._tell(Fetched(instance.id, local_weights))

    async def fetch_adapter(self, instance: Instance, adapter: Function, report: Callable[[str], None]) -> LocalWeights:
        """Fetch an adapter, as its function (`variants.as_weights`), for a running instance; `report` gets the
        progress. Raises FetchProblem."""
        try:
            return await self._fetched(instance, adapter, lambda f: report(describe(f, time.time())))
        except _FAILURES as error:
            raise FetchProblem(f"its adapter '{adapter.source}' could not be fetched: {error}") from None

    async def _fetched(
        self, instance: Instance, function: Function, report: Callable[[Fetching], None]
    ) -> LocalWeights:
        """Fetch weights, unless a function with adapters has its own already. Raises one of `_FAILURES`."""
        if function.adapters and (local_weights := await self._local_weights(function)) is not None:
            return local_weights
        source = _fetchable(function)
        name = self._jobs.id_of(source)
        self._waiting.setdefault(name, set()).add(instance.id)
        self._for.setdefault(name, set()).add(function.id)
        try:
            await self._follow(source, report)
        finally:
            self._waiting.get(name, set()).discard(instance.id)
        local_weights = await self._local_weights(function)
        if local_weights is None:
            raise JobFailed("they are still missing after the job that fetched them")
        return local_weights

    async def _with_adapters(self, instance: Instance, function: Function, local: LocalWeights) -> LocalWeights:
        """Fetch the adapters that are missing, and return the weights with those that are here."""
        _, missing = await disk.with_adapters(self._looks, function, local, self._cache, self._roots)
        problems: dict[str, str] = {}
        for adapter in missing:
            try:
                await self._fetched(instance, adapter, partial(self._report_progress, instance))
            except _FAILURES as error:
                problems[adapter.id] = f"its adapter '{adapter.source}' could not be fetched: {error}"
        local, missing = await disk.with_adapters(self._looks, function, local, self._cache, self._roots)
        lost = {f.id: f"its adapter '{f.source}' is missing" for f in missing}
        return replace(local, adapter_problems={**lost, **problems, **local.adapter_problems})

    async def _local_weights(self, function: Function) -> LocalWeights | None:
        """Return the weights that were just fetched; wait for a disk that is slow."""
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

    async def release(self, function: Function) -> None:
        """An instance that waited for these weights is gone: cancel their fetches if it was the last."""
        for each in with_adapters([function]):
            await self._release(each)

    async def _release(self, function: Function) -> None:
        try:
            source = _fetchable(function)
        except weights.WeightsUnavailable:
            return
        name = self._jobs.id_of(source)
        if self._waiting.get(name):
            return
        try:
            async with self._requesting:
                fetching = await self._call(f"look {name}", lambda: self._jobs.look(name))
                if fetching.alive and not fetching.explicit and not self._waiting.get(name):
                    log.info("fetch_cancelled", source=str(source))
                    await self._call(f"cancel {name}", lambda: self._jobs.cancel(name))
        except (JobLost, redis.RedisError, OSError) as error:
            log.warning("fetch_not_cancelled", source=str(source), why=str(error))

    async def prefetch(self, function: Function) -> str:
        """Fetch a function's weights although no instance waits for them. Return the job's id."""
        source = _fetchable(function)
        self._for.setdefault(self._jobs.id_of(source), set()).add(function.id)
        return await self._request(source, explicit=True)

    async def cancel(self, name: str) -> bool:
        """Stop a fetch, even if instances wait for it. False when there is none."""
        self._cancelled.add(name)
        async with self._requesting:
            stopped = await self._call(f"cancel {name}", lambda: self._jobs.cancel(name))
        if not stopped:
            self._cancelled.discard(name)
        return stopped

    async def all(self, declared: Collection[Function]) -> list[Fetching]:
        """Return every fetch in the record, with its functions."""
        fetches = await self._call("all", self._jobs.all)
        self._for = {f.id: self._for.get(f.id, set()) for f in fetches}
        by_job = self._functions_by_job(declared)  # a requester may have a newer catalogue
        return [f.with_functions(tuple(sorted({*by_job.get(f.id, ()), *self._for[f.id]}))) for f in fetches]

    async def keep_only(self, declared: Collection[Function]) -> None:
        """Cancel fetches that no declared function needs and no instance waits for."""
        needed = self._functions_by_job(declared)
        for fetching in await self._call("all", self._jobs.all):
            if fetching.alive and fetching.id not in needed and not self._waiting.get(fetching.id):
                log.info("fetch_cancelled", source=fetching.source)
                await self.cancel(fetching.id)

    def _functions_by_job(self, declared: Collection[Function]) -> dict[str, tuple[str, ...]]:
        functions: dict[str, tuple[str, ...]] = {}
        for function in with_adapters(declared):
            try:
                name = self._jobs.id_of(_fetchable(function))
            except weights.WeightsUnavailable:
                continue
            functions[name] = (*functions.get(name, ()), function.id)
        return functions

    async def _request(self, source: Demo | Repo, *, explicit: bool = False) -> str:
        async with self._requesting:
            name = await self._call(f"ask {source} {explicit}", lambda: self._jobs.ask(source, explicit=explicit))
            self._cancelled.discard(name)
            return name

    async def _follow(self, source: Demo | Repo, report: Callable[[Fetching], None]) -> None:
        """Follow a fetch to its end; `report` gets its state at an interval. Raises JobFailed, or JobLost when the
        record loses it repeatedly."""
        name = await self._request(source)
        requests, reported_at, wait = 1, 0.0, POLL_FIRST_S
        answered = seen_worker = time.monotonic()
        while True:
            try:
                fetching = await self._state_of(name)
                answered = time.monotonic()
                if fetching is not None and fetching.state == "done":
                    return
                if fetching is not None and fetching.state == "failed":
                    raise JobFailed(fetching.why)
                if fetching is None or fetching.state == "stopped":
                    if name in self._cancelled:
                        raise JobFailed("the fetch was cancelled")
                    if requests >= MOST_REQUESTS:
                        raise JobLost("its job was stopped again and again")
                    requests += 1
                    await self._request(source)
                elif fetching.state != "queued" or await self._call("workers", self._jobs.workers) > 0:
                    seen_worker = time.monotonic()
                elif time.monotonic() - seen_worker > WORKER_WAIT_S:
                    raise JobFailed(f"no job worker runs for host '{self._host}': start `cortex jobs` there")
                if fetching is not None and time.monotonic() - reported_at > PROGRESS_EVERY_S:
                    reported_at = time.monotonic()
                    report(fetching)
            except (redis.RedisError, OSError) as error:
                if time.monotonic() - answered > RECORD_AWAY_S:
                    raise JobFailed(f"the record cannot be reached: {error}") from None
            await asyncio.sleep(wait)
            wait = min(wait * 1.3, POLL_MOST_S)

    async def _state_of(self, name: str) -> Fetching | None:
        try:
            return await self._call(f"look {name}", lambda: self._jobs.look(name))
        except JobLost:
            return None

    def _report_progress(self, instance: Instance, fetching: Fetching) -> None:
        phase, done = describe(fetching, time.time()), fetching.fraction
        self._tell(FetchProgress(instance.id, phase, done))


def describe(fetching: Fetching, now: float) -> str:
    """Return the progress of a fetch as one line."""
    if fetching.state == "queued":
        return "queued on its host"
    so_far = f"{_size(fetching.done)} of {_size(fetching.total)}" if fetching.total else "asking the hub"
    if fetching.state == "waiting":
        return f"{so_far}, trying again in {max(0, round(fetching.retry_at - now))} s: {fetching.why}"
    remaining = f", {round(fetching.remaining_s)} s left" if fetching.remaining_s is not None else ""
    return so_far + (f", {_size(fetching.rate)}/s{remaining}" if fetching.rate else "")


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
            f"the weights of '{function.id}' cannot be fetched: their path must exist on the host"
        )
    return source
