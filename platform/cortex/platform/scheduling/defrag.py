"""Defragmentation: make room for a function that needs several devices by moving small instances together. Pure.

A function over two devices may not fit although the host has enough free memory in total, because each device holds a
small idle instance. A replacement of each starts elsewhere first; then the old one is drained and stopped.
"""

from itertools import combinations, islice

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import PARKED, State
from cortex.platform.record import HostRecord, Instance, Use
from cortex.platform.scheduling.eviction import displaceable
from cortex.platform.scheduling.placement import (
    MOST_DEVICE_SETS,
    Need,
    Placement,
    fitting_devices,
    place,
)


class Move(Struct, frozen=True):
    """An instance to move, and its new devices."""

    instance: str
    to: tuple[str, ...]


class Consolidation(Struct, frozen=True):
    """Devices that can be emptied, and the moves that empty them."""

    devices: tuple[str, ...]
    moves: tuple[Move, ...]


def consolidate(need: Need, host: HostRecord, use: Use, now: float, *, strategy: str) -> Consolidation | None:
    """Return the devices for `need` that can be emptied by moving the least memory, or None.

    Every instance on them must be evictable, and each must fit elsewhere on the host.
    """
    best: tuple[int, tuple[str, ...], tuple[Move, ...]] | None = None
    candidates = sorted(d.id for d in fitting_devices(need, host) if not d.foreign_mb)
    for devices in islice(combinations(candidates, need.devices), MOST_DEVICE_SETS):
        occupants = [i for i in host.instances if set(devices).intersection(i.devices)]
        movable = (
            i.state not in PARKED and displaceable(i, need.priority, use, now, strategy=strategy) for i in occupants
        )
        if not all(movable):
            continue
        moves = _moves(occupants, devices, host, use, now)
        if moves is None:
            continue
        cost = sum(i.memory_mb * len(i.devices) for i in occupants)
        if best is None or (cost, devices) < best[:2]:
            best = (cost, devices, moves)
    return Consolidation(best[1], best[2]) if best is not None and best[2] else None


def _moves(
    occupants: list[Instance], devices: tuple[str, ...], host: HostRecord, use: Use, now: float
) -> tuple[Move, ...] | None:
    """Place each instance on other devices, the largest first; None when one does not fit."""
    remaining = replace(
        host,
        devices=tuple(d for d in host.devices if d.id not in devices),
        instances=tuple(i for i in host.instances if i not in occupants),
    )
    moves = []
    for instance in sorted(occupants, key=lambda i: (-i.memory_mb, i.id)):
        occupant_need = Need(
            function=instance.function,
            engine=next(iter(host.engines), ""),
            devices=len(instance.devices),
            memory_mb=instance.memory_mb,
        )
        placement = place(occupant_need, remaining, use, now)
        if not isinstance(placement, Placement) or placement.waits_for:
            return None
        moves.append(Move(instance.id, placement.devices))
        moved = replace(instance, devices=placement.devices, state=State.PLACING)
        remaining = replace(remaining, instances=(*remaining.instances, moved))
    return tuple(moves)
