"""The sources of the page: the runtime's view, and data that is read periodically."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec
import structlog

from cortex.platform.agent_messages import Fetching
from cortex.platform.cancel import cancelled
from cortex.platform.decisions import DecisionRecord
from cortex.platform.registry import RecordUnavailable
from cortex.platform.scheduling.ledger import Entry
from cortex.router.metrics.traffic import Bucket
from cortex.router.overview.snapshot import FleetSnapshot
from cortex.router.overview.starts import by_revision
from cortex.router.runtime import Runtime
from cortex.router.status.flow import flow, rates
from cortex.router.status.format import mib
from cortex.router.status.model import Decision, Job

log = structlog.get_logger()
T = TypeVar("T")

PATIENCE_S = 0.4
"""How long a page waits for periodic data; later data is on the next rendering."""
TRAFFIC_S, LEDGER_S, DECISIONS_S, JOBS_S = 5.0, 2.0, 2.0, 3.0
ACTIVE = ("queued", "fetching", "waiting")
MOST_DECISIONS = 100
HIDDEN = frozenset({"waited", "more"})
"""Kinds of decisions that would displace the others: successful waits, and dropped entries."""


class Reading(Generic[T]):
    """A cached value, refreshed at most every `every_s`; the old value is used during a refresh."""

    def __init__(self, read: Callable[[], Awaitable[T]], every_s: float, value: T) -> None:
        """`value` is used until the first read."""
        self._read, self._every_s, self._value = read, every_s, value
        self._at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def get(self) -> T:
        """Return the value within `PATIENCE_S`."""
        if self._task is None and time.monotonic() - self._at > self._every_s:
            self._task = asyncio.create_task(self._refresh())
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=PATIENCE_S)
        return self._value

    async def close(self) -> None:
        """Stop reading."""
        await cancelled([self._task] if self._task else [])

    async def _refresh(self) -> None:
        try:
            self._value = await self._read()
        except RecordUnavailable:
            pass
        except Exception as error:
            log.warning("status_source_away", why=f"{type(error).__name__}: {error}")
        finally:
            self._at, self._task = time.monotonic(), None


class Sources:
    """Reads the page's input."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        nothing: tuple[list[Bucket], dict[str, Bucket]] = ([], {})
        self._traffic = Reading(runtime.peers.traffic, TRAFFIC_S, nothing)
        self._decisions: Reading[Sequence[Decision]] = Reading(self._read_decisions, DECISIONS_S, ())
        self._jobs: Reading[Sequence[Job] | None] = Reading(self._read_jobs, JOBS_S, None)
        empty: Mapping[str, Entry] = {}
        self._ledger = Reading(runtime.history.ledger, LEDGER_S, empty)

    async def snapshot(self) -> FleetSnapshot:
        """Return the current data. Never fails: data that cannot be read is stale or missing."""
        runtime = self._runtime
        (hour, lately), ledger, decisions, jobs = await asyncio.gather(
            self._traffic.get(), self._ledger.get(), self._decisions.get(), self._jobs.get()
        )
        catalogue, now = runtime.live_catalogue.catalogue, time.time()
        return FleetSnapshot(
            catalogue=catalogue,
            revisions={f: runtime.live_catalogue.resolve(f).revision for f in catalogue.functions},
            fleet=runtime.fleet(),
            starts=by_revision(ledger),
            flow=flow(hour, now),
            rates=rates(lately),
            decisions=decisions,
            jobs=jobs,
            strategy=runtime.settings.eviction.strategy,
            away=runtime.view.away,
            problem=runtime.live_catalogue.problem,
            now=now,
        )

    async def _read_decisions(self) -> Sequence[Decision]:
        records = await self._runtime.registry.decisions({}, MOST_DECISIONS)
        return [decision(r) for r in records if r.what not in HIDDEN]

    async def _read_jobs(self) -> Sequence[Job]:
        """Query every host for its downloads; omit hosts that do not answer in time."""
        hosts = list(self._runtime.view.fleet.hosts.values())
        queries = (asyncio.wait_for(self._runtime.agents.jobs(h), JOBS_S) for h in hosts)
        answers = await asyncio.gather(*queries, return_exceptions=True)
        entries = [
            job(host.name, msgspec.convert(entry, Fetching), time.time())
            for host, listed in zip(hosts, answers, strict=True)
            if not isinstance(listed, BaseException)
            for entry in listed
        ]
        return sorted(entries, key=lambda j: (j.state not in ACTIVE, -(j.at or 0.0)))


def job(host: str, fetching: Fetching, now: float) -> Job:
    """Return a download as the page shows it."""
    detail = " · ".join(s for s in (", ".join(fetching.functions), _progress(fetching), fetching.why) if s)
    remaining_s = fetching.remaining_s
    return Job(
        id=fetching.id,
        host=host,
        what=fetching.source,
        state=fetching.state,
        share=fetching.fraction if fetching.state in ACTIVE else None,
        detail=detail,
        at=fetching.asked or None,
        functions=fetching.functions,
        ends=round(now + remaining_s) if remaining_s is not None and fetching.alive else None,
    )


def _progress(fetching: Fetching) -> str:
    if not fetching.total:
        return ""
    total = mib(fetching.total / 2**20)
    rate = f", {mib(fetching.rate / 2**20)}/s" if fetching.rate and fetching.alive else ""
    return total if fetching.done >= fetching.total else f"{mib(fetching.done / 2**20)} of {total}{rate}"


def decision(record: DecisionRecord) -> Decision:
    """Return a decision as the page shows it."""
    return Decision(
        at=record.at,
        what=record.what,
        by=record.by,
        function=record.function,
        host=record.host,
        instance=record.instance,
        why=record.why,
    )
