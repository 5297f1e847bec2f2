"""Where the page's knowledge comes from: the runtime's view, and what is read beside it now and then."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import structlog

from cortex.platform.cancel import cancelled
from cortex.platform.ledger import Entry
from cortex.platform.receipts import Receipt
from cortex.platform.registry import RecordAway
from cortex.router.history import by_revision
from cortex.router.runtime import Runtime
from cortex.router.status.flow import flow, rates
from cortex.router.status.known import Known
from cortex.router.status.model import Decision
from cortex.router.traffic import Bucket

log = structlog.get_logger()
T = TypeVar("T")

PATIENCE_S = 0.4
"""How long a page waits for what is read beside the view; what comes later is on the next look."""
TRAFFIC_S, LEDGER_S, DECISIONS_S = 5.0, 2.0, 2.0
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
        except RecordAway:
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
        self._traffic = Reading(runtime.inquiry.traffic, TRAFFIC_S, nothing)
        self._decisions: Reading[Sequence[Decision]] = Reading(self._decided, DECISIONS_S, ())
        known: Mapping[str, Entry] = {}
        self._ledger = Reading(runtime.history.ledger, LEDGER_S, known)

    async def known(self) -> Known:
        """Return what is known now. Never fails: what cannot be read is as it was, or not there."""
        runtime = self._runtime
        (hour, lately), ledger, decisions = await asyncio.gather(
            self._traffic.look(), self._ledger.look(), self._decisions.look()
        )
        catalogue, now = runtime.directory.catalogue, time.time()
        return Known(
            catalogue=catalogue,
            revisions={f: runtime.directory.find(f).revision for f in catalogue.functions},
            fleet=runtime.fleet(),
            starts=by_revision(ledger),
            flow=flow(hour, now),
            rates=rates(lately),
            decisions=decisions,
            strategy=runtime.settings.eviction.strategy,
            away=runtime.view.away,
            problem=runtime.directory.problem,
            now=now,
        )

    async def _decided(self) -> Sequence[Decision]:
        receipts = await self._runtime.registry.decisions({}, MOST_RECEIPTS)
        return [decision(r) for r in receipts if r.what not in NOT_SHOWN]


def decision(receipt: Receipt) -> Decision:
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
