"""Eviction: which instances may make room for others, and in which order. Pure: agents decide by it, routers show it.

Victims are idle, unpinned and past their protection. Among all sets that free enough, `cheapest_victims` picks the one
whose most valuable member is worth least, without superfluous members.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance, Use

FIRST_SERVE_S = 30.0
"""A just-loaded instance is protected this long, until its first request."""

RESIDENCY_S = 10.0
"""An instance is protected this long after its last use: a conversation continues, and two functions cannot evict each
other all the time."""


class Victims(Struct, frozen=True):
    """Which instances may be evicted, in addition to their protection.

    `closable` instances may be evicted although they are in use; all others must be unused for `unused_s`.
    """

    strategy: str = "lru"
    closable: frozenset[str] = frozenset()
    unused_s: float = 0.0

    def among(self, instances: Iterable[Instance], priority: int, use: Use, now: float) -> list[Instance]:
        """Return the instances that may be evicted for a function of this priority."""
        return [
            i
            for i in instances
            if i.id in self.closable
            or (now - use.last_used(i) >= self.unused_s and displaceable(i, priority, use, now, strategy=self.strategy))
        ]


def displaceable(instance: Instance, priority: int, use: Use, now: float, *, strategy: str) -> bool:
    """Whether an instance may be evicted for a function of this priority."""
    if strategy == "priority" and instance.priority > priority:
        return False
    return not protection(instance, use, now)


def protection(instance: Instance, use: Use, now: float) -> str:
    """Why an instance may not be evicted now, for any function; "" when it may."""
    if not use.known:
        return "no router says who is in use"
    if instance.state is not State.READY:
        return str(instance.state)
    if instance.pinned:
        return "pinned"
    if use.in_flight.get(instance.id, 0):
        return "busy"
    if use.last_used(instance) > instance.ready:
        return "just used" if now - use.last_used(instance) < RESIDENCY_S else ""
    if instance.for_minimum and not use.waiting.get(instance.function):
        return ""  # no request waited for its start
    return "just loaded" if now - instance.ready < FIRST_SERVE_S else ""


def least_valuable_first(instances: Iterable[Instance], use: Use, *, strategy: str) -> list[Instance]:
    """Return instances in the order of eviction."""
    return sorted(instances, key=lambda i: worth(i, use, strategy))


def cheapest_victims(
    short: dict[str, int], candidates: Sequence[Instance], use: Use, *, strategy: str
) -> tuple[Instance, ...] | None:
    """Return the victims that free `short` MiB on each named device, or None.

    Candidates are added from the least valuable up until they free enough; then, from the most valuable down, those
    that are not needed are removed. So the most valuable victim is worth as little as possible, and every member of
    the set is needed.
    """
    chosen: list[Instance] = []
    for candidate in least_valuable_first(candidates, use, strategy=strategy):
        if _frees(short, chosen):
            break
        if any(d in short and short[d] > 0 for d in candidate.devices):
            chosen.append(candidate)
    if not _frees(short, chosen):
        return None
    for candidate in reversed(chosen.copy()):
        rest = [c for c in chosen if c is not candidate]
        if _frees(short, rest):
            chosen = rest
    return tuple(chosen)


def worth(instance: Instance, use: Use, strategy: str) -> tuple[float, float, str]:
    """Return what an instance is worth: of two, the one that is worth less is evicted."""
    first = float(instance.priority) if strategy == "priority" else 0.0
    return (first, use.last_used(instance), instance.id)


def _frees(short: dict[str, int], victims: Sequence[Instance]) -> bool:
    return all(sum(v.memory_mb for v in victims if d in v.devices) >= mb for d, mb in short.items())
