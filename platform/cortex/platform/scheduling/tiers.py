"""The tiers of this host's instances: what each may go to, its way there, and the RAM for it. Pure."""

from msgspec.structs import replace

from cortex.functions.lifecycle import PARKED, State
from cortex.platform.record import DrainReason, Instance, Tier, Use
from cortex.platform.scheduling.eviction import RESIDENCY_S
from cortex.platform.scheduling.failures import Incident
from cortex.platform.scheduling.parking import (
    can_park,
    in_ram_order,
    is_leaving,
    move_limit_s,
    parked_mb,
    ram_mb,
    return_s,
    tier_from,
    tiers_of,
)
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.start_modes import excuse
from cortex.platform.scheduling.state import HostState
from cortex.platform.scheduling.steps import (
    cancel_drain,
    decide,
    drain,
    end,
    fail,
    fail_and_stop,
    park,
    put,
    stop,
    with_reason,
)
from cortex.platform.scheduling.upgrades import begin_again

SETTLED = (State.READY, State.SLEEPING, State.FROZEN)
"""States in which no other instance depends on how much memory this one keeps."""

MOST_DOUBLINGS = 8
"""How often the time between cancelled rehearsals doubles: up to 43 minutes."""


def learn(state: HostState, instance: Instance) -> Instance:
    """Update the tiers that an instance may go to, and their measured costs."""
    if instance.state not in SETTLED or not (state.host.tiers or instance.tiers or instance.return_s):
        return instance
    entry = state.ledger.get(instance.revision)
    ram = {tier: wanted_mb(state, instance, tier) for tier in (Tier.SLEEP, Tier.FREEZE)}
    tiers = tiers_of(instance, state.functions[instance.id], state.host, ram)
    measured = bool(instance.ram_mb) or instance.state in PARKED
    stays_mb = instance.parked_mb if measured else parked_mb(entry, instance.memory_mb) if tiers else 0
    back_s = return_s(entry) if can_park(state.host) else {}
    learned = replace(instance, tiers=tiers, return_s=back_s, parked_mb=stays_mb)
    return instance if learned == instance else put(state, learned)


def leave(state: HostState, instance: Instance, now: float) -> None:
    """Let an instance without requests leave its devices, unless that would disturb a start there. It

    (1) goes to its tier, or a further one, if there is RAM for it;
    (2) keeps serving, if it was to rehearse its first sleep only;
    (3) waits for RAM that is being freed, at most for the grace period;
    (4) stops, as every instance of a cordoned host does.
    """
    if not is_leaving(instance) or state.is_lane_taken(instance, (State.STARTING,)):
        return  # memory that is released disturbs a start
    parks_to = None if state.cordoned else instance.parks_to
    tier = tier_from(instance, parks_to) if parks_to else Tier.STOP
    if tier is not Tier.STOP:
        ram = wanted_mb(state, instance, tier)
        short_mb = _short_mb(state, instance, ram)
        if short_mb <= 0:  # (1)
            park(state, instance, tier, ram, now)
            return
    if instance.reason is DrainReason.REHEARSAL:  # (2)
        cancel_drain(state, instance, "it cannot sleep now", now)
        return
    if tier is not Tier.STOP:
        until = instance.deadline if instance.state in PARKED else instance.since + state.rules.drain_grace_s
        if now < until and _free_ram(state, instance, short_mb, now):  # (3)
            return
    stop(state, instance, now)  # (4)


def rehearse(state: HostState, instance: Instance, usage: Use, now: float) -> None:
    """Let an idle instance sleep and wake once, while no request waits and no other instance loses its RAM for it: an
    engine's first sleep is slow. Each cancelled rehearsal doubles the time until the next."""
    if Tier.SLEEP not in instance.tiers or instance.ram_mb or any(usage.waiting.values()):
        return
    if state.line or state.cordoned:
        return
    tries = state.rehearsals.get(instance.id, 0)
    idle_s = now - max(usage.last_used(instance), instance.since)
    idle = not usage.in_flight.get(instance.id) and idle_s >= RESIDENCY_S * 2 ** min(tries, MOST_DOUBLINGS)
    alone = all(not i.waits_for for i in state.instances.values()) and not state.is_lane_taken(instance)
    if idle and alone and _short_mb(state, instance, wanted_mb(state, instance, Tier.SLEEP)) <= 0:
        state.rehearsals[instance.id] = tries + 1
        drain(state, instance, DrainReason.REHEARSAL, now, tier=Tier.SLEEP)


