"""Parking: the tiers of an instance that leaves its devices, and what it keeps in each. Pure: agents decide by it,
routers show it.

A parked instance keeps its process. Asleep, its engine has moved the weights to RAM, and part of the memory stays on
its devices; frozen, the driver has moved all of it. A return takes a fraction of a start. Tiers are tried from the
mildest, the one with the fastest return: sleep, freeze, stop.

RAM is bounded by the host's `park_ram_mb`. An engine keeps what it pinned after it has returned, until its process
ends. When the RAM is too small, the least recently used parked instances stop.
"""

from collections.abc import Mapping
from types import MappingProxyType

from cortex.functions.lifecycle import PARKED, State
from cortex.functions.spec import SLEEPERS, Engine, Function, Park
from cortex.platform.record import HostRecord, Instance, Tier, Use
from cortex.platform.scheduling.ledger import Costs, Entry

TIERS = (Tier.SLEEP, Tier.FREEZE, Tier.STOP)
"""The tiers to try, the mildest first."""

LEAVING = frozenset({State.DRAINING, State.PARKING, State.STOPPING, State.RECLAIMING})

ASLEEP_MB = 2048
"""Memory of a sleeping instance on each device before it was measured: an 8B model of vLLM with its graphs leaves
1,932 MiB."""

RAM_FACTOR = 1.5
"""RAM of a sleeping instance by the size of its weights, before it was measured: pinned blocks are rounded up."""

MOVE_SLACK_S = {Tier.SLEEP: 5.0, Tier.FREEZE: 15.0}
"""How much longer than expected a move to a tier or back may take: the driver waits up to 10 s for work in progress."""

MOVES_LONGER = 3.0
"""How many times longer than measured a move may take."""

SLOWEST_MOVE_MB_S = 500.0
"""The slowest speed of a move that was not measured; a first sleep, which pins memory, was measured at 1,100 MiB/s."""

PRETENDS = "--asleep-mb"
"""The option of a fake engine that pretends to hold memory in a tier. Without it, or a `park`, it stops."""

_ALLOWED = {
    Park.AUTO: (Tier.SLEEP, Tier.FREEZE),
    Park.SLEEP: (Tier.SLEEP,),
    Park.FREEZE: (Tier.FREEZE,),
    Park.STOP: (),
}


def tiers_of(
    instance: Instance, function: Function, host: HostRecord, ram: Mapping[Tier, int] = MappingProxyType({})
) -> tuple[Tier, ...]:
    """Return the tiers that an instance may go to instead of stopping, the mildest first: those that its function
    allows, its engine and host support, its revision has not failed in, and whose `ram` the host has at all."""
    kinds = {d.kind for d in host.devices if d.id in instance.devices}
    if kinds != {"gpu"} or instance.pinned:
        return ()
    options = {arg.partition("=")[0] for arg in function.args}
    if function.engine is Engine.FAKE and function.park is Park.AUTO and PRETENDS not in options:
        return ()
    failed: Mapping[Tier, str] = host.unparkable.get(instance.revision, {})
    return tuple(
        tier
        for tier in _ALLOWED[function.park]
        if host.tiers.get(tier) == ""
        and tier not in failed
        and (tier is not Tier.SLEEP or (_has_sleep_mode(instance, function) and (instance.sleeps or not instance.pid)))
        and ram.get(tier, 0) <= host.park_ram_mb
    )


def can_park(host: HostRecord) -> bool:
    """Return whether a host has a tier that its instances may go to instead of stopping."""
    return host.park_ram_mb > 0 and any(host.tiers.get(tier) == "" for tier in (Tier.SLEEP, Tier.FREEZE))


def must_sleep(instance: Instance, function: Function, host: HostRecord) -> bool:
    """Return whether to start an instance's engine with sleep mode. It also sleeps before the driver freezes it, which
    leaves less to move."""
    failed: Mapping[Tier, str] = host.unparkable.get(instance.revision, {})
    possible = _has_sleep_mode(instance, function) and host.tiers.get(Tier.SLEEP) == "" and Tier.SLEEP not in failed
    return possible and bool(tiers_of(instance, function, host))


