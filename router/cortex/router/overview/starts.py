"""Starts predicted from earlier starts, in total and by phase. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance
from cortex.platform.scheduling.ledger import Entry, expected_s, returned_from, revision_of
from cortex.router.api_types import DownloadView, LastStart, StartTime


def by_revision(ledger: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entry of each revision's last start, on any device."""
    latest: dict[str, Entry] = {}
    for field, entry in ledger.items():
        revision = revision_of(field)
        if entry.starts and entry.started_at >= latest.get(revision, entry).started_at:
            latest[revision] = entry
    return latest


def last_start(revision: str, instances: Iterable[Instance], entry: Entry | None) -> LastStart | None:
    """Return the last start of a revision, from a live instance or else from the ledger."""
    ready = [i for i in instances if i.revision == revision and i.ready and i.phases and returned_from(i) is None]
    newest = max(ready, key=lambda i: i.ready, default=None)
    if newest is not None and (entry is None or newest.ready >= entry.started_at):
        return _last(newest.ready, newest.phases)
    return _last(entry.started_at, entry.phases) if entry and entry.phases else None


def fetched_at(host: str, instance: Instance, downloads: Iterable[DownloadView]) -> float | None:
    """Return when an instance's download should end; None if it fetches nothing, or if its rate is unknown."""
    if instance.state is not State.FETCHING:
        return None
    own = (d for d in downloads if d.host == host and instance.function in d.functions)
    return next((d.ends_at for d in own if d.ends_at is not None), None)


def ready_at(instance: Instance, entry: Entry | None, fetched: float | None) -> float | None:
    """Return when an instance should be ready; None if no earlier start, or return from its tier, is known, or while it
    waits for memory or for a download of unknown duration."""
    if instance.parks_to is not None:
        takes_s = instance.return_s.get(instance.parks_to, 0.0)
        return instance.started + takes_s if takes_s and instance.state is State.STARTING else None
    takes_s = expected_s(entry, instance.start_mode) if entry else 0.0
    if not takes_s:
        return None
    if instance.state is State.FETCHING:
        return None if fetched is None else fetched + takes_s
    return instance.started + takes_s if instance.state is State.STARTING else None


def start_times(device: str, entry: Entry) -> Iterator[StartTime]:
    """Yield what the last starts took, by mode."""
    for mode, times in sorted(entry.modes.items()):
        yield StartTime(
            device=device, mode=mode, version=times.version, usual_s=times.usual_s, starts=len(times.seconds)
        )


def _last(at: float, phases: Mapping[str, float]) -> LastStart:
    return LastStart(at=at, total_s=round(sum(phases.values()), 3), phases=dict(phases))
