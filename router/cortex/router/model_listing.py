"""`/v1/models`: every function and alias, in catalogue order, with its locations. Pure.

An instance of a silent host counts like any other: the router probes it every few seconds and drops it when it stops
answering.
"""

from collections.abc import Collection
from typing import Any

from cortex.functions.capabilities import ModelProfile
from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.record import Failure, Fleet, Instance
from cortex.platform.scheduling.placement import misfit, need
from cortex.router.model_description import abilities
from cortex.router.request.model_traits import known_models

OWNER = "cortex"
_BEST_FIRST = (
    State.READY, State.STARTING, State.PLACING, State.FETCHING, State.DRAINING, State.STOPPING, State.RECLAIMING,
)  # fmt: skip


def listing(catalogue: Catalogue, fleet: Fleet, created: int) -> list[dict[str, Any]]:
    """Return one entry per function and alias; an alias has its function's entry and `alias_of`."""
    profiles = known_models({h.name: h for h in fleet.records()})
    entries = {f.id: entry(f, fleet, created, profiles.get(f.id)) for f in catalogue.functions.values()}
    aliases = [{**entries[t], "id": alias, "alias_of": t} for alias, t in catalogue.aliases.items()]
    return [*entries.values(), *aliases]


def entry(function: Function, fleet: Fleet, created: int, profile: ModelProfile | None) -> dict[str, Any]:
    """Return a function's OpenAI model entry, with cortex's fields on state and location."""
    requirement = need(function, None)
    placed = [(h.name, i) for h in fleet.records() for i in h.instances if i.function == function.id]
    return {
        "id": function.id,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "loaded": any(i.state is State.READY for _, i in placed),
        "state": state(function, fleet),
        "feasible_on": sorted(h.name for h in fleet.hosts.values() if misfit(requirement, h) is None),
        "locations": [
            {"node": host, "status": _status(i), "vram_estimate_mb": (i.memory_mb or None)}
            for host, i in sorted(placed, key=lambda p: (p[0], p[1].id))
        ],
        "alias_of": None,
        **abilities(function, profile, [i for _, i in placed if i.state is State.READY]),
    }


def state(function: Function, fleet: Fleet) -> str:
    """Return the state of a function's most advanced instance, else `failing` or `cold`."""
    states = {i.state for h in fleet.records() for i in h.instances if i.function == function.id}
    return furthest(states, failing=any(f.retry_at > fleet.at for f in failures(function, fleet)))


def furthest(states: Collection[State], *, failing: bool) -> str:
    """Return the most advanced state, else `failing` or `cold`."""
    for candidate in _BEST_FIRST:
        if candidate in states:
            return candidate
    return "failing" if failing else "cold"


def failures(function: Function, fleet: Fleet) -> list[Failure]:
    """Return a function's failures on all hosts, newest first."""
    entries = [f for h in fleet.hosts.values() for f in h.failures if f.function == function.id]
    return sorted(entries, key=lambda f: -f.at)


def _status(instance: Instance) -> str:
    """Return the state in the older gateway's terms where it has one: `loaded` or `loading`."""
    if instance.state is State.READY:
        return "loaded"
    if instance.state in (State.FETCHING, State.PLACING, State.STARTING):
        return "loading"
    return str(instance.state)
