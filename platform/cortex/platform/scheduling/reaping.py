"""When an idle instance is reaped: the agent's rule, which routers show. Pure."""

from collections.abc import Iterable

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.record import Instance, Use

SURPLUS_S = 10.0
"""Idle time of an instance beyond its function's `max`, unless `idle_after_s` is shorter: a host that was cut off came
back, or `max` was lowered."""
REAP_LEAST_S = 2.0
"""Reports come once a second: an instance that seems idle for less may be in use."""


def reap_at(instance: Instance, function: Function, usage: Use, instances: Iterable[Instance]) -> float | None:
    """Return when an instance is reaped if it stays idle; None while it is in use or needed.

    `instances` are those of all hosts. An instance is needed while it is pinned, while requests wait for its function,
    and as part of the function's minimum or baseline: the ready instances of lowest id count, so every agent reaches
    the same result. Its last request may say how long it stays (`keep_alive`). An instance whose drain
    was cancelled starts its idle time again. Those beyond `max` are reaped
    after `SURPLUS_S`.
    """
    if instance.state is not State.READY or instance.pinned or function.pinned:
        return None
    if usage.in_flight.get(instance.id) or usage.waiting.get(function.id):
        return None
    rank = sum(i.id < instance.id and i.function == function.id and i.state is State.READY for i in instances)
    if rank < function.resident:
        return None
    is_surplus = rank >= function.max
    keep_s = usage.keep_s(instance)
    idle_s = function.idle_after_s if keep_s is None else min(keep_s, function.longest_idle_s)
    idle_s = min(idle_s, SURPLUS_S) if is_surplus else idle_s
    return max(usage.last_used(instance), instance.since) + max(idle_s, REAP_LEAST_S)
