"""Whether an instance's conversations are saved before its worker leaves its devices. Pure.

The agent's seats say which conversation is in which slot. That is certain only if the drain handshake proves that the
routers' reports are final: afterwards no request can have replaced a conversation in its slot.
"""

from cortex.functions.lifecycle import State
from cortex.functions.servers import server_of
from cortex.platform.record import DrainReason, Instance
from cortex.platform.scheduling.state import HostState


def unseated_of(state: HostState, instance: Instance) -> dict[str, int] | None:
    """Return how many requests each router has sent to an instance without a seat, if its conversations may be saved
    before it leaves; None if

    (1) its function does not keep them, its server cannot save them, or its revision is replaced by another;
    (2) it leaves without a drain: requests may still be in its slots;
    (3) the reports cannot be read, or one of them does not acknowledge the drain or has requests in flight;
    (4) one is of an older release, whose router takes no seats.
    """
    function, fleet = state.functions.get(instance.id), state.reports.fleet
    if function is None or not function.keep_context or not server_of(function, instance.server).saves_slots:  # (1)
        return None
    if instance.reason is DrainReason.SUPERSEDED:  # (1)
        return None
    if instance.state is not State.DRAINING:  # (2)
        return None
    if fleet is None:  # (3)
        return None
    reports = fleet.routers.values()
    if any(r.seen.get(state.host.name, -1) < instance.epoch or r.in_flight.get(instance.id) for r in reports):  # (3)
        return None
    unseated = {}
    for report in reports:
        if report.unseated is None:  # (4)
            return None
        unseated[report.id] = report.unseated.get(instance.id, 0)
    return unseated
