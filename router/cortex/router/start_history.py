"""What earlier starts say about the next one: how long it takes, and where the time goes.

The ledger knows by revision and kind of device. It is read when somebody asks, and kept for a moment.
"""

import contextlib
import time
from collections.abc import Mapping

from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.record import Fleet, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.ledger import Entry, revision_of

FRESH_S = 2.0


class LastStart(Struct, frozen=True, kw_only=True):
    """A function's last start, by phase."""

    at: float
    """When it was ready."""
    total_s: float
    phases: dict[str, float]


class History:
    """The ledger, as this router last read it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ledger: Mapping[str, Entry] = {}
        self._read = float("-inf")

    async def ledger(self) -> Mapping[str, Entry]:
        """Return the ledger, at most two seconds old; an older one while the record is away."""
        if time.monotonic() - self._read > FRESH_S:
            with contextlib.suppress(RecordUnavailable):
                self._ledger = await self._registry.ledger()
                self._read = time.monotonic()
        return self._ledger

    def invalidate(self) -> None:
        """Have the ledger read again: it has been changed."""
        self._read = float("-inf")


def by_revision(ledger: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return by revision what was learned from its last start, on whatever device that was. Pure."""
    latest: dict[str, Entry] = {}
    for field, entry in ledger.items():
        revision = revision_of(field)
        if entry.starts and entry.started_at >= latest.get(revision, entry).started_at:
            latest[revision] = entry
    return latest


def last_start(revision: str, fleet: Fleet, known: Entry | None) -> LastStart | None:
    """Return the last start of a revision: of an instance that is still there, else of the ledger. Pure."""
    ready = [i for h in fleet.hosts.values() for i in h.instances if i.revision == revision and i.ready and i.phases]
    newest = max(ready, key=lambda i: i.ready, default=None)
    if newest is not None and (known is None or newest.ready >= known.started_at):
        return _last(newest.ready, newest.phases)
    return _last(known.started_at, known.phases) if known and known.phases else None


def left_s(instance: Instance, known: Entry | None, now: float) -> float | None:
    """Return how long a start will still take, by what earlier ones took; None when there is no telling. Pure."""
    if known is None or instance.ready or not known.start_s or instance.state is State.FETCHING:
        return None  # how long a download takes, its phase says
    return round(max(0.0, known.start_s - (now - instance.started if instance.started else 0.0)), 1)


def _last(at: float, phases: Mapping[str, float]) -> LastStart:
    return LastStart(at=at, total_s=round(sum(phases.values()), 3), phases=dict(phases))
