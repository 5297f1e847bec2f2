"""Placement: where an instance goes on a host, and which instances it evicts. Pure: routers use it as an estimate, from
their snapshot; the agent uses it as the decision.

Memory is counted per device: admitted instances (placing, starting, ready, parked), leaving ones (draining, parking,
stopping, reclaiming) and foreign processes. A placement may use the memory of leaving instances, but must wait for it.
`eviction.py` picks the victims, `parking.py` says what each instance keeps.
"""

import enum
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.estimate import estimate
from cortex.functions.lifecycle import PARKED
from cortex.functions.spec import Engine, Function
from cortex.platform.record import Device, HostRecord, Instance, Tier, Use
from cortex.platform.scheduling.eviction import Victims, Worth, cheapest_victims, frees, least_valuable_first, worths
from cortex.platform.scheduling.eviction import protection as protection  # for callers of `place`
from cortex.platform.scheduling.parking import TIERS, admitted_mb, freed_mb, is_leaving, tier_from
from cortex.platform.scheduling.reasons import protection_text
from cortex.platform.scheduling.saved_state import LocalWeights

MINIMUM_YIELDS_S = 60.0
"""A function's `min` evicts an instance only if that one was not used for this long."""

MOST_DEVICE_SETS = 200
"""Sets of devices compared for a function that needs several; `_freed` selects the devices."""

NO_BOUND_MB = 2**53
"""More than the memory of any device."""


class Need(Struct, frozen=True, kw_only=True, gc=False):
    """What one instance of a function needs of a host."""

    function: str
    engine: str
    server: str = ""
    """The required server; empty: any of the engine."""
    devices: int = 1
    device_total_mb: int = 0
    memory_mb: int = 0
    """On each of its devices."""
    least_mb: int = 0
    """The least that the engine accepts; 0: `memory_mb`."""
    memory_from: str = "estimated"
    pinned_on: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    priority: int = 0


class Placement(Struct, frozen=True, kw_only=True):
    """The devices, the instances to evict, and every instance that must be gone before the start."""

    devices: tuple[str, ...]
    memory_mb: int
    memory_from: str = "estimated"
    evict: tuple[str, ...] = ()
    parks: dict[str, Tier] = {}
    """The tier of each of `evict` that does not stop."""
    waits_for: tuple[str, ...] = ()


class When(enum.StrEnum):
    """Whether waiting may help."""

    LATER = "later"
    NEVER = "never"


class NoRoom(Struct, frozen=True, kw_only=True):
    """Why the function does not fit on a host, by how much, and whether waiting may help."""

    reason: str
    when: When
    short_by_mb: int = 0
    foreign_mb: int = 0
    """Memory of the foreign processes without whose end the function cannot fit: no instance that leaves makes room."""


