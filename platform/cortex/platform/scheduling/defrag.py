"""Making room for a function that needs several devices by moving small ones together instead of evicting them.

Pure. A function over two devices may find room on neither although the host has plenty: an idle small one sits on
each. Those are started elsewhere first, then drained and stopped; nobody waits for them in the meantime.
"""

from itertools import combinations, islice

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.record import HostRecord, Instance, Use
from cortex.platform.scheduling.placement import (
    LEAVING,
    MOST_DEVICE_SETS,
    Need,
    Placement,
    displaceable,
    fitting_devices,
    place,
)


class Move(Struct, frozen=True):
    """An instance that is to serve from other devices."""

    instance: str
    to: tuple[str, ...]


class Consolidation(Struct, frozen=True):
    """Devices that can be emptied, and where those go that are on them now."""

    devices: tuple[str, ...]
    moves: tuple[Move, ...]


def consolidate(need: Need, host: HostRecord, use: Use, now: float, *, strategy: str) -> Consolidation | None:
    """Return the devices for `need` that can be emptied by moving the least memory, or None.

    Every instance on them must be one that could be evicted, and each must fit elsewhere on the host as it is.
    """
    best: tuple[int, tuple[str, ...], tuple[Move, ...]] | None = None
    candidates = sorted(d.id for d in fitting_devices(need, host) if not d.foreign_mb)
    for devices in islice(combinations(candidates, need.devices), MOST_DEVICE_SETS):
        there = [i for i in host.instances if set(devices).intersection(i.devices)]
        if any(i.state in LEAVING or not displaceable(i, need, use, now, strategy=strategy) for i in there):
            continue
        moves = _moved(there, devices, host, use, now)
        if moves is None:
            continue
        cost = sum(i.memory_mb * len(i.devices) for i in there)
        if best is None or (cost, devices) < best[:2]:
            best = (cost, devices, moves)
    return Consolidation(best[1], best[2]) if best is not None and best[2] else None


def _moved(
    there: list[Instance], devices: tuple[str, ...], host: HostRecord, use: Use, now: float
) -> tuple[Move, ...] | None:
    """Find each instance another place, the largest first; None when one has none."""
    rest = replace(
        host,
        devices=tuple(d for d in host.devices if d.id not in devices),
        instances=tuple(i for i in host.instances if i not in there),
    )
    moves = []
    for instance in sorted(there, key=lambda i: (-i.memory_mb, i.id)):
        wanted = Need(
            function=instance.function,
            engine=next(iter(host.engines), ""),
            devices=len(instance.devices),
            memory_mb=instance.memory_mb,
        )
        spot = place(wanted, rest, use, now)
        if not isinstance(spot, Placement) or spot.waits_for:
            return None
        moves.append(Move(instance.id, spot.devices))
        taken = replace(instance, devices=spot.devices, state=State.PLACING)
        rest = replace(rest, instances=(*rest.instances, taken))
    return tuple(moves)
