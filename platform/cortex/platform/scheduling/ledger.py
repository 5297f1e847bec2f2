"""The ledger: what instances really took, by worker command and kind of device. Pure.

The next start of the same revision on the same kind of device is placed by it. An entry holds the highest reading of
each of the last starts; its memory is the highest of those, so that it rises at once and falls as starts pass. Start
times are a running mean, for telling how long a start still takes.

An engine may allocate as it serves. So a reading below what is declared counts only when its instance has served for a
while, or has ended after it served.
"""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.record import Device, used_instance

GROWN = 1.05
"""A higher reading of the same start is written down when it is this much over the last one: readings waver."""
STARTS = 5
"""How many starts an entry remembers."""
SERVED_S = 60.0
"""An instance whose last use is this long after it was ready has served for a while."""


class Reading(Struct, frozen=True, kw_only=True):
    """The highest reading of one start. MiB over all devices."""

    start: float
    """When the instance was ready."""
    memory_mb: int
    instance: str = ""
    served: bool = True
    """The instance has served for so long that its memory is what serving takes."""


class Entry(Struct, frozen=True, kw_only=True):
    """What one revision takes on one kind of device. MiB over all devices; seconds from spawn to ready."""

    memory_mb: int = 0
    """The highest of the readings."""
    readings: tuple[Reading, ...] = ()
    """Of the last starts, oldest first. Entries of earlier releases have none."""
    function: str = ""
    start_s: float = 0.0
    starts: int = 0
    phases: dict[str, float] = {}
    """The last start, by phase."""
    started_at: float = 0.0
    """When the last start was over."""
    at: float = 0.0


def key(revision: str, device: Device) -> str:
    """Return an entry's field in `cortex:ledger`."""
    return f"{revision}|{device.name}"


def revision_of(field: str) -> str:
    """Return the revision an entry is about, by its field."""
    return field.partition("|")[0]


def device_of(field: str) -> str:
    """Return the kind of device an entry is about, by its field."""
    return field.partition("|")[2]


def for_host(ledger: Mapping[str, Entry], devices: Iterable[Device]) -> dict[str, Entry]:
    """Return by revision what is known for the devices of one host; the most, where kinds differ."""
    names = {d.name for d in devices}
    known: dict[str, Entry] = {}
    for field, entry in ledger.items():
        revision = revision_of(field)
        if device_of(field) in names and entry.memory_mb >= known.get(revision, Entry()).memory_mb:
            known[revision] = entry
    return known


def about(ledger: Mapping[str, Entry], function: str, revisions: Collection[str]) -> dict[str, Entry]:
    """Return the entries of a function: those that name it, and those of these revisions."""
    return {f: e for f, e in ledger.items() if e.function == function or revision_of(f) in revisions}


def with_memory(
    entry: Entry | None,
    memory_mb: int,
    now: float,
    *,
    start: float | None = None,
    instance: str = "",
    served: bool = True,
) -> Entry | None:
    """Return the entry after a reading of the instance that was ready at `start` (default: a start of its own), or
    None when it says nothing new:

    (1) it is higher than the start's readings before, or the first since it served;
    (2) it is the first of its start, which is among the last ones.
    """
    base = entry or Entry()
    start = now if start is None else start
    readings = {r.start: r for r in _readings(base)}
    before = readings.get(start)
    if before is not None:  # (1)
        grown = memory_mb > before.memory_mb * GROWN
        if not grown and (before.served or not served):
            return None
        highest = max(memory_mb, before.memory_mb)
        readings[start] = replace(before, memory_mb=highest, served=served or before.served)
    else:  # (2)
        readings[start] = Reading(start=start, memory_mb=memory_mb, instance=instance, served=served)
    last = tuple(sorted(readings.values(), key=lambda r: r.start)[-STARTS:])
    if start not in {r.start for r in last}:
        return None
    return replace(base, memory_mb=max(r.memory_mb for r in last), readings=last, at=now)


def with_service(entry: Entry, instance: str, now: float) -> Entry:
    """Return the entry once an instance has ended after it served: what it took counts."""
    readings = tuple(replace(r, served=True) if r.instance == instance else r for r in entry.readings)
    return replace(entry, readings=readings, at=now)


def placement_mb(
    entry: Entry | None, declared_mb: int, running: Collection[str] = (), used: Mapping[str, float] | None = None
) -> int:
    """Return the memory that the next start is to be placed by, over all devices; 0: nothing that counts is known.

    (1) as much as is declared, or more: it counts, however little was served;
    (2) less: only with a start among the last ones that served for a while, or has ended (it is not among the
        `running`) after it was `used`.
    """
    if entry is None:
        return 0
    if entry.memory_mb >= declared_mb:  # (1)
        return entry.memory_mb
    uses = used or {}
    counts = any(  # (2)
        r.served or (r.instance not in running and uses.get(used_instance(r.instance), 0.0) > r.start)
        for r in _readings(entry)
    )
    return entry.memory_mb if counts else 0


def with_start(entry: Entry | None, start_s: float, phases: Mapping[str, float], ready: float, now: float) -> Entry:
    """Return the entry after one more start."""
    known = entry or Entry()
    weight = min(known.starts, 9)
    mean = (known.start_s * weight + start_s) / (weight + 1)
    return replace(
        known, start_s=round(mean, 3), starts=known.starts + 1, phases=dict(phases), started_at=ready, at=now
    )


def _readings(entry: Entry) -> tuple[Reading, ...]:
    """Return the readings; the one number of an entry of an earlier release is that of one start."""
    if entry.readings or not entry.memory_mb:
        return entry.readings
    return (Reading(start=entry.started_at or entry.at, memory_mb=entry.memory_mb),)
