"""The fleet: a reader's snapshot of the whole record, and what it says about use. Pure.

`record.py` has the values of which it consists, `record_reader.py` makes one of what Redis returns.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.record import HostRecord, Instance, KeepAlive, Namesake, Override, RouterReport, ShareUse, shifted


class SilentHost(Struct, frozen=True, kw_only=True):
    """A host whose record has expired: its agent has stopped or cannot reach Redis. Its workers may still serve."""

    record: HostRecord
    """The last record read, with only the ready instances."""
    since: float
    """When the record was first missing, by the reader's clock."""


class Fleet(Struct, frozen=True, kw_only=True):
    """A snapshot of the whole record. Times are by the reader's clock. What is missing from it is not alive."""

    hosts: dict[str, HostRecord] = {}
    routers: dict[str, RouterReport] = {}
    used: dict[str, float] = {}
    """Last use of each function (`f:<id>`) and instance (`i:<id>`)."""
    cordoned: frozenset[str] = frozenset()
    overrides: dict[str, Override] = {}
    """By function."""
    namesakes: dict[str, Namesake] = {}
    """By the name they share with a host in `hosts`; of several with one name, the last that tried to publish."""
    silent: dict[str, SilentHost] = {}
    """Hosts whose record has expired: their instances may be chosen, but nothing is placed there. Empty when read; the
    router's `silence.py` fills it in."""
    at: float = 0.0

    def records(self) -> Iterator[HostRecord]:
        """Yield the record of every host, alive or silent."""
        yield from self.hosts.values()
        for host in self.silent.values():
            yield host.record

    def record(self, host: str) -> HostRecord | None:
        """Return the record of a host, alive or silent."""
        silent = self.silent.get(host)
        return self.hosts.get(host) or (silent.record if silent else None)


KEEP_SLACK_S = 3.0
"""Reports come once a second: a use this much later than a request with `keep_alive` may be that request itself."""


class Use(Struct, frozen=True, kw_only=True):
    """The usage of instances, from the routers' reports. While it is not `known`, no instance counts as idle."""

    known: bool = True
    in_flight: dict[str, int] = {}
    waiting: dict[str, int] = {}
    used: dict[str, float] = {}
    keep: dict[str, KeepAlive] = {}
    """How long instances may stay idle, where a request says so; `ago_s` counts back from `at`."""
    shares: dict[str, ShareUse] = {}
    at: float = 0.0

    def keep_s(self, instance: Instance) -> float | None:
        """Return how long an instance may stay idle as its last request says; None: that says nothing."""
        keep = self.keep.get(instance.id)
        if keep is None or self.last_used(instance) > self.at - keep.ago_s + KEEP_SLACK_S:
            return None
        return keep.for_s

    def last_used(self, instance: Instance) -> float:
        """Return when the instance was last used, or when it became ready if it never was."""
        return max(instance.ready, self.used.get(used_instance(instance.id), 0.0))


def without_successors(instances: Iterable[Instance]) -> list[Instance]:
    """Return instances without those that only replace one that serves: they are no addition to it."""
    every = list(instances)
    serving = {i.id for i in every if i.state is State.READY}
    return [i for i in every if i.replaces not in serving]


def use(fleet: Fleet) -> Use:
    """Add up the reports of all live routers."""
    in_flight: dict[str, int] = {}
    waiting: dict[str, int] = {}
    keep: dict[str, KeepAlive] = {}
    shares: dict[str, ShareUse] = {}
    for report in fleet.routers.values():
        for function, more in report.shares.items():
            known = shares.get(function, ShareUse())
            shares[function] = ShareUse(known.in_flight + more.in_flight, known.waiting + more.waiting)
        for instance, wish in report.keep.items():
            if instance not in keep or wish.ago_s < keep[instance].ago_s:
                keep[instance] = wish
        for instance, count in report.in_flight.items():
            in_flight[instance] = in_flight.get(instance, 0) + count
        for function, count in report.waiting.items():
            waiting[function] = waiting.get(function, 0) + count
    return Use(in_flight=in_flight, waiting=waiting, used=fleet.used, keep=keep, shares=shares, at=fleet.at)


def shifted_fleet(fleet: Fleet, by_s: float) -> Fleet:
    """Return a snapshot with all its times moved by `by_s`."""
    return replace(
        fleet,
        hosts={name: shifted(host, by_s) for name, host in fleet.hosts.items()},
        silent={
            name: replace(host, record=shifted(host.record, by_s), since=host.since + by_s)
            for name, host in fleet.silent.items()
        },
        used=shifted_uses(fleet.used, by_s),
        at=fleet.at + by_s if fleet.at else 0.0,
    )


def newest_uses(used: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Return the later time of each function and instance."""
    return {**used, **{member: max(at, used.get(member, at)) for member, at in more.items()}}


def shifted_uses(used: Mapping[str, float], by_s: float) -> dict[str, float]:
    """Return last uses moved by `by_s`."""
    return {member: at + by_s for member, at in used.items()}


def used_function(function: str) -> str:
    """Return the function's member name in `cortex:used`."""
    return f"f:{function}"


def used_instance(instance: str) -> str:
    """Return the instance's member name in `cortex:used`."""
    return f"i:{instance}"