def shed(state: HostState, now: float) -> None:
    """Stop parked instances that

    (1) are on a cordoned host: none returns there;
    (2) exceed the RAM for them, which may have been lowered. After a restart the agent has not read its host yet.
    """
    if state.cordoned:  # (1)
        for instance in [i for i in state.instances.values() if i.state in (State.PARKING, *PARKED)]:
            if instance.state is State.PARKING or not is_leaving(instance):
                end(state, instance, DrainReason.HOST_DRAIN, now)
    if not state.host.tiers:
        return
    # (2)
    excess_mb = sum(i.ram_mb for i in state.instances.values()) - state.host.park_ram_mb
    if excess_mb > 0 and any(i.state in PARKED for i in state.instances.values()):
        _free_ram(state, None, excess_mb, now)


def move_limit(state: HostState, instance: Instance) -> float:
    """Return how long the present move of an instance that parks or returns may take."""
    weights, entry = state.weights.get(instance.id), state.ledger.get(instance.revision)
    assert instance.parks_to is not None
    returns, size_mb = instance.state is State.STARTING, weights.size_mb if weights else 0
    return move_limit_s(instance, instance.parks_to, size_mb, entry, returns=returns)


def give_up(state: HostState, instance: Instance, incident: Incident, now: float, *, hung: bool = False) -> None:
    """Stop a worker whose start, parking or return failed. A tier or trick that failed is no longer used for its
    revision, unless it has worked before and only this worker is `hung`; a failed return does not count as a failed
    start."""
    tier, returns, why = instance.parks_to, instance.state is State.STARTING, incident.reason
    if tier is None and excuse(state, instance, incident):
        stop(state, instance, now, DrainReason.FAILED)
        begin_again(state, instance, now)
        return
    if tier is None:
        fail_and_stop(state, instance, incident, now)
        return
    entry = state.ledger.get(instance.revision)
    if not hung or entry is None or tier not in entry.tiers:
        state.switch_off(instance.revision, tier, why)
    decide(state, DecisionKind.PARK_FAILED, instance, f"{'from' if returns else 'to'} {tier}: {why}")
    if returns:
        fail(state, instance, replace(incident, died=True), now)
    stop(state, instance, now, DrainReason.FAILED, hung=hung)


def wanted_mb(state: HostState, instance: Instance, tier: Tier) -> int:
    """Return the RAM that an instance needs for a tier."""
    weights = state.weights.get(instance.id)
    return ram_mb(instance, tier, weights.size_mb if weights else 0, state.ledger.get(instance.revision))


def _short_mb(state: HostState, instance: Instance, wanted_mb: int) -> int:
    """Return how much RAM is missing for an instance to hold `wanted_mb`."""
    others = sum(i.ram_mb for i in state.instances.values() if i.id != instance.id)
    return others + wanted_mb - state.host.park_ram_mb


def _free_ram(state: HostState, instance: Instance | None, short_mb: int, now: float) -> bool:
    """Stop parked instances for another, the least recently used first; False: they hold too little."""
    ending = (State.STOPPING, State.RECLAIMING, *PARKED)
    leaving = [i for i in state.instances.values() if i.state in ending and is_leaving(i) and i.parks_to is None]
    short_mb -= sum(i.ram_mb for i in leaving)
    order = [i for i in in_ram_order(state.record(), state.use()) if instance is None or i.id != instance.id]
    if instance is not None and sum(i.ram_mb for i in order) < short_mb:
        return False
    for victim in order:
        if short_mb <= 0:
            break
        short_mb -= victim.ram_mb
        decide(state, DecisionKind.EVICTED, victim, f"for the RAM of {instance.function}" if instance else "for RAM")
        why = with_reason(victim, DrainReason.EVICTED, instance.function if instance else "RAM")
        put(state, replace(why, parks_to=None))
    return True