def need(
    function: Function, weights: LocalWeights | None, measured_mb: int | None = None, devices: Iterable[Device] = ()
) -> Need:
    """Return what a function needs: a measurement beats a declaration beats an estimate.

    With `devices`, an estimate or a measurement is capped at the budget of the largest ones, because the KV cache can
    shrink. vLLM makes its cache as large as requested, and accepts one for a single request (`least_mb`). It fills
    whatever it gets, so for vLLM a measurement counts only when it exceeds the request: a smaller one would shrink the
    cache with each start.
    """
    count = function.min_devices
    large = [d.budget_mb for d in devices if d.total_mb >= function.min_device_vram_mb]
    most = _on_each(count, large) or NO_BOUND_MB
    least = 0
    if function.vram_mb:
        each, source = -(-function.vram_mb // count), "declared"
    else:
        guess = estimate(function, weights.size_mb if weights else 0, weights.shape if weights else None)
        each, source = guess.within(most), "estimated"
        if function.engine is Engine.VLLM:
            least = min(each, guess.least_mb)
    if measured_mb:
        measured_each = -(-measured_mb // count)
        if function.engine is not Engine.VLLM or measured_each > each:
            each, least, source = min(measured_each, max(most, each)), 0, "measured"
    return Need(
        function=function.id,
        engine=function.engine,
        server=function.server,
        devices=count,
        device_total_mb=function.min_device_vram_mb,
        memory_mb=each,
        least_mb=least,
        memory_from=source,
        pinned_on=function.pinned_on,
        labels=function.labels,
        priority=function.priority,
    )


def place(
    need: Need,
    host: HostRecord,
    use: Use,
    now: float,
    *,
    strategy: str = "lru",
    cordoned: bool = False,
    closable: frozenset[str] = frozenset(),
    unused_s: float = 0.0,
) -> Placement | NoRoom:
    """Decide where `need` goes on `host`. Instances in `closable` may be evicted although they are in use; all others
    must be unused for `unused_s`. A need with `least_mb` gets, in this order:

    (1) all of its memory, without eviction, or if only parked instances leave: they serve no request;
    (2) the free memory, if that is enough;
    (3) all of its memory, with eviction;
    (4) the memory that eviction can free, if that is enough.
    """
    victims = Victims(strategy, closable, unused_s)
    whole = _fit(need, host, use, now, victims, cordoned=cordoned)
    parked = {i.id for i in host.instances if i.state in PARKED}
    if not need.least_mb or (isinstance(whole, Placement) and parked.issuperset(whole.evict)):  # (1)
        return whole
    large = [d for d in host.devices if d.total_mb >= need.device_total_mb]
    most = _on_each(need.devices, [_free(d, host.instances) for d in large])
    if isinstance(whole, NoRoom) and most < need.least_mb:  # (4)
        candidates = victims.among(host.instances, need.priority, use, now)
        freed = (sum(c.held_mb for c in candidates if d.id in c.devices) for d in large)
        most = _on_each(need.devices, [_free(d, host.instances) + mb for d, mb in zip(large, freed, strict=True)])
    if need.least_mb <= most < need.memory_mb:  # (2), (4)
        return _fit(replace(need, memory_mb=most), host, use, now, victims, cordoned=cordoned)
    return whole  # (3)


def _fit(need: Need, host: HostRecord, use: Use, now: float, rule: Victims, *, cordoned: bool) -> Placement | NoRoom:
    """Place `need` with exactly its memory, in this order:

    (1) the host does not accept it: pinned elsewhere, cordoned, engine missing;
    (2) its devices are too few or too small, even when empty;
    (3) free memory: the devices that it fills most tightly, so that large gaps stay for large functions;
    (4) eviction: the cheapest victims, in the mildest tiers that make the room;
    (5) otherwise no room, and by how much.
    """
    if cordoned:  # (1)
        return NoRoom(reason="the host is cordoned", when=When.LATER)
    if unfit := misfit(need, host):  # (1), (2)
        return unfit

    fitting = fitting_devices(need, host)
    free = {d.id: _free(d, host.instances) for d in fitting}  # (3)
    roomy = [d for d in fitting if free[d.id] >= need.memory_mb]
    if len(roomy) >= need.devices:
        # A device that can be used at once is better than one where a leaving instance holds the memory.
        chosen = sorted(roomy, key=lambda d: (bool(_in_the_way(need, d, host.instances)), free[d.id], d.id))
        return _placement(need, chosen[: need.devices], host.instances, {})

    for mildest in _levels(host.instances):  # (4)
        candidates = rule.among(host.instances, need.priority, use, now, mildest)
        order = least_valuable_first(candidates, use, now, strategy=rule.strategy, mildest=mildest)
        values = worths(candidates, use, now, strategy=rule.strategy, mildest=mildest)
        best: tuple[list[Worth], tuple[str, ...], tuple[Instance, ...]] | None = None
        for devices in _device_sets(_freed(need, free, order, mildest), need.devices):
            victims = cheapest_victims({d: need.memory_mb - free[d] for d in devices}, order, mildest)
            if victims is not None:
                values_of = sorted((values[v.id] for v in victims), reverse=True)
                if best is None or (values_of, devices) < (best[0], best[1]):
                    best = (values_of, devices, victims)
        if best is not None:
            short = {d: need.memory_mb - free[d] for d in best[1]}
            exits = _mildest_exits(best[2], short, mildest)
            return _placement(need, [d for d in fitting if d.id in best[1]], host.instances, exits)

    candidates = rule.among(host.instances, need.priority, use, now)  # (5)
    short_mb = sorted(need.memory_mb - free[d] - sum(c.held_mb for c in candidates if d in c.devices) for d in free)[
        need.devices - 1
    ]
    device_ids = {d.id for d in fitting}
    blockers = [
        i
        for i in host.instances
        if not is_leaving(i) and i.held_mb and device_ids.intersection(i.devices) and i not in candidates
    ]
    foreign = sum(d.foreign_mb for d in fitting)
    pinned = bool(blockers) and all(i.pinned for i in blockers)
    reasons = []
    if blockers:
        whys = {i.id: rule.protection(i, need.priority, use, now) for i in blockers}
        reasons.append(protection_text((i.function, whys[i.id]) for i in blockers))
    if foreign:
        reasons.append(f"foreign processes hold {foreign} MiB")
    return NoRoom(
        reason=f"does not fit by {short_mb} MiB: {' and '.join(reasons)}",
        # Foreign processes may end; pinned instances stay.
        when=When.NEVER if pinned and not foreign else When.LATER,
        short_by_mb=short_mb,
        foreign_mb=_blocking_foreign_mb(need, fitting, host),
    )


def _blocking_foreign_mb(need: Need, devices: Sequence[Device], host: HostRecord) -> int:
    """Return the memory of foreign processes on these devices, if `need` would not fit beside them without any
    instance; else 0.

    Only listed processes count: other memory that no instance explains may be one that is still being released.
    """
    listed = {d.id: sum(h.memory_mb or 0 for h in host.foreign if h.device == d.id) for d in devices}
    least = need.least_mb or need.memory_mb
    possible = sum(1 for d in devices if d.budget_mb - listed[d.id] >= least)
    return 0 if possible >= need.devices else sum(listed.values())


def misfit(need: Need, host: HostRecord) -> NoRoom | None:
    """Why `need` cannot run on `host` even when the host is empty, or None."""
    if need.pinned_on and host.name not in need.pinned_on:
        return NoRoom(reason=f"pinned on {', '.join(need.pinned_on)}", when=When.NEVER)
    if missing := sorted(set(need.labels).difference(host.labels)):
        return NoRoom(reason=f"lacks the label {', '.join(missing)}", when=When.NEVER)
    if need.engine not in host.engines:
        return NoRoom(reason=f"engine '{need.engine}' is not there", when=When.NEVER)
    if need.server and need.server not in host.servers:
        return NoRoom(reason=f"server '{need.server}' is not there", when=When.NEVER)
    large = [d for d in host.devices if d.total_mb >= need.device_total_mb]
    if len(large) < need.devices:
        size = f" of at least {need.device_total_mb} MiB" if need.device_total_mb else ""
        return NoRoom(reason=f"needs {need.devices} devices{size}, has {len(large)}", when=When.NEVER)
    if len(fitting_devices(need, host)) < need.devices:
        largest = sorted((d.budget_mb for d in large), reverse=True)[need.devices - 1]
        short = need.memory_mb - largest
        return NoRoom(
            reason=f"needs {need.memory_mb} MiB per device, {short} MiB more than there can ever be",
            when=When.NEVER,
            short_by_mb=short,
        )
    return None


def capacity(host: HostRecord) -> Hashable:
    """Return all that `misfit` looks at but the host's name: a need that is not pinned fits all hosts with equal
    values, or none of them."""
    devices = tuple((d.total_mb, d.budget_mb) for d in host.devices)
    return host.labels, tuple(host.engines), host.servers, devices


def fitting_devices(need: Need, host: HostRecord) -> list[Device]:
    return [d for d in host.devices if d.total_mb >= need.device_total_mb and d.budget_mb >= need.memory_mb]


def _on_each(count: int, memory: Sequence[int]) -> int:
    """Return the least memory on each of the best `count` devices."""
    return sorted(memory, reverse=True)[count - 1] if len(memory) >= count else 0


def _free(device: Device, instances: Sequence[Instance]) -> int:
    """The memory of a device that can still be admitted, without what leaving instances give up."""
    admitted = sum(admitted_mb(i) for i in instances if device.id in i.devices)
    return device.budget_mb - device.foreign_mb - admitted


def _in_the_way(need: Need, device: Device, instances: Sequence[Instance], exits: Mapping[str, Tier] = {}) -> list[str]:
    """Leaving instances of a device that must be gone first; none when the need fits next to them. `exits` are the
    victims, with their tiers."""
    occupants = [i for i in instances if device.id in i.devices]
    held = sum(i.held_mb - (freed_mb(i, exits[i.id]) if i.id in exits else 0) for i in occupants)
    if held + need.memory_mb <= device.budget_mb - device.foreign_mb:
        return []
    return [i.id for i in occupants if i.id not in exits and is_leaving(i)]


def _levels(candidates: Sequence[Instance]) -> list[Tier]:
    """Return the tiers to try, the mildest first. Without an instance that can be parked: only `stop`."""
    possible = {t for c in candidates for t in c.tiers}
    return [t for t in TIERS if t in possible or t is Tier.STOP]


def _mildest_exits(victims: Sequence[Instance], short: Mapping[str, int], mildest: Tier) -> dict[str, Tier]:
    """Return the tier of each victim: `mildest` or milder, the most valuable victim first, as long as there is room."""
    exits = {v.id: tier_from(v, mildest) for v in victims}
    for victim in reversed(victims):
        for tier in _levels([victim]):
            milder = {**exits, victim.id: tier_from(victim, tier)}
            if frees(short, [(v, milder[v.id]) for v in victims]):
                exits = milder
                break
    return exits


def _freed(need: Need, free: Mapping[str, int], ordered: Sequence[Instance], mildest: Tier) -> list[str]:
    """Return the devices with room once just enough of the least valuable candidates are gone.

    Victims on any other device are worth more, so the cheapest devices are among these. They are usually no more than
    needed, so that not every set of devices of a large host is tried.
    """
    room = dict(free)
    for candidate in ordered:
        for device in room.keys() & candidate.devices:
            room[device] += freed_mb(candidate, tier_from(candidate, mildest))
        enough = sorted(d for d, mb in room.items() if mb >= need.memory_mb)
        if len(enough) >= need.devices:
            return enough
    return []


def _device_sets(devices: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return islice(combinations(devices, size), MOST_DEVICE_SETS)


def _placement(
    need: Need, devices: Sequence[Device], instances: Sequence[Instance], exits: dict[str, Tier]
) -> Placement:
    leaving = {i for d in devices for i in _in_the_way(need, d, instances, exits)}
    evict = tuple(exits)
    return Placement(
        devices=tuple(sorted(d.id for d in devices)),
        memory_mb=need.memory_mb,
        memory_from=need.memory_from,
        evict=evict,
        parks={v: tier for v, tier in exits.items() if tier is not Tier.STOP},
        waits_for=(*evict, *sorted(leaving)),
    )
