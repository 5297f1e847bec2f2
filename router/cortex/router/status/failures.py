"""Failures that the hosts report. Pure."""

from cortex.platform.record import Failure, HostRecord
from cortex.router.overview.snapshot import Index
from cortex.router.status.format import key
from cortex.router.status.model import Trouble

MOST = 30


def troubles(index: Index) -> tuple[Trouble, ...]:
    """Return the last failure of each function on each host, newest first."""
    every = [(host, f) for name, pairs in index.failures.items() for host, f in pairs if f.function == name]
    entries = [trouble(host, failure) for host, failure in every]
    return tuple(sorted(entries, key=lambda t: -t.at)[:MOST])


def trouble(host: HostRecord, failure: Failure) -> Trouble:
    """Return one failure."""
    return Trouble(
        key=key("trouble", f"{host.name} {failure.function}"),
        function=failure.function,
        host=host.name,
        instance=failure.instance,
        kind=str(failure.kind),
        reason=failure.reason,
        at=failure.at,
        count=failure.count,
        retry_at=failure.retry_at or None,
    )
