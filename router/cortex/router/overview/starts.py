"""Starts predicted from earlier starts, in total and by phase. Pure."""

from collections.abc import Mapping

from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.record import Fleet, Instance
from cortex.platform.scheduling.ledger import Entry, revision_of


class LastStart(Struct, frozen=True, kw_only=True):
    """A function's last start, by phase."""

    at: float
    """Unix time at which the instance was ready."""
    total_s: float
    phases: dict[str, float]


def by_revision(ledger: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entry of each revision's last start, on any device."""
    latest: dict[str, Entry] = {}
    for field, entry in ledger.items():
        revision = revision_of(field)
        if entry.starts and entry.started_at >= latest.get(revision, entry).started_at:
            latest[revision] = entry
    return latest


def last_start(revision: str, fleet: Fleet, entry: Entry | None) -> LastStart | None:
    """Return the last start of a revision, from a live instance or else from the ledger."""
    ready = [i for h in fleet.hosts.values() for i in h.instances if i.revision == revision and i.ready and i.phases]
    newest = max(ready, key=lambda i: i.ready, default=None)
    if newest is not None and (entry is None or newest.ready >= entry.started_at):
        return _last(newest.ready, newest.phases)
    return _last(entry.started_at, entry.phases) if entry and entry.phases else None


def left_s(instance: Instance, entry: Entry | None, now: float) -> float | None:
    """Return the remaining seconds of a start, from earlier starts; None if unknown."""
    if entry is None or instance.ready or not entry.start_s or instance.state is State.FETCHING:
        return None  # a download's phase has its own estimate
    return round(max(0.0, entry.start_s - (now - instance.started if instance.started else 0.0)), 1)


def _last(at: float, phases: Mapping[str, float]) -> LastStart:
    return LastStart(at=at, total_s=round(sum(phases.values()), 3), phases=dict(phases))
