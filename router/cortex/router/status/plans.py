"""What an action would do, said before it is done. Pure.

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
from cortex.router.status.format import clock, mib, some
from cortex.router.status.model import Leaving
from cortex.router.status.snapshot import FleetSnapshot, Index


class Option(Struct, frozen=True, kw_only=True):
    """Something that may be asked for besides."""

    name: str
    label: str


class Plan(Struct, frozen=True, kw_only=True):
    """An action, what it would do, and where to ask for it."""

    title: str
    verb: str
    says: str
    facts: tuple[tuple[str, str], ...] = ()
    losses: tuple[str, ...] = ()
    """Who or what goes."""
    stay: tuple[str, ...] = ()
    """Who may not be evicted now, and why."""
    refused: tuple[tuple[str, str], ...] = ()
    """Hosts that will not have it, and why."""
    possible: bool = True
    path: str = ""
    """POST it there."""
    options: tuple[Option, ...] = ()


def warm(
    function: Function,
    planned: PlacementPlan | None,
    refusals: Mapping[str, str],
    leaving: Sequence[Leaving],
    now: float,
) -> Plan:
    """Say where a function would go, who would leave for it and why those; `leaving` is the order on that host."""
    refused = tuple(sorted(refusals.items()))
    path = _function(function.id, "warm")
    if planned is None:
        return Plan(
            title=f"Warm {function.id}", verb="Warm", says="No host would take it now.", refused=refused,
            possible=False, path=path,
        )  # fmt: skip
    if planned.there:
        says = f"It is up, or on its way, on {planned.host} already: nothing would change."
        return Plan(title=f"Warm {function.id}", verb="Warm", says=says, possible=False, path=path)
    losses = tuple(f"{v.function}, idle for {clock(v.idle_s)}{_why(v.instance, leaving)}" for v in planned.evict)
    says = f"It would start on {planned.host}" + (" in free room." if not losses else ", after making room.")
    facts = [("Host", planned.host), ("Devices", ", ".join(planned.devices)), ("Memory", _memory(planned))]
    if planned.retry_at > now:
        facts.append(("Backing off", f"for {clock(planned.retry_at - now)} still; warming overrides that"))
    return Plan(
        title=f"Warm {function.id}",
        verb="Warm",
        says=says,
        facts=tuple(facts),
        losses=losses,
        stay=tuple(f"{one.function}: {one.protected}" for one in leaving if one.protected) if losses else (),
        refused=refused,
        path=path,
    )


def _why(victim: str, leaving: Sequence[Leaving]) -> str:
    """Say why it is this one that leaves."""
    found = next((one for one in leaving if one.instance == victim), None)
    if found is None or found.protected:  # it has changed since
        return ""
    return f": {found.why}" + ("; those before it do not free enough" if found.rank > 1 else "")


def _memory(planned: PlacementPlan) -> str:
    each = f"{mib(planned.memory_mb)} {planned.memory_from}"
    return f"{each}, on each of {len(planned.devices)} devices" if len(planned.devices) > 1 else each


def cool(function: Function, known: FleetSnapshot, index: Index) -> Plan:
    """Say which instances would go, and what becomes of their requests."""
    placed = [(h, i) for h, i in index.placed.get(function.id, []) if i.state in COMING or i.state is State.READY]
    path, title = _function(function.id, "cool"), f"Cool {function.id}"
    if not placed:
        return Plan(title=title, verb="Cool", says="It is cold: nothing would change.", possible=False, path=path)
    flying = sum(index.in_flight(i) for _, i in placed)
    losses = tuple(f"{i.id} on {h.name}: {_doing(index.in_flight(i), i.state)}" for h, i in placed)
    says = f"{some(len(placed), 'instance')} would be let go; the next request starts the function again."
    if function.min:
        says = f"{some(len(placed), 'instance')} would be let go, and started again: at least {function.min} is kept."
    at_once = Option(name="now", label=f"At once: cut {some(flying, 'request')}")
    return Plan(title=title, verb="Cool", says=says, losses=losses, path=path, options=(at_once,) if flying else ())


def pin(function: Function, index: Index) -> Plan:
    """Say what keeping a function means."""
    there = ", ".join(sorted({h.name for h, _ in index.placed.get(function.id, [])}))
    says = "Its instances would not be evicted for others, and not be let go when idle, until it is unpinned."
    facts = (("Now on", there or "no host: it would be kept from its next start on"),)
    return Plan(title=f"Pin {function.id}", verb="Pin", says=says, facts=facts, path=_function(function.id, "pin"))


def unpin(function: Function, index: Index) -> Plan:
    """Say what it means to keep a function no more."""
    says = (
        f"Its instances could be evicted again, and be let go after {clock(function.idle_after_s)} without a request."
    )
    return Plan(title=f"Unpin {function.id}", verb="Unpin", says=says, path=_function(function.id, "unpin"))


def cordon(host: str, record: HostRecord | None) -> Plan:
    """Say what a cordon does."""
    count = len(record.instances) if record else 0
    stays = f"{some(count, 'instance')} on it would go on serving." if count else "Nothing runs on it."
    says = f"It would take no new work until it is uncordoned. {stays}"
    return Plan(title=f"Cordon {host}", verb="Cordon", says=says, path=_host(host, "cordon"))


def uncordon(host: str) -> Plan:
    """Say what lifting a cordon does."""
    return Plan(
        title=f"Uncordon {host}", verb="Uncordon", says="It would take new work again.", path=_host(host, "uncordon")
    )


def drain(record: HostRecord, known: FleetSnapshot, index: Index) -> Plan:
    """Say what would move where, and what would go without a successor."""
    says = "It would be cordoned. What serves on it moves where there is room, then its instances are let go."
    losses = []
    for function_id in sorted({i.function for i in record.instances if i.state is State.READY}):
        flying = sum(index.in_flight(i) for i in record.instances if i.function == function_id)
        losses.append(
            f"{function_id}: {_successor(function_id, record.name, known, index)}; {_doing(flying, State.READY)}"
        )
    coming = sorted({i.function for i in record.instances if i.state in COMING})
    losses += [f"{f}: its start is given up" for f in coming]
    if not losses:
        says = "It would be cordoned. Nothing runs on it."
    return Plan(
        title=f"Drain {record.name}", verb="Drain", says=says, losses=tuple(losses), path=_host(record.name, "drain")
    )  # fmt: skip


def _successor(function_id: str, leaves: str, known: FleetSnapshot, index: Index) -> str:
    """Guess where a function would be started instead: the agent asked then decides."""
    function = known.catalogue.functions.get(function_id)
    if function is None:
        return "it is not in the catalogue any more, and goes"
    wanted = need(function, None)
    without = replace(known.fleet, cordoned=known.fleet.cordoned | {leaves})
    for host in hosts_to_ask(wanted, function, without, index.usage, known.now):
        spot = place(wanted, known.fleet.hosts[host], index.usage, known.now, strategy=known.strategy)
        if not isinstance(spot, NoRoom):
            evicted = sorted({index.instances[i].function for i in spot.evict if i in index.instances})
            return f"moves to {host}" + (f", where {' and '.join(evicted)} would go" if evicted else "")
    return "no other host has room now, so it goes cold"


def _doing(flying: int, state: State) -> str:
    if flying:
        return f"{some(flying, 'request')} in flight, which may finish"
    return "idle" if state is State.READY else str(state)


def _function(function: str, verb: str) -> str:
    return f"/admin/functions/{quote(function, safe='')}/{verb}"


def _host(host: str, verb: str) -> str:
    return f"/admin/hosts/{quote(host, safe='')}/{verb}"
