"""What an action would do, as facts. Pure.

A warm's plan comes from the agent that would act; the others follow from the record.
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, LIVE, PARKED, State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import PlacementPlan, Victim
from cortex.platform.record import HostRecord, Instance, Tier
from cortex.platform.scheduling.placement import NoRoom, need, place
from cortex.router.activation.load_balancing import hosts_to_ask
from cortex.router.api_types import EvictionCandidate
from cortex.router.overview.hosts import eviction_order
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.plan_types import Action, AffectedInstance, Effect, Eviction, Move, Outcome, Plan, PlannedStart


def warm(
    function: Function,
    placement: PlacementPlan | None,
    refusals: Mapping[str, str],
    snapshot: FleetSnapshot,
    index: Index,
) -> Plan:
    """Return the plan of a warm from an agent's answer."""
    plan = Plan(
        action=Action.WARM,
        effect=Effect.IMPOSSIBLE,
        now=snapshot.now,
        function=function.id,
        refusals=dict(sorted(refusals.items())),
        strategy=snapshot.strategy,
    )
    if placement is None:
        return plan
    record = snapshot.fleet.hosts.get(placement.host)
    order = eviction_order(record, snapshot, index) if record else ()
    victims = {victim.instance for victim in placement.evict}  # the agent decides: the router may know of a use later
    start = PlannedStart(
        host=placement.host,
        instance=placement.there or placement.returns,
        tier=placement.tier,
        devices=placement.devices,
        memory_mb=placement.memory_mb,
        memory_from=placement.memory_from,
        retry_at=placement.retry_at if placement.retry_at > snapshot.now else None,
    )
    return replace(
        plan,
        effect=Effect.NOTHING if placement.there else Effect.CHANGE,
        start=start,
        evictions=tuple(_eviction(victim, order, index) for victim in placement.evict),
        stays=tuple(c for c in order if c.protection and c.instance not in victims) if victims else (),
    )


def _eviction(victim: Victim, order: Iterable[EvictionCandidate], index: Index) -> Eviction:
    instance = index.instances.get(victim.instance)
    candidate = next((c for c in order if c.instance == victim.instance and not c.protection), None)
    return Eviction(
        instance=victim.instance,
        function=victim.function,
        idle_s=victim.idle_s,
        priority=candidate.priority if candidate else 0,
        rank=candidate.rank if candidate else 0,
        tier=victim.tier,
        return_s=instance.return_s.get(victim.tier or Tier.STOP) if instance else None,
    )


def cool(function: Function, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of a cool: the instances that drain, and their requests; and the parked ones, which stop."""
    placed = [(h, i) for h, i in index.placed.get(function.id, ()) if i.state in LIVE | PARKED]
    return Plan(
        action=Action.COOL,
        effect=Effect.CHANGE if placed else Effect.NOTHING,
        now=snapshot.now,
        function=function.id,
        instances=_affected(placed, index),
        restarts=function.resident if placed else 0,
    )


def pin(function: Function, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of a pin."""
    return Plan(
        action=Action.PIN,
        effect=Effect.NOTHING if function.pinned else Effect.CHANGE,
        now=snapshot.now,
        function=function.id,
        instances=_affected(index.placed.get(function.id, ()), index),
    )


def unpin(function: Function, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of an unpin."""
    return Plan(
        action=Action.UNPIN,
        effect=Effect.CHANGE if function.pinned else Effect.NOTHING,
        now=snapshot.now,
        function=function.id,
        instances=_affected(index.placed.get(function.id, ()), index),
        idle_after_s=function.idle_after_s,
    )


def cordon(host: str, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of a cordon."""
    record = snapshot.fleet.record(host)
    return Plan(
        action=Action.CORDON,
        effect=Effect.NOTHING if host in snapshot.fleet.cordoned else Effect.CHANGE,
        now=snapshot.now,
        host=host,
        instances=_affected([(record, i) for i in record.instances], index) if record else (),
    )


def uncordon(host: str, snapshot: FleetSnapshot) -> Plan:
    """Return the plan of an uncordon."""
    effect = Effect.CHANGE if host in snapshot.fleet.cordoned else Effect.NOTHING
    return Plan(action=Action.UNCORDON, effect=effect, now=snapshot.now, host=host)


def drain(record: HostRecord, snapshot: FleetSnapshot, index: Index) -> Plan:
    """Return the plan of a drain: which functions would move where, and which would go cold."""
    ending = [i for i in record.instances if i.state in LIVE | PARKED]
    serving = sorted({i.function for i in ending if i.state is State.READY})
    coming = sorted({i.function for i in ending if i.state in COMING})
    cordoned = record.name in snapshot.fleet.cordoned
    return Plan(
        action=Action.DRAIN,
        effect=Effect.CHANGE if ending or not cordoned else Effect.NOTHING,
        now=snapshot.now,
        host=record.name,
        instances=_affected([(record, i) for i in ending], index),
        moves=(
            *(_move(function, record, snapshot, index) for function in serving),
            *(Move(function=function, outcome=Outcome.CANCELLED) for function in coming),
        ),
    )


def _move(function_id: str, leaves: HostRecord, snapshot: FleetSnapshot, index: Index) -> Move:
    """Predict where a function would be started instead; the agent makes the decision."""
    in_flight = sum(index.in_flight(i) for i in leaves.instances if i.function == function_id)
    function = snapshot.catalogue.functions.get(function_id)
    if function is None:
        return Move(function=function_id, outcome=Outcome.STOPS, in_flight=in_flight)
    requirement = need(function, None)
    without = replace(snapshot.fleet, cordoned=snapshot.fleet.cordoned | {leaves.name})
    for host in hosts_to_ask(requirement, function, without, index.usage, snapshot.now):
        spot = place(requirement, snapshot.fleet.hosts[host], index.usage, snapshot.now, strategy=snapshot.strategy)
        if not isinstance(spot, NoRoom):
            evicts = tuple(sorted({index.instances[i].function for i in spot.evict if i in index.instances}))
            return Move(function=function_id, outcome=Outcome.MOVES, to=host, evicts=evicts, in_flight=in_flight)
    return Move(function=function_id, outcome=Outcome.COLD, in_flight=in_flight)


def _affected(placed: Iterable[tuple[HostRecord, Instance]], index: Index) -> tuple[AffectedInstance, ...]:
    return tuple(
        AffectedInstance(
            instance=i.id, function=i.function, host=h.name, state=i.state, in_flight=index.in_flight(i)
        )
        for h, i in placed
    )  # fmt: skip
