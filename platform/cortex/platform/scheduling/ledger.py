"""The ledger: measured memory and start time of instances, by worker command and kind of device. Pure.

It sizes the next start of the same revision on the same kind of device. An entry holds the highest reading of each of
the last starts; its memory is the highest of those, so it rises at once and falls over several starts. Start times are
a running mean, used to estimate the rest of a start.

An engine may allocate while it serves. So a reading below the declared memory counts only when its instance has served
for a while, or has ended after it served.
"""

from collections.abc import Collection, Iterable, Mapping
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import PARKED
from cortex.platform.record import Device, Instance, Tier, used_instance

GROWN = 1.05
"""Factor by which a reading must exceed the last one of the same start to be recorded: readings fluctuate."""
WAKING = "waking"
"""The phase of a return in which the memory moves."""
STARTS = 5
"""Starts in an entry."""
SERVED_S = 60.0
"""An instance whose last use is this long after it was ready has served for a while."""


class Reading(Struct, frozen=True, kw_only=True):
    """The highest reading of one start. MiB over all devices."""

    start: float
    """When the instance was ready."""
    memory_mb: int
    instance: str = ""
    cache_mb: int = 0
    """KV cache on each device; 0: unknown."""
    served: bool = True
    """The instance has served long enough for the reading to include what serving takes."""
    fast: bool = False
    """Of a fast start, which may hold less beside its cache than a full one."""


class Costs(Struct, frozen=True, kw_only=True):
    """What the last parking of a revision took, by tier. 0: not measured."""

    park_s: float = 0.0
    return_s: float = 0.0
    device_mb: int = 0
    """Memory on each device that stayed."""
    ram_mb: int = 0


class StartTimes(Struct, frozen=True, kw_only=True):
    """Seconds of the last starts in one mode, oldest first, by one version of the engine."""

    version: str
    seconds: tuple[float, ...] = ()

    @property
    def usual_s(self) -> float:
        """Their median; 0: there are none. The first full start compiles, and takes longer than the others."""
        return median(self.seconds) if self.seconds else 0.0


class Entry(Struct, frozen=True, kw_only=True):
    """Usage of one revision on one kind of device. MiB over all devices; seconds from spawn to ready."""

    memory_mb: int = 0
    """The highest of the readings."""
    readings: tuple[Reading, ...] = ()
    """Of the last starts, oldest first. Entries of earlier releases have none."""
    function: str = ""
    start_s: float = 0.0
    starts: int = 0
    phases: dict[str, float] = {}
    """Seconds of the last start, by phase."""
    started_at: float = 0.0
    """When the last start ended."""
    modes: dict[StartMode, StartTimes] = {}
    """Of engines that start fast or in full."""
    tiers: dict[Tier, Costs] = {}
    at: float = 0.0


def key(revision: str, device: Device) -> str:
    """Return an entry's field in `cortex:ledger`."""
    return f"{revision}|{device.name}"


def revision_of(field: str) -> str:
    """Return the revision in an entry's field."""
    return field.partition("|")[0]


def device_of(field: str) -> str:
    """Return the kind of device in an entry's field."""
    return field.partition("|")[2]


def for_host(ledger: Mapping[str, Entry], devices: Iterable[Device]) -> dict[str, Entry]:
    """Return the entries for one host's devices, by revision; the largest, where kinds of device differ."""
    names = {d.name for d in devices}
    entries: dict[str, Entry] = {}
    for field, entry in ledger.items():
        revision = revision_of(field)
        if device_of(field) in names and entry.memory_mb >= entries.get(revision, Entry()).memory_mb:
            entries[revision] = entry
    return entries


def about(ledger: Mapping[str, Entry], function: str, revisions: Collection[str]) -> dict[str, Entry]:
    """Return the entries of a function: those with its name, and those of these revisions."""
    return {f: e for f, e in ledger.items() if e.function == function or revision_of(f) in revisions}


