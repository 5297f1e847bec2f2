"""Eviction: which instances may make room for others, and in which order. Pure: agents decide by it, routers show it.

Victims are idle, unpinned and past their protection; those that sleep already have none. Among all sets that free
enough, `cheapest_victims` picks the one whose most valuable member is worth least, without superfluous members.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance, Tier, Use
from cortex.platform.scheduling.parking import freed_mb, is_leaving, tier_from
from cortex.platform.scheduling.reasons import Protection

Worth = tuple[float, bool, float, str]
"""What an instance is worth, to be compared with others of its host."""

FIRST_SERVE_S = 30.0
"""A just-loaded instance is protected this long, until its first request."""

RESIDENCY_S = 10.0
"""An instance is protected this long after its last use: a conversation continues, and two functions cannot evict each
other all the time. It is less for one that returns quickly: see `residency_s`."""
LEAST_RESIDENCY_S, RESIDENCY_RETURNS = 2.0, 5.0
"""Routers report once a second, so an instance that seems unused for less may be in use."""


class Victims(Struct, frozen=True):
    """Which instances may be evicted, in addition to their protection.

    `closable` instances may be evicted although they are in use; all others must be unused for `unused_s`.
    """

    strategy: str = "lru"
    closable: frozenset[str] = frozenset()
    unused_s: float = 0.0

    def among(
        self, instances: Iterable[Instance], priority: int, use: Use, now: float, mildest: Tier = Tier.STOP
    ) -> list[Instance]:
        """Return the instances that may be evicted for a function of this priority, to no milder tier."""
        return [i for i in instances if not self.protection(i, priority, use, now, mildest)]

    def protection(
        self, instance: Instance, priority: int, use: Use, now: float, mildest: Tier = Tier.STOP
    ) -> Protection | State | None:
        """Why an instance may not be evicted for a function of this priority, to no milder tier; None when it may."""
        if instance.id in self.closable:
            return None
        if self.strategy == "priority" and instance.priority > priority:
            return Protection.HIGHER_PRIORITY
        if why := protection(instance, use, now, mildest):
            return why
        return Protection.JUST_USED if now - use.last_used(instance) < self.unused_s else None


def displaceable(
    instance: Instance, priority: int, use: Use, now: float, *, strategy: str, mildest: Tier = Tier.STOP
) -> bool:
    """Whether an instance may be evicted for a function of this priority, to no milder tier than `mildest`."""
    return not Victims(strategy).protection(instance, priority, use, now, mildest)


def residency_s(instance: Instance, mildest: Tier) -> float:
    """Return how long an instance is protected after its last use, if it goes to no milder tier: `RESIDENCY_S`, or
    `RESIDENCY_RETURNS` times what its return from a tier was measured to take, if that is less."""
    tier = tier_from(instance, mildest)
    back_s = instance.return_s.get(tier) if tier is not Tier.STOP else None
    return RESIDENCY_S if back_s is None else min(RESIDENCY_S, max(LEAST_RESIDENCY_S, RESIDENCY_RETURNS * back_s))


def protection(instance: Instance, use: Use, now: float, mildest: Tier = Tier.SLEEP) -> Protection | State | None:
    """Why an instance may not be evicted now, for any function, to no milder tier than `mildest`: its state, if
    that is the reason; None when it may."""
    if instance.state is State.SLEEPING and not is_leaving(instance):
        return Protection.PINNED if instance.pinned else None
    if not use.known:
        return Protection.USE_UNKNOWN
    if instance.state is not State.READY:
        return instance.state
    if instance.pinned:
        return Protection.PINNED
    if use.in_flight.get(instance.id, 0):
        return Protection.BUSY
    if use.last_used(instance) > instance.ready:
        used_s = now - use.last_used(instance)
        return Protection.JUST_USED if used_s < residency_s(instance, mildest) else None
    if instance.for_minimum and not use.waiting.get(instance.function):
        return None  # no request waited for its start
    return Protection.JUST_LOADED if now - instance.ready < FIRST_SERVE_S else None


def least_valuable_first(
    instances: Iterable[Instance], use: Use, now: float, *, strategy: str, mildest: Tier = Tier.SLEEP
) -> list[Instance]:
    """Return instances in the order of eviction, when they go to no milder tier than `mildest`."""
    values = worths(instances := list(instances), use, now, strategy=strategy, mildest=mildest)
    return sorted(instances, key=lambda i: values[i.id])


def cheapest_victims(
    short: dict[str, int], ordered: Sequence[Instance], mildest: Tier = Tier.SLEEP
) -> tuple[Instance, ...] | None:
    """Return the victims that free `short` MiB on each named device, or None. The candidates come in the order of
    eviction.

    Candidates are added from the least valuable up until they free enough; then, from the most valuable down, those
    that are not needed are removed. So the most valuable victim is worth as little as possible, and every member of
    the set is needed.
    """
    exits = [(c, tier_from(c, mildest)) for c in ordered]
    chosen: list[tuple[Instance, Tier]] = []
    for candidate, tier in exits:
        if frees(short, chosen):
            break
        if any(d in short and short[d] > 0 for d in candidate.devices):
            chosen.append((candidate, tier))
    if not frees(short, chosen):
        return None
    for victim in reversed(chosen.copy()):
        rest = [c for c in chosen if c is not victim]
        if frees(short, rest):
            chosen = rest
    return tuple(c for c, _ in chosen)


def worths(
    instances: Iterable[Instance], use: Use, now: float, *, strategy: str, mildest: Tier = Tier.SLEEP
) -> dict[str, Worth]:
    """Return what each instance is worth: of two, the one that is worth less is evicted.

    (1) of a higher priority, by that strategy;
    (2) an instance that serves is worth more than one that is parked already;
    (3) the seconds of its return, divided by the time since its last use: the longer ago that is, the less likely is a
        return. Where the return of one was never measured, only the last use counts.
    """
    instances = list(instances)
    return_s = {i.id: i.return_s.get(tier_from(i, mildest), 0.0) for i in instances}
    measured = all(return_s.values())

    def worth(instance: Instance) -> Worth:
        last = use.last_used(instance)
        value = -(max(now - last, 0.0) / return_s[instance.id]) if measured else last
        priority = float(instance.priority) if strategy == "priority" else 0.0
        return (priority, instance.parked is None, value, instance.id)

    return {i.id: worth(i) for i in instances}


def frees(short: Mapping[str, int], victims: Sequence[tuple[Instance, Tier]]) -> bool:
    """Whether these victims free `short` MiB on each named device when they go to these tiers."""
    return all(sum(freed_mb(v, tier) for v, tier in victims if d in v.devices) >= mb for d, mb in short.items())
