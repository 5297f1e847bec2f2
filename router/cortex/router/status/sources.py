"""Where the page's knowledge comes from: the runtime's view, and what is read beside it now and then."""

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
from cortex.router.runtime import Runtime
from cortex.router.start_history import by_revision
from cortex.router.status.flow import flow, rates
from cortex.router.status.format import mib
from cortex.router.status.model import Decision, Job
from cortex.router.status.snapshot import FleetSnapshot

log = structlog.get_logger()
T = TypeVar("T")

PATIENCE_S = 0.4
"""How long a page waits for what is read beside the view; what comes later is on the next look."""
TRAFFIC_S, LEDGER_S, DECISIONS_S, JOBS_S = 5.0, 2.0, 2.0, 3.0
GOING_ON = ("queued", "fetching", "waiting")
MOST_RECEIPTS = 100
NOT_SHOWN = frozenset({"waited", "more"})
"""Receipts of single requests that went well, or of receipts: they would push out the rest."""


class Reading(Generic[T]):
    """Something that is read at most so often, and shown as it last was while it is read again."""

    def __init__(self, read: Callable[[], Awaitable[T]], every_s: float, value: T) -> None:
        """`value` stands until something was read."""
        self._read, self._every_s, self._value = read, every_s, value
        self._at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> T:
        """Return it, at the latest after a moment."""
        if self._task is None and time.monotonic() - self._at > self._every_s:
            self._task = asyncio.create_task(self._again())
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=PATIENCE_S)
        return self._value

    async def close(self) -> None:
        """Read no more."""
        await cancelled([self._task] if self._task else [])

    async def _again(self) -> None:
        try:
            self._value = await self._read()
        except RecordUnavailable:
            pass
        except Exception as error:
            log.warning("status_source_away", why=f"{type(error).__name__}: {error}")
        finally:
            self._at, self._task = time.monotonic(), None


class Sources:
    """Reads everything a page is made of."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        nothing: tuple[list[Bucket], dict[str, Bucket]] = ([], {})
        self._traffic = Reading(runtime.peers.traffic, TRAFFIC_S, nothing)
        self._decisions: Reading[Sequence[Decision]] = Reading(self._decided, DECISIONS_S, ())
        self._jobs: Reading[Sequence[Job] | None] = Reading(self._fetching, JOBS_S, None)
        known: Mapping[str, Entry] = {}
        self._ledger = Reading(runtime.history.ledger, LEDGER_S, known)

    async def known(self) -> FleetSnapshot:
        """Return what is known now. Never fails: what cannot be read is as it was, or not there."""
        runtime = self._runtime
        (hour, lately), ledger, decisions, jobs = await asyncio.gather(
            self._traffic.look(), self._ledger.look(), self._decisions.look(), self._jobs.look()
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

    async def _decided(self) -> Sequence[Decision]:
        receipts = await self._runtime.registry.decisions({}, MOST_RECEIPTS)
        return [decision(r) for r in receipts if r.what not in NOT_SHOWN]

    async def _fetching(self) -> Sequence[Job]:
        """Ask every host for its downloads. One that does not answer in time has none to show."""
        hosts = list(self._runtime.view.fleet.hosts.values())
        asked = (asyncio.wait_for(self._runtime.agents.jobs(h), JOBS_S) for h in hosts)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found = [
            job(host.name, msgspec.convert(one, Fetching), time.time())
            for host, listed in zip(hosts, answers, strict=True)
            if not isinstance(listed, BaseException)
            for one in listed
        ]
        return sorted(found, key=lambda j: (j.state not in GOING_ON, -(j.at or 0.0)))


def job(host: str, fetching: Fetching, now: float) -> Job:
    """Return a download as the page shows it."""
    said = " · ".join(s for s in (", ".join(fetching.functions), _how_far(fetching), fetching.why) if s)
    left = fetching.remaining_s
    return Job(
        id=fetching.id,
        host=host,
        what=fetching.source,
        state=fetching.state,
        share=fetching.fraction if fetching.state in GOING_ON else None,
        said=said,
        at=fetching.asked or None,
        functions=fetching.functions,
        ends=round(now + left) if left is not None and fetching.alive else None,
    )


def _how_far(fetching: Fetching) -> str:
    if not fetching.total:
        return ""
    total = mib(fetching.total / 2**20)
    rate = f", {mib(fetching.rate / 2**20)}/s" if fetching.rate and fetching.alive else ""
    return total if fetching.done >= fetching.total else f"{mib(fetching.done / 2**20)} of {total}{rate}"


def decision(receipt: DecisionRecord) -> Decision:
    """Return a receipt as the page shows it."""
    return Decision(
        at=receipt.at,
        what=receipt.what,
        by=receipt.by,
        function=receipt.function,
        host=receipt.host,
        instance=receipt.instance,
        why=receipt.why,
    )
