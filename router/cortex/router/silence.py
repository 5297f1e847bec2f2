"""Hosts whose record has expired while their workers go on. Pure.

A host's record lives for a few heartbeats. When it expires, the agent is dead or cut off from Redis, or Redis has been
emptied; none of that says anything about the workers. So a router remembers such a host, with the instances that were
ready, as long as they answer: they may be chosen, but nothing is placed there. When the host reports again, its
record decides.
"""

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.record import Fleet, HostRecord, SilentHost

REMEMBER_S = 6 * 3600.0
"""How long a silent host is remembered at most."""
MOST_SILENT = 256
"""How many are remembered at most: those that fell silent last."""


def silent_hosts(before: Fleet, hosts: Mapping[str, HostRecord], now: float) -> dict[str, SilentHost]:
    """Return the silent hosts after a new reading of the record:

    (1) a host that reports is not silent;
    (2) one that reported before and does not now is, from now on;
    (3) one that has been silent for too long is forgotten.

    An instance that a reporting host has (a renamed host takes over its workers) belongs to that one.
    """
    known = before.silent
    for name in before.hosts.keys() - hosts.keys():  # (2)
        record = before.hosts[name]
        known = {**known, name: SilentHost(record=_only_ready(record), since=now)}
    left = {n: h for n, h in known.items() if n not in hosts and now - h.since < REMEMBER_S}  # (1), (3)
    if len(left) > MOST_SILENT:
        newest = sorted(left, key=lambda n: left[n].since, reverse=True)[:MOST_SILENT]
        left = {n: left[n] for n in newest}
    elsewhere = {i.id for h in hosts.values() for i in h.instances} if left else frozenset()
    return {name: without(host, elsewhere) for name, host in left.items()}


def without(host: SilentHost, instances: Collection[str]) -> SilentHost:
    """Return a silent host without some of its instances."""
    if not any(i.id in instances for i in host.record.instances):
        return host
    rest = tuple(i for i in host.record.instances if i.id not in instances)
    return replace(host, record=replace(host.record, instances=rest))


def _only_ready(record: HostRecord) -> HostRecord:
    return replace(record, instances=tuple(i for i in record.instances if i.state is State.READY), failures=())
