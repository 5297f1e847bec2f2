"""The publisher of an agent: writes its host's record, its counters, and every decision."""

import asyncio
import time
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from cortex.platform import clock
from cortex.platform.agent.counts import AgentCounts
from cortex.platform.decisions import DecisionRecord, inputs_of
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.effects import Decision
from cortex.platform.scheduling.reasons import DecisionKind

log = structlog.get_logger()

TTL_BEATS = 3
MOST_BUFFERED = 1000
SAME_REFUSAL_S = 30.0


class HostPublisher:
    """Publishes `record()`. `changed` is set when there is a change to publish."""

    def __init__(
        self, registry: Registry, record: Callable[[], HostRecord], counts: AgentCounts, heartbeat_s: float
    ) -> None:
        self.changed = asyncio.Event()
        self.counts = counts
        self.record_away = False
        self.name_holder: HostRecord | None = None
        """Another machine's host with this host's name in the record; nothing is published while there is one."""
        self._registry = registry
        self._record = record
        self._heartbeat_s = heartbeat_s
        self._published: HostRecord | None = None
        self._publications, self._change = 0, ""
        self._due = 0.0
        self._publishing = asyncio.Lock()
        self._decisions: list[DecisionRecord] = []
        self._refused: dict[str, tuple[str, float]] = {}

    def look(self) -> None:
        """Set `changed` if there is a change to publish."""
        if self._record() != self._published or self._decisions:
            self.changed.set()

    def beat(self) -> None:
        """A heartbeat is due: the next `publish` writes the record even without a change."""
        self._due = 0.0

    def note(self, decision: Decision, fleet: Fleet | None) -> None:
        """Log and count a decision, and queue it for the next publication."""
        log.info(decision.what, function=decision.function, instance=decision.instance, why=decision.why)
        record, now = self._record(), clock.now()
        self.counts.count_decision(decision, record, fleet, now)
        if decision.what is DecisionKind.REFUSED:
            # A router that waits for room repeats its request; the same rejection is logged once per interval.
            before, at = self._refused.get(decision.function, ("", 0.0))
            if before == decision.why and now - at < SAME_REFUSAL_S:
                return
            self._refused[decision.function] = (decision.why, now)
        self._decisions.append(
            DecisionRecord(
                at=time.time(),
                by=f"agent:{record.name}",
                host=record.name,
                what=decision.what,
                function=decision.function,
                instance=decision.instance,
                reason=decision.reason or "",
                why=decision.why,
                inputs=inputs_of(decision, record, fleet, now),
            )
        )
        del self._decisions[:-MOST_BUFFERED]

    async def publish(self) -> None:
        """Write the record if it changed or a heartbeat is due; while Redis is away each heartbeat retries.

        While another machine has this host's name nothing is written, and each heartbeat retries.

        A decision alone wakes no router: each wake-up repeats requests for room, and each rejection is a decision.
        """
        async with self._publishing:
            self.changed.clear()
            record, ttl_s = self._record(), self._heartbeat_s * TTL_BEATS
            try:
                if record != self._published or time.monotonic() >= self._due:
                    self._publications += 1
                    if record != self._published:
                        self._change = f"{record.agent}.{self._publications}"
                    self._published, self._due = record, 0.0
                    publication = replace(record, change=self._change, at=clock.now(), sequence=self._publications)
                    self._note_holder(await self._registry.publish_host(publication, ttl_s))
                    if self.name_holder is None:
                        await self._registry.publish_counts(record.name, self.counts.snapshot(), ttl_s)
                        self._due = time.monotonic() + self._heartbeat_s / 2
                if self._decisions and self.name_holder is None:
                    decisions, self._decisions = self._decisions, []
                    await self._registry.log_decisions(decisions)
            except RecordUnavailable as error:
                if not self.record_away:
                    log.warning("record_away", why=str(error))
                self.record_away = True
            else:
                if self.record_away:
                    log.info("record_back")
                self.record_away = False

    def _note_holder(self, holder: HostRecord | None) -> None:
        """Record the holder of the name, and log a change."""
        before, self.name_holder = self.name_holder, holder
        if holder is not None and (before is None or before.home != holder.home):
            log.warning("host_name_taken", name=holder.name, by=holder.address, version=holder.version)
        elif holder is None and before is not None:
            log.info("host_name_free", name=before.name)
