"""The herald: what an agent tells the record. Its host as it stands, its counts, and a receipt for every decision."""

import asyncio
import time
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from cortex.platform import clock
from cortex.platform.agent.counts import AgentCounts
from cortex.platform.decisions import DecisionRecord, numbers
from cortex.platform.record import Fleet, HostRecord
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.effects import Decision

log = structlog.get_logger()

TTL_BEATS = 3
RECEIPTS_WAITING = 1000
SAME_REFUSAL_S = 30.0


class HostPublisher:
    """Publishes `record()`. `changed` is set when there is something new to say."""

    def __init__(
        self, registry: Registry, record: Callable[[], HostRecord], counts: AgentCounts, heartbeat_s: float
    ) -> None:
        self.changed = asyncio.Event()
        self.counts = counts
        self.record_away = False
        self.name_holder: HostRecord | None = None
        """The host of another machine that has this host's name in the record; nothing is published meanwhile."""
        self._registry = registry
        self._record = record
        self._heartbeat_s = heartbeat_s
        self._published: HostRecord | None = None
        self._publications = 0
        self._due = 0.0
        self._publishing = asyncio.Lock()
        self._receipts: list[DecisionRecord] = []
        self._refused: dict[str, tuple[str, float]] = {}

    def look(self) -> None:
        """Something was decided: there may be something new to say."""
        if self._record() != self._published or self._receipts:
            self.changed.set()

    def beat(self) -> None:
        """A heartbeat is due: publish the next time even if nothing is new."""
        self._due = 0.0

    def note(self, decided: Decision, fleet: Fleet | None) -> None:
        """Log and count a decision, and keep its receipt for the next publication."""
        log.info(decided.what, function=decided.function, instance=decided.instance, why=decided.why)
        record, now = self._record(), clock.now()
        self.counts.decided(decided, record, fleet, now)
        if decided.what == "refused":
            # Whoever waits for room asks again and again; the same answer is worth one receipt in a while.
            before, at = self._refused.get(decided.function, ("", 0.0))
            if before == decided.why and now - at < SAME_REFUSAL_S:
                return
            self._refused[decided.function] = (decided.why, now)
        self._receipts.append(
            DecisionRecord(
                at=time.time(),
                by=f"agent:{record.name}",
                host=record.name,
                what=decided.what,
                function=decided.function,
                instance=decided.instance,
                why=decided.why,
                numbers=numbers(decided, record, fleet, now),
            )
        )
        del self._receipts[:-RECEIPTS_WAITING]

    async def publish(self) -> None:
        """Write the record if it says something new or a beat is due; when Redis is away the next beat tries again.

        While another machine has this host's name nothing is written, and each beat tries again.

        A receipt alone rings no bell: whoever waits for room asks again at every ring, and each refusal is a receipt.
        """
        async with self._publishing:
            self.changed.clear()
            record, ttl_s = self._record(), self._heartbeat_s * TTL_BEATS
            try:
                if record != self._published or time.monotonic() >= self._due:
                    self._published, self._due = record, 0.0
                    self._publications += 1
                    written = replace(record, at=clock.now(), sequence=self._publications)
                    self._note_holder(await self._registry.publish_host(written, ttl_s))
                    if self.name_holder is None:
                        await self._registry.publish_counts(record.name, self.counts.snapshot(), ttl_s)
                        self._due = time.monotonic() + self._heartbeat_s / 2
                if self._receipts and self.name_holder is None:
                    receipts, self._receipts = self._receipts, []
                    await self._registry.decided(receipts)
            except RecordUnavailable as error:
                if not self.record_away:
                    log.warning("record_away", why=str(error))
                self.record_away = True
            else:
                if self.record_away:
                    log.info("record_back")
                self.record_away = False

    def _note_holder(self, holder: HostRecord | None) -> None:
        """Note whose the name is, and log it when that changes."""
        before, self.name_holder = self.name_holder, holder
        if holder is not None and (before is None or before.home != holder.home):
            log.warning("host_name_taken", name=holder.name, by=holder.address, version=holder.version)
        elif holder is None and before is not None:
            log.info("host_name_free", name=before.name)
