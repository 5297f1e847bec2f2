"""Which conversations to save before a worker leaves its devices. Pure.

Only the router that sent a conversation knows whose it is, and only while it is the only one at the instance. So a
conversation is saved only if the drain handshake proves that the routers' reports are final: afterwards no request can
have replaced it in its slot.
"""

from cortex.functions.lifecycle import State
from cortex.functions.servers import server_of
from cortex.platform.record import DrainReason, Instance, SlotContext
from cortex.platform.scheduling.state import HostState

LEAST_TOKENS = 1024
"""A shorter prompt is processed sooner than it is saved and restored."""
MOST_SAVED = 16
"""Conversations of one instance that are saved."""


def contexts_to_save(state: HostState, instance: Instance) -> tuple[SlotContext, ...]:
    """Return the conversations to save before an instance leaves, the longest first; none if

    (1) its function does not keep them, its server cannot save them, or its revision is replaced by another;
    (2) it leaves without a drain: requests may still be in its slots;
    (3) the reports cannot be read, or one of them does not acknowledge the drain or has requests in flight;
    (4) not exactly one router reports conversations of it.
    """
    function, fleet = state.functions.get(instance.id), state.reports.fleet
    if function is None or not function.keep_context or not server_of(function, instance.server).saves_slots:  # (1)
        return ()
    if instance.reason is DrainReason.SUPERSEDED:  # (1)
        return ()
    if instance.state is not State.DRAINING:  # (2)
        return ()
    if fleet is None:  # (3)
        return ()
    reports = fleet.routers.values()
    if any(r.seen.get(state.host.name, -1) < instance.epoch or r.in_flight.get(instance.id) for r in reports):  # (3)
        return ()
    lists = [r.slots[instance.id] for r in reports if r.slots.get(instance.id)]
    if len(lists) != 1:  # (4)
        return ()
    long = [c for c in lists[0] if c.tokens >= LEAST_TOKENS]
    return tuple(sorted(long, key=lambda c: -c.tokens)[:MOST_SAVED])
