"""`/v1/models`: every function and alias of the catalogue, in its order, with where it is. Pure.

An instance of a silent host counts like any other: the router asks it every few seconds, and forgets it as soon as it
does not answer.
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
    """Return one entry per function and alias; an alias copies its function's and says what it stands for."""
    known = known_models({h.name: h for h in fleet.records()})
    entries = {f.id: entry(f, fleet, created, known.get(f.id)) for f in catalogue.functions.values()}
    aliases = [{**entries[t], "id": alias, "alias_of": t} for alias, t in catalogue.aliases.items()]
    return [*entries.values(), *aliases]


def entry(function: Function, fleet: Fleet, created: int, known: ModelProfile | None) -> dict[str, Any]:
    """Return a function's entry in the OpenAI shape, with the fields fleets are asked for besides."""
    wanted = need(function, None)
    placed = [(h.name, i) for h in fleet.records() for i in h.instances if i.function == function.id]
    return {
        "id": function.id,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "loaded": any(i.state is State.READY for _, i in placed),
        "state": state(function, fleet),
        "feasible_on": sorted(h.name for h in fleet.hosts.values() if misfit(wanted, h) is None),
        "locations": [
            {"node": host, "status": _status(i), "vram_estimate_mb": (i.memory_mb or None)}
            for host, i in sorted(placed, key=lambda p: (p[0], p[1].id))
        ],
        "alias_of": None,
        **abilities(function, known, [i for _, i in placed if i.state is State.READY]),
    }


def state(function: Function, fleet: Fleet) -> str:
    """Return where a function is at its best: the state of its furthest instance, `failing` or `cold`."""
    states = {i.state for h in fleet.records() for i in h.instances if i.function == function.id}
    return furthest(states, failing=any(f.retry_at > fleet.at for f in failures(function, fleet)))


def furthest(states: Collection[State], *, failing: bool) -> str:
    """Return the one state that says how far a function has come."""
    for known in _BEST_FIRST:
        if known in states:
            return known
    return "failing" if failing else "cold"


def failures(function: Function, fleet: Fleet) -> list[Failure]:
    """Return what hosts say went wrong with a function, newest first."""
    found = [f for h in fleet.hosts.values() for f in h.failures if f.function == function.id]
    return sorted(found, key=lambda f: -f.at)


def _status(instance: Instance) -> str:
    """The words clients of the older gateway know: loaded and loading; the rest is said as it is."""
    if instance.state is State.READY:
        return "loaded"
    if instance.state in (State.FETCHING, State.PLACING, State.STARTING):
        return "loading"
    return str(instance.state)
