"""The fleet: a reader's snapshot of the whole record, and how its parts are added up, compared and moved in time. Pure.

`record.py` has the values of which it consists, `record_reader.py` makes one of what Redis returns.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.record import HostRecord, Instance, KeepAlive, Namesake, Override, RouterReport, ShareUse, Use


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


def shift_fleet(fleet: Fleet, by_s: float) -> Fleet:
    """Return a snapshot with all its times moved by `by_s`."""
    return replace(
        fleet,
        hosts={name: shift(host, by_s) for name, host in fleet.hosts.items()},
        silent={
            name: replace(host, record=shift(host.record, by_s), since=host.since + by_s)
            for name, host in fleet.silent.items()
        },
        used=shift_uses(fleet.used, by_s),
        at=fleet.at + by_s if fleet.at else 0.0,
    )


def newest_uses(used: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Return the later time of each function and instance."""
    return {**used, **{member: max(at, used.get(member, at)) for member, at in more.items()}}


def shift_uses(used: Mapping[str, float], by_s: float) -> dict[str, float]:
    """Return last uses moved by `by_s`."""
    return {member: at + by_s for member, at in used.items()}


def is_newer(read: HostRecord, present: HostRecord, *, overlapped: bool) -> bool:
    """Return whether a host's record that was just read is newer than the reader's `present` one.

    `overlapped`: the read began before the present record arrived, so it may have fetched an older value.

    (1) One agent process wrote both: the one with the higher sequence is newer.
    (2) Different processes wrote them, and the read began after the present record arrived: the read one is newer.
    (3) Different processes wrote them, and the reads overlapped: the one of the agent that started later. If a step of
        the wall clock between the starts makes this wrong, the next full read is case (2).
    """
    if read.agent and read.agent == present.agent:  # (1)
        return read.sequence > present.sequence
    if not overlapped:  # (2)
        return True
    return (read.started, read.at) > (present.started, present.at)  # (3)


def shift(record: HostRecord, by_s: float) -> HostRecord:
    """Return a host's record with all its times moved by `by_s`. A time of 0 means none and stays."""

    def move(at: float) -> float:
        return at + by_s if at else 0.0

    return replace(
        record,
        at=move(record.at),
        started=move(record.started),
        instances=tuple(
            replace(
                i,
                since=move(i.since),
                created=move(i.created),
                phase_since=move(i.phase_since),
                last_sign=move(i.last_sign),
                started=move(i.started),
                ready=move(i.ready),
                deadline=move(i.deadline),
            )
            for i in record.instances
        ),
        failures=tuple(replace(f, at=move(f.at), retry_at=move(f.retry_at)) for f in record.failures),
        line=tuple(replace(w, since=move(w.since), turn_at=move(w.turn_at)) for w in record.line),
        contexts=tuple(replace(c, at=move(c.at)) for c in record.contexts),
    )
