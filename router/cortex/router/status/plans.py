"""Plans: what an action would do. Pure.

A warm's plan comes from the agent that would act (`…/warm?plan=1`); the others follow from the record.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import PlacementPlan
from cortex.platform.record import HostRecord
from cortex.platform.scheduling.placement import NoRoom, need, place
from cortex.router.activation.load_balancing import hosts_to_ask
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.status.format import clock, mib, some
from cortex.router.status.model import Leaving


class Option(Struct, frozen=True, kw_only=True):
    """An option of an action."""

    name: str
    label: str


class Plan(Struct, frozen=True, kw_only=True):
    """An action, its effects, and the request that performs it."""

    title: str
    verb: str
    says: str
    facts: tuple[tuple[str, str], ...] = ()
    losses: tuple[str, ...] = ()
    """What is evicted or drained."""
    stay: tuple[str, ...] = ()
    """Protected instances, with the reason."""
    refused: tuple[tuple[str, str], ...] = ()
    """Hosts that cannot run it, with the reason."""
    possible: bool = True
    path: str = ""
    """Path of the POST request."""
    options: tuple[Option, ...] = ()


def warm(
    function: Function,
    planned: PlacementPlan | None,
    refusals: Mapping[str, str],
    leaving: Sequence[Leaving],
    now: float,
) -> Plan:
    """Return the plan of a warm; `leaving` is the eviction order on the planned host."""
    refused = tuple(sorted(refusals.items()))
    path = _function(function.id, "warm")
    if planned is None:
        return Plan(
            title=f"Warm {function.id}", verb="Warm", says="No host can run it now.", refused=refused,
            possible=False, path=path,
        )  # fmt: skip
    if planned.there:
        says = f"An instance is ready or starting on {planned.host}: nothing would change."
        return Plan(title=f"Warm {function.id}", verb="Warm", says=says, possible=False, path=path)
    losses = tuple(f"{v.function}, idle for {clock(v.idle_s)}{_why(v.instance, leaving)}" for v in planned.evict)
    says = f"It would start on {planned.host}" + (" in free room." if not losses else ", after making room.")
    facts = [("Host", planned.host), ("Devices", ", ".join(planned.devices)), ("Memory", _memory(planned))]
    if planned.retry_at > now:
        facts.append(("Back-off", f"another {clock(planned.retry_at - now)}; warming ignores it"))
    return Plan(
        title=f"Warm {function.id}",
        verb="Warm",
        says=says,
        facts=tuple(facts),
        losses=losses,
        stay=tuple(f"{entry.function}: {entry.protected}" for entry in leaving if entry.protected) if losses else (),
        refused=refused,
        path=path,
    )


def _why(victim: str, leaving: Sequence[Leaving]) -> str:
    """Return why this instance is evicted; empty if the order has changed since."""
    entry = next((e for e in leaving if e.instance == victim), None)
    if entry is None or entry.protected:
        return ""
    return f": {entry.why}" + ("; earlier ones do not free enough memory" if entry.rank > 1 else "")


def _memory(planned: PlacementPlan) -> str:
    each = f"{mib(planned.memory_mb)} {planned.memory_from}"
    return f"{each}, on each of {len(planned.devices)} devices" if len(planned.devices) > 1 else each


def cool(function: Function, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of a cool: the instances that drain, and their requests."""
    placed = [(h, i) for h, i in index.placed.get(function.id, []) if i.state in COMING or i.state is State.READY]
    path, title = _function(function.id, "cool"), f"Cool {function.id}"
    if not placed:
        return Plan(title=title, verb="Cool", says="It is cold: nothing would change.", possible=False, path=path)
    in_flight = sum(index.in_flight(i) for _, i in placed)
    losses = tuple(f"{i.id} on {h.name}: {_activity(index.in_flight(i), i.state)}" for h, i in placed)
    says = f"{some(len(placed), 'instance')} would be drained; the next request starts the function again."
    if function.min:
        says = f"{some(len(placed), 'instance')} would be drained and started again, because `min` is {function.min}."
    at_once = Option(name="now", label=f"At once: cut {some(in_flight, 'request')}")
    return Plan(title=title, verb="Cool", says=says, losses=losses, path=path, options=(at_once,) if in_flight else ())


