"""A plan as the page shows it, with the request that performs it. Pure."""

from urllib.parse import quote

from msgspec import Struct

from cortex.router.overview.wording import activity, departure, eviction_reason, outcome
from cortex.router.plan_types import Action, Effect, Eviction, Plan, PlannedStart
from cortex.router.status.format import clock, mib, some


class Option(Struct, frozen=True, kw_only=True):
    """An option of an action."""

    name: str
    label: str


class PlanCard(Struct, frozen=True, kw_only=True):
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
    possible: bool
    path: str
    """Path of the POST request."""
    options: tuple[Option, ...] = ()


def card(plan: Plan) -> PlanCard:
    """Return what the page shows of a plan."""
    verb, subject = plan.action.capitalize(), plan.function or plan.host
    kind = "functions" if plan.function else "hosts"
    in_flight = sum(i.in_flight for i in plan.instances)
    at_once = Option(name="now", label=f"At once: cut {some(in_flight, 'request')}")
    return PlanCard(
        title=f"{verb} {subject}",
        verb=verb,
        says=_summary(plan),
        facts=_facts(plan),
        losses=_losses(plan),
        stay=tuple(f"{c.function}: {c.protection}" for c in plan.stays),
        refused=tuple(plan.refusals.items()) if plan.effect is not Effect.NOTHING else (),
        possible=plan.effect is Effect.CHANGE,
        path=f"admin/{kind}/{quote(subject, safe='')}/{plan.action}",
        options=(at_once,) if plan.action is Action.COOL and in_flight else (),
    )


def _summary(plan: Plan) -> str:
    instances = some(len(plan.instances), "instance")
    nothing, host = plan.effect is Effect.NOTHING, plan.start.host if plan.start else ""
    match plan.action:
        case Action.WARM if not host:
            return "No host can run it now."
        case Action.WARM if nothing:
            return f"An instance is ready or starting on {host}: nothing would change."
        case Action.WARM:
            how = f"return from {plan.start.tier}" if plan.start and plan.start.tier else "start"
            return f"It would {how} on {host}{', after making room' if plan.evictions else ' in free room'}."
        case Action.COOL if nothing:
            return "It is cold: nothing would change."
        case Action.COOL if plan.restarts:
            return f"{instances} would be drained and started again, because `min` is {plan.restarts}."
        case Action.COOL:
            return f"{instances} would be drained; the next request starts the function again."
        case Action.PIN:
            return "Its instances would not be evicted or reaped until it is unpinned."
        case Action.UNPIN:
            idle = clock(plan.idle_after_s or 0.0)
            return f"Its instances could be evicted, and reaped after {idle} without a request."
        case Action.CORDON:
            stays = f"{instances} on it would keep serving." if plan.instances else "Nothing runs on it."
            return f"Nothing new would be placed on it until it is uncordoned. {stays}"
        case Action.UNCORDON:
            return "New instances may be placed on it."
    if not plan.moves:
        return "It would be cordoned. Nothing runs on it."
    return "It would be cordoned. Its functions move to hosts that have room, then its instances are drained."


def _facts(plan: Plan) -> tuple[tuple[str, str], ...]:
    if plan.action is Action.PIN:
        hosts = ", ".join(sorted({i.host for i in plan.instances}))
        return (("Now on", hosts or "no host: the pin applies from its next start"),)
    start = plan.start
    if start is None or plan.effect is Effect.NOTHING:
        return ()
    facts = [("Host", start.host), ("Devices", ", ".join(start.devices)), ("Memory", _memory(start))]
    if start.retry_at is not None:
        facts.append(("Back-off", f"another {clock(start.retry_at - plan.now)}; warming ignores it"))
    return tuple(facts)


def _memory(start: PlannedStart) -> str:
    each = f"{mib(start.memory_mb)} {start.memory_from}"
    return f"{each}, on each of {len(start.devices)} devices" if len(start.devices) > 1 else each


def _losses(plan: Plan) -> tuple[str, ...]:
    match plan.action:
        case Action.WARM:
            reasons = ((e, eviction_reason(e, plan.strategy)) for e in plan.evictions)
            return tuple(f"{_victim(e)}{why and f': {why}'}" for e, why in reasons)
        case Action.COOL:
            return tuple(f"{i.instance} on {i.host}: {activity(i.in_flight, i.state)}" for i in plan.instances)
        case Action.DRAIN:
            return tuple(f"{m.function}: {outcome(m)}" for m in plan.moves)
    return ()


def _victim(eviction: Eviction) -> str:
    return ", ".join(filter(None, (eviction.function, f"idle for {clock(eviction.idle_s)}", departure(eviction))))
