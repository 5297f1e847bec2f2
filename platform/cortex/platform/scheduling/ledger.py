"""The ledger: what instances really took, by worker command and kind of device. Pure.

The next start of the same revision on the same kind of device is placed by it. Memory is the highest seen; start
times are a running mean, for saying how long a start still takes.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.record import Device

GROWN = 1.05
"""A new high is written down when it is this much over the old one: readings waver."""


class Entry(Struct, frozen=True, kw_only=True):
    """What one revision takes on one kind of device. MiB over all devices; seconds from spawn to ready."""

    memory_mb: int = 0
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


def for_host(ledger: Mapping[str, Entry], devices: Iterable[Device]) -> dict[str, Entry]:
    """Return by revision what is known for the devices of one host; the most, where kinds differ."""
    names = {d.name for d in devices}
    known: dict[str, Entry] = {}
    for field, entry in ledger.items():
        revision, _, name = field.partition("|")
        if name in names and entry.memory_mb >= known.get(revision, Entry()).memory_mb:
            known[revision] = entry
    return known


def with_memory(entry: Entry | None, memory_mb: int, now: float) -> Entry | None:
    """Return the entry after a reading, or None when it says nothing new."""
    known = entry or Entry()
    return replace(known, memory_mb=memory_mb, at=now) if memory_mb > known.memory_mb * GROWN else None


def with_start(entry: Entry | None, start_s: float, phases: Mapping[str, float], ready: float, now: float) -> Entry:
    """Return the entry after one more start."""
    known = entry or Entry()
    weight = min(known.starts, 9)
    mean = (known.start_s * weight + start_s) / (weight + 1)
    return replace(
        known, start_s=round(mean, 3), starts=known.starts + 1, phases=dict(phases), started_at=ready, at=now
    )