def pin(function: Function, index: Index) -> Plan:
    """Return the plan of a pin."""
    hosts = ", ".join(sorted({h.name for h, _ in index.placed.get(function.id, [])}))
    says = "Its instances would not be evicted or reaped until it is unpinned."
    facts = (("Now on", hosts or "no host: the pin applies from its next start"),)
    return Plan(title=f"Pin {function.id}", verb="Pin", says=says, facts=facts, path=_function(function.id, "pin"))


def unpin(function: Function, index: Index) -> Plan:
    """Return the plan of an unpin."""
    says = f"Its instances could be evicted, and reaped after {clock(function.idle_after_s)} without a request."
    return Plan(title=f"Unpin {function.id}", verb="Unpin", says=says, path=_function(function.id, "unpin"))


def cordon(host: str, record: HostRecord | None) -> Plan:
    """Return the plan of a cordon."""
    count = len(record.instances) if record else 0
    stays = f"{some(count, 'instance')} on it would keep serving." if count else "Nothing runs on it."
    says = f"Nothing new would be placed on it until it is uncordoned. {stays}"
    return Plan(title=f"Cordon {host}", verb="Cordon", says=says, path=_host(host, "cordon"))


def uncordon(host: str) -> Plan:
    """Return the plan of an uncordon."""
    return Plan(
        title=f"Uncordon {host}",
        verb="Uncordon",
        says="New instances may be placed on it.",
        path=_host(host, "uncordon"),
    )


def drain(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of a drain: which functions would move where, and which would go cold."""
    says = "It would be cordoned. Its functions move to hosts that have room, then its instances are drained."
    losses = []
    for function_id in sorted({i.function for i in record.instances if i.state is State.READY}):
        in_flight = sum(index.in_flight(i) for i in record.instances if i.function == function_id)
        losses.append(
            f"{function_id}: {_successor(function_id, record.name, snapshot, index)};"
            f" {_activity(in_flight, State.READY)}"
        )
    coming = sorted({i.function for i in record.instances if i.state in COMING})
    losses += [f"{f}: its start is cancelled" for f in coming]
    if not losses:
        says = "It would be cordoned. Nothing runs on it."
    return Plan(
        title=f"Drain {record.name}", verb="Drain", says=says, losses=tuple(losses), path=_host(record.name, "drain")
    )  # fmt: skip


def _successor(function_id: str, leaves: str, snapshot: FleetSnapshot, index: Index) -> str:
    """Predict where a function would be started instead; the agent makes the decision."""
    function = snapshot.catalogue.functions.get(function_id)
    if function is None:
        return "not in the catalogue any more, so it stops"
    requirement = need(function, None)
    without = replace(snapshot.fleet, cordoned=snapshot.fleet.cordoned | {leaves})
    for host in hosts_to_ask(requirement, function, without, index.usage, snapshot.now):
        spot = place(requirement, snapshot.fleet.hosts[host], index.usage, snapshot.now, strategy=snapshot.strategy)
        if not isinstance(spot, NoRoom):
            evicted = sorted({index.instances[i].function for i in spot.evict if i in index.instances})
            return f"moves to {host}" + (f", where {' and '.join(evicted)} would be evicted" if evicted else "")
    return "no other host has room, so it goes cold"


def _activity(in_flight: int, state: State) -> str:
    if in_flight:
        return f"{some(in_flight, 'request')} in flight, which may finish"
    return "idle" if state is State.READY else str(state)


def _function(function: str, verb: str) -> str:
    return f"/admin/functions/{quote(function, safe='')}/{verb}"


def _host(host: str, verb: str) -> str:
    return f"/admin/hosts/{quote(host, safe='')}/{verb}"
