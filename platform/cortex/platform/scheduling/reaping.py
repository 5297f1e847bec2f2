"""When an idle instance is reaped: the agent's rule, which routers show. Pure."""

from collections.abc import Iterable

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.record import Instance, Use

REAP_LEAST_S = 2.0
"""Reports come once a second: an instance that seems idle for less may be in use."""


def reap_at(instance: Instance, function: Function, usage: Use, instances: Iterable[Instance]) -> float | None:
    """Return when an instance is reaped if it stays idle; None while it is in use or needed.

    `instances` are those of all hosts. An instance is needed while it is pinned, while requests wait for its function,
    and as part of the function's `min`: the ready instances of lowest id count, so every agent reaches the same result.
    An instance whose drain was cancelled starts its idle time again.
    """
    if instance.state is not State.READY or instance.pinned or function.pinned:
        return None
    if usage.in_flight.get(instance.id) or usage.waiting.get(function.id):
        return None
    if function.min:
        ready = sorted(i.id for i in instances if i.function == function.id and i.state is State.READY)
        if instance.id in ready[: function.min]:
            return None
    return max(usage.last_used(instance), instance.since) + max(function.idle_after_s, REAP_LEAST_S)
