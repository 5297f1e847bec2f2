"""Silent hosts: their record has expired, but their workers may still serve. Pure.

A host's record lives for a few heartbeats. It expires when the agent is dead or cut off from Redis, or when Redis was
emptied; the workers may be unaffected. So a router keeps a silent host's ready instances for as long as they answer:
they receive requests, but nothing is placed on the host. When the host reports again, its record replaces this.
"""

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.fleet import Fleet, SilentHost
from cortex.platform.record import HostRecord

REMEMBER_S = 6 * 3600.0
"""Maximum time for which a silent host is remembered."""
MOST_SILENT = 256
"""Maximum number of silent hosts; the latest are kept."""


def silent_hosts(before: Fleet, hosts: Mapping[str, HostRecord], now: float) -> dict[str, SilentHost]:
    """Return the silent hosts after a new read of the record:

    (1) a host that reports is not silent;
    (2) a host that reported before and does not now becomes silent;
    (3) a host that has been silent for too long is dropped.

    An instance that a reporting host also lists (after a host was renamed) belongs to that host.
    """
    silent = before.silent
    for name in before.hosts.keys() - hosts.keys():  # (2)
        record = before.hosts[name]
        silent = {**silent, name: SilentHost(record=_only_ready(record), since=now)}
    silent = {n: h for n, h in silent.items() if n not in hosts and now - h.since < REMEMBER_S}  # (1), (3)
    if len(silent) > MOST_SILENT:
        latest = sorted(silent, key=lambda n: silent[n].since, reverse=True)[:MOST_SILENT]
        silent = {n: silent[n] for n in latest}
    reported = {i.id for h in hosts.values() for i in h.instances} if silent else frozenset()
    return {name: without(host, reported) for name, host in silent.items()}


def without(host: SilentHost, instances: Collection[str]) -> SilentHost:
    """Return a silent host without these instances."""
    if not any(i.id in instances for i in host.record.instances):
        return host
    rest = tuple(i for i in host.record.instances if i.id not in instances)
    return replace(host, record=replace(host.record, instances=rest))


def _only_ready(record: HostRecord) -> HostRecord:
    return replace(record, instances=tuple(i for i in record.instances if i.state is State.READY), failures=())