def with_memory(
    entry: Entry | None,
    memory_mb: int,
    now: float,
    *,
    start: float | None = None,
    instance: str = "",
    served: bool = True,
    cache_mb: int = 0,
    fast: bool = False,
) -> Entry | None:
    """Return the entry after a reading of the instance that was ready at `start` (default: a separate start), or None
    when the reading changes nothing. It counts when it is

    (1) higher than the start's earlier readings, or the first since it served;
    (2) the first of its start, which is among the last ones.
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
        reading = Reading(start=start, memory_mb=memory_mb, instance=instance, served=served)
        readings[start] = replace(reading, cache_mb=cache_mb, fast=fast)
    last = tuple(sorted(readings.values(), key=lambda r: r.start)[-STARTS:])
    if start not in {r.start for r in last}:
        return None
    return replace(base, memory_mb=max(r.memory_mb for r in last), readings=last, at=now)


def with_service(entry: Entry, instance: str, now: float) -> Entry:
    """Return the entry after an instance that had served ended: its reading counts."""
    readings = tuple(replace(r, served=True) if r.instance == instance else r for r in entry.readings)
    return replace(entry, readings=readings, at=now)


def placement_mb(
    entry: Entry | None, declared_mb: int, running: Collection[str] = (), used: Mapping[str, float] | None = None
) -> int:
    """Return the measured memory for the next start, over all devices; 0: no reading counts.

    (1) the declared memory or more: it counts, however little was served;
    (2) less: it counts only if one of the last starts served for a while, or has ended (is not in `running`) after
        it was `used`.
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


def beside_cache_mb(entry: Entry | None, devices: int, *, fast: bool = False) -> int:
    """Return the measured memory on each device without the KV cache (weights, activations, context, graphs), the
    highest of the last starts; for one that is not `fast`, of those that were not. 0: unknown."""
    if entry is None or not devices:
        return 0
    readings = (r for r in entry.readings if r.cache_mb and (fast or not r.fast))
    return max((-(-r.memory_mb // devices) - r.cache_mb for r in readings), default=0)


def with_start(entry: Entry | None, start_s: float, phases: Mapping[str, float], ready: float, now: float) -> Entry:
    """Return the entry after one more start."""
    base = entry or Entry()
    weight = min(base.starts, 9)
    mean = (base.start_s * weight + start_s) / (weight + 1)
    return replace(base, start_s=round(mean, 3), starts=base.starts + 1, phases=dict(phases), started_at=ready, at=now)


def with_mode(entry: Entry, mode: StartMode | None, start_s: float, version: str) -> Entry:
    """Return the entry after one more start in a mode. Times of another version of the engine do not count."""
    if mode is None:
        return entry
    before = entry.modes.get(mode)
    seconds = before.seconds if before is not None and before.version == version else ()
    times = StartTimes(version=version, seconds=(*seconds, round(start_s, 3))[-STARTS:])
    return replace(entry, modes={**entry.modes, mode: times})


def expected_s(entry: Entry, mode: StartMode | None) -> float:
    """Return the seconds of a start in a mode: of earlier ones in it, else of all; 0: not measured."""
    times = entry.modes.get(mode) if mode else None
    return times.usual_s if times else entry.start_s


def with_tiers(entry: Entry | None, instance: Instance, now: float) -> Entry | None:
    """Return the entry after an instance was parked, or is ready again; None when that changes nothing."""
    tier = instance.parked if instance.state in PARKED else returned_from(instance)
    if tier is None:
        return None
    base = entry or Entry()
    before = base.tiers.get(tier, Costs())
    costs = replace(before, park_s=instance.park_s)
    if instance.parked is None:
        costs = replace(costs, return_s=instance.phases.get(WAKING, 0.0))
    if tier is Tier.SLEEP:  # after a return, too: its engine keeps the RAM
        costs = replace(costs, device_mb=instance.parked_mb, ram_mb=instance.ram_mb)
    elif instance.parked is not None:
        costs = replace(costs, ram_mb=instance.ram_mb)
    return None if costs == before else replace(base, tiers={**base.tiers, tier: costs}, at=now)


def returned_from(instance: Instance) -> Tier | None:
    """Return the tier from which an instance returned when it was last ready; None: it was started."""
    return Tier(instance.path) if instance.path in (Tier.SLEEP, Tier.FREEZE) else None


def _readings(entry: Entry) -> tuple[Reading, ...]:
    """Return the readings; the single number in an entry of an earlier release counts as one start."""
    if entry.readings or not entry.memory_mb:
        return entry.readings
    return (Reading(start=entry.started_at or entry.at, memory_mb=entry.memory_mb),)