def _has_sleep_mode(instance: Instance, function: Function) -> bool:
    """Return whether an engine can sleep on an instance's devices: vLLM can on GPUs that NVML lists."""
    if function.engine is Engine.VLLM:
        return all(d.startswith("GPU-") for d in instance.devices)
    return function.engine in SLEEPERS


def tier_from(instance: Instance, mildest: Tier) -> Tier:
    """Return the mildest tier from `mildest` on that frees more device memory than an instance has given up already."""
    tiers = TIERS[TIERS.index(mildest) :]
    if instance.state in PARKED and instance.parked in tiers:
        tiers = tiers[tiers.index(instance.parked) + 1 :]
    return next((t for t in tiers if t in instance.tiers), Tier.STOP)


def is_leaving(instance: Instance) -> bool:
    """Whether an instance is on its way off its devices, or to a tier that holds less of them."""
    return instance.state in LEAVING or (instance.state in PARKED and instance.parks_to is not instance.parked)


def admitted_mb(instance: Instance) -> int:
    """Return an instance's memory on each device that others cannot have; for one that leaves, what will stay."""
    if not is_leaving(instance) or instance.parks_to is Tier.OTHER:
        return instance.held_mb
    return instance.parked_mb if instance.parks_to is Tier.SLEEP else 0


def freed_mb(instance: Instance, tier: Tier) -> int:
    """Return the memory on each device that becomes free when an instance goes to a tier."""
    return max(0, instance.held_mb - (instance.parked_mb if tier is Tier.SLEEP else 0))


def parked_mb(entry: Entry | None, memory_mb: int) -> int:
    """Return the memory on each device that stays while an instance sleeps, by measurement if there is one."""
    measured = entry.tiers.get(Tier.SLEEP) if entry else None
    return min(measured.device_mb if measured else ASLEEP_MB, memory_mb if measured else memory_mb // 2)


def return_s(entry: Entry | None) -> dict[Tier, float]:
    """Return the seconds of earlier returns, by tier; those of `stop` are of starts."""
    if entry is None:
        return {}
    returns = {tier: costs.return_s for tier, costs in entry.tiers.items() if costs.return_s}
    return returns | ({Tier.STOP: entry.start_s} if entry.start_s else {})


def move_limit_s(instance: Instance, tier: Tier, weights_mb: int, entry: Entry | None, *, returns: bool) -> float:
    """Return how long a worker may take to go to a tier, or to return from it, before it counts as hung.

    A first move to a tier is slower than the later ones, which the ledger has: it is given time by its size, too.
    """
    costs = (entry.tiers.get(tier) if entry else None) or Costs()
    measured_s = costs.return_s if returns else costs.park_s
    size_mb = 0 if measured_s and (returns or instance.park_s) else instance.memory_mb * max(1, len(instance.devices))
    if tier is Tier.SLEEP and size_mb and weights_mb:
        size_mb = weights_mb
    return MOVE_SLACK_S.get(tier, 0.0) + MOVES_LONGER * measured_s + size_mb / SLOWEST_MOVE_MB_S


# RAM.


def ram_mb(instance: Instance, tier: Tier, weights_mb: int, entry: Entry | None) -> int:
    """Return the RAM that an instance holds in a tier, by measurement if there is one."""
    count = max(1, len(instance.devices))
    measured = entry.tiers.get(tier) if entry else None
    asleep_mb = instance.ram_mb or round(weights_mb * RAM_FACTOR) or instance.memory_mb * count
    if measured and measured.ram_mb:
        return max(measured.ram_mb, instance.ram_mb)
    if tier is Tier.FREEZE and instance.parked is None and not instance.sleeps:
        return instance.memory_mb * count
    return asleep_mb + (instance.parked_mb * count if tier is Tier.FREEZE else 0)


def pinned_mb(instance: Instance, tier: Tier) -> int:
    """Return the RAM that an instance keeps after its return from a tier: what its engine has pinned."""
    if not instance.sleeps:
        return 0
    frozen_mb = instance.parked_mb * len(instance.devices) if tier is Tier.FREEZE else 0
    return max(0, instance.ram_mb - frozen_mb)


def in_ram_order(host: HostRecord, use: Use) -> list[Instance]:
    """Return the parked instances whose RAM another may take, the least recently used first."""
    parked = (i for i in host.instances if i.state in PARKED and not is_leaving(i))
    return sorted(parked, key=lambda i: (use.last_used(i), i.id))
