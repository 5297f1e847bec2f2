"""Takes snapshots: the router's view, and data that is read at most every few seconds."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import structlog
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.agent_messages import Fetching
from cortex.platform.budget import LowBudget
from cortex.platform.cancel import cancel_tasks
from cortex.platform.decisions import DecisionRecord
from cortex.platform.in_flight import InFlight
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.ledger import Entry
from cortex.router.activation.agents import Agents
from cortex.router.api_types import DownloadView
from cortex.router.batches.batch import Batch
from cortex.router.decision_log import RouterDecision
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.metrics.traffic import Bucket
from cortex.router.overview.snapshot import FleetSnapshot
from cortex.router.peers import Peers
from cortex.router.start_history import History

log = structlog.get_logger()
T = TypeVar("T")

PATIENCE_S = 0.4
"""How long a snapshot waits for periodic data; later data is in the next one."""
TRAFFIC_S, LEDGER_S, DECISIONS_S, DOWNLOADS_S, BATCHES_S = 5.0, 2.0, 2.0, 3.0, 3.0
MOST_DECISIONS, MOST_BATCHES = 100, 40
HIDDEN = frozenset({RouterDecision.WAITED, RouterDecision.DROPPED})
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
        await cancel_tasks([self._task] if self._task else [])

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
    """The periodic data of one router worker, shared by the page and the API."""

    def __init__(
        self,
        catalogue: LiveCatalogue,
        view: FleetView,
        in_flight: InFlight,
        registry: Registry,
        agents: Agents,
        history: History,
        peers: Peers,
        *,
        strategy: str,
        batches: Callable[[int], Awaitable[Sequence[Batch]]],
        low_budgets: Callable[[float], Sequence[LowBudget]],
    ) -> None:
        """`strategy` is that of eviction. `batches` returns so many of the newest, `low_budgets` those at a time."""
        self._catalogue, self._view, self._in_flight, self._strategy = catalogue, view, in_flight, strategy
        self._registry, self._agents, self._history = registry, agents, history
        self._low_budgets = low_budgets
        nothing: tuple[list[Bucket], dict[str, Bucket]] = ([], {})
        self._traffic = Reading(peers.traffic, TRAFFIC_S, nothing)
        self._decisions: Reading[Sequence[DecisionRecord]] = Reading(self._read_decisions, DECISIONS_S, ())
        self._downloads: Reading[Sequence[DownloadView] | None] = Reading(self._read_downloads, DOWNLOADS_S, None)
        self._batches: Reading[Sequence[Batch]] = Reading(lambda: batches(MOST_BATCHES), BATCHES_S, ())
        empty: Mapping[str, Entry] = {}
        self._ledger = Reading(history.ledger, LEDGER_S, empty)

    def now(self) -> FleetSnapshot:
        """Return what this router worker has in memory: enough for plans, hosts and instances."""
        catalogue = self._catalogue.catalogue
        return FleetSnapshot(
            catalogue=catalogue,
            revisions={f: self._catalogue.resolve(f).revision for f in catalogue.functions},
            fleet=self._view.display(self._in_flight),
            strategy=self._strategy,
            away=self._view.away,
            problem=self._catalogue.problem,
            now=time.time(),
        )

    async def snapshot(self) -> FleetSnapshot:
        """Return everything. Never fails: data that cannot be read is stale or missing."""
        (hour, lately), ledger, decisions, downloads, batches = await asyncio.gather(
            self._traffic.get(), self._ledger.get(), self._decisions.get(), self._downloads.get(), self._batches.get()
        )
        snapshot = replace(self.now(), ledger=ledger, hour=hour, lately=lately, decisions=decisions)
        low_budgets = self._low_budgets(snapshot.now)
        return replace(snapshot, downloads=downloads, batches=batches, low_budgets=low_budgets)

    async def functions(self) -> FleetSnapshot:
        """Return what views of functions need. The hosts are queried for downloads only while one fetches."""
        ledger = await self._history.ledger()
        fetches = any(i.state is State.FETCHING for h in self._view.fleet.records() for i in h.instances)
        downloads = await self._downloads.get() if fetches else ()
        return replace(self.now(), ledger=ledger, downloads=downloads)

    async def downloads(self) -> Sequence[DownloadView]:
        """Return the downloads of all hosts, at most a few seconds old; none before the first reading."""
        return await self._downloads.get() or ()

    async def _read_decisions(self) -> Sequence[DecisionRecord]:
        records = await self._registry.decisions({}, MOST_DECISIONS)
        return [r for r in records if r.what not in HIDDEN]

    async def _read_downloads(self) -> Sequence[DownloadView]:
        """Query every host for its downloads; omit hosts that do not answer in time."""
        hosts = list(self._view.fleet.hosts.values())
        queries = (asyncio.wait_for(self._agents.jobs(h), DOWNLOADS_S) for h in hosts)
        answers = await asyncio.gather(*queries, return_exceptions=True)
        views = [
            view
            for host, answer in zip(hosts, answers, strict=True)
            if not isinstance(answer, BaseException)
            for view in download_views(host.name, answer, time.time())
        ]
        return sorted(views, key=lambda d: (not d.active, -(d.requested_at or 0.0)))


def download_views(host: str, fetches: Sequence[Fetching], now: float) -> list[DownloadView]:
    """Return a host's downloads."""
    return [
        DownloadView(
            id=f.id,
            host=host,
            source=f.source,
            state=f.state,
            active=f.alive,
            functions=f.functions,
            done=f.done,
            total=f.total,
            fraction=f.fraction,
            rate=f.rate,
            ends_at=round(now + f.remaining_s) if f.alive and f.remaining_s is not None else None,
            retry_at=f.retry_at or None,
            requested_at=f.requested_at or None,
            why=f.why,
        )
        for f in fetches
    ]
