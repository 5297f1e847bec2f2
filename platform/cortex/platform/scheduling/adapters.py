"""Adapters that instances load while they run: one at the first request for its variant. Pure.

The instance's record has what is loaded, what is being loaded, and what could not be. A failed load fails its variant
only, and the next request after `AGAIN_S` tries again.
"""

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.servers import SERVERS
from cortex.functions.spec import Adapter, Function
from cortex.functions.variants import adapter_name, adapter_number
from cortex.platform.agent_messages import AdapterState, EnsureAdapter
from cortex.platform.record import Instance
from cortex.platform.scheduling import effects, events
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.state import HostState
from cortex.platform.scheduling.steps import decide, put

AGAIN_S = 30.0
"""How long after a failed load no other is begun: each may download the adapter."""
STEP = "loading"
MOST_UNLOADS = 64
"""The most unloads of an instance that are repeated after a restart of the agent."""


def loads_while_it_runs(instance: Instance) -> bool:
    """Whether an instance's server loads adapters while it runs."""
    server = SERVERS.get(instance.server)
    return server is not None and server.loads_adapters == "while it runs"


def ensure(state: HostState, request: EnsureAdapter, now: float) -> AdapterState:
    """Ensure that a variant's adapter is loaded or being loaded:

    (1) the instance is not ready here, or of another revision: nothing; the caller sees that in the record;
    (2) its server loads no adapters while it runs, or the variant has none: a problem;
    (3) it is loaded, or being loaded;
    (4) its load has just failed: the problem again;
    (5) otherwise load it.
    """
    instance, function = state.find(request.instance, State.READY), request.function
    if instance is None or instance.revision != state.revision(function):  # (1)
        return AdapterState()
    adapter = _declared(function, request.variant)
    if adapter is None or not loads_while_it_runs(instance):  # (2)
        return AdapterState(problem="its instance was started without it")
    if state.catalogue is not None and state.catalogue.get(function.id) != function:
        state.catalogue_digest = ""  # a router sends its catalogue again
    if instance.adapters.get(adapter.id) == adapter_number(adapter.source):  # (3)
        return AdapterState(loaded=True)
    if adapter.id in instance.adapter_steps:
        return AdapterState()
    failed_at = state.adapter_failures.get(instance.id, {}).get(adapter.id)
    problem = instance.adapter_problems.get(adapter.id, "")  # none after a change of its entry
    if problem and failed_at is not None and now < failed_at + AGAIN_S:  # (4)
        return AdapterState(problem=problem)
    state.functions[instance.id] = function  # (5)
    steps = {**instance.adapter_steps, adapter.id: STEP}
    put(state, replace(instance, adapter_steps=steps, adapter_problems=_without(instance.adapter_problems, adapter.id)))
    state.effects.append(effects.LoadAdapter(instance, function, adapter, state.weights[instance.id]))
    return AdapterState()


def progressed(state: HostState, event: events.AdapterProgress) -> None:
    """Show how far a load is."""
    instance = state.instances.get(event.instance)
    if instance is not None and event.variant in instance.adapter_steps:
        put(state, replace(instance, adapter_steps={**instance.adapter_steps, event.variant: event.step}))


def loaded(state: HostState, event: events.AdapterLoaded) -> None:
    """Routers may use the adapter, unless its entry has changed meanwhile."""
    instance = state.instances.get(event.instance)
    if instance is None:
        return
    instance = put(state, replace(instance, adapter_steps=_without(instance.adapter_steps, event.variant)))
    adapter = _declared(state.functions[instance.id], event.variant)
    if adapter is None or adapter_number(adapter.source) != event.number:
        _unload(state, instance, adapter_name(event.variant, event.number))
        return
    state.adapter_failures.get(instance.id, {}).pop(event.variant, None)
    instance = put(state, replace(instance, adapters={**instance.adapters, event.variant: event.number}))
    weights, name = state.weights[instance.id], adapter_name(event.variant, event.number)
    state.weights[instance.id] = replace(
        weights,
        adapters={**weights.adapters, event.variant: event.path},
        adapter_unloads=tuple(n for n in weights.adapter_unloads if n != name),
    )
    decide(state, DecisionKind.ADAPTER_LOADED, instance, f"the adapter of {event.variant}")


def failed(state: HostState, event: events.AdapterFailed, now: float) -> None:
    """Only the variant fails, unless its entry has changed meanwhile: then it may be loaded at once."""
    instance = state.instances.get(event.instance)
    if instance is None or event.variant not in instance.adapter_steps:
        return
    instance = put(state, replace(instance, adapter_steps=_without(instance.adapter_steps, event.variant)))
    adapter = _declared(state.functions[instance.id], event.variant)
    if adapter is None or adapter_number(adapter.source) != event.number:
        return
    problems = {**instance.adapter_problems, event.variant: event.reason}
    instance = put(state, replace(instance, adapter_problems=problems))
    state.adapter_failures.setdefault(instance.id, {})[event.variant] = now
    decide(state, DecisionKind.ADAPTER_FAILED, instance, f"the adapter of {event.variant}: {event.reason}")


def drop_undeclared(state: HostState, instance: Instance, declared: Function) -> Instance:
    """Return an instance without the adapters and problems of entries that a new catalogue has changed or removed, and
    unload these adapters."""
    if not loads_while_it_runs(instance):
        return instance
    numbers = {a.id: adapter_number(a.source) for a in declared.adapters}
    before = {a.id: adapter_number(a.source) for a in state.functions[instance.id].adapters}
    stale = {id: number for id, number in instance.adapters.items() if numbers.get(id) != number}
    for id, number in stale.items():
        _unload(state, instance, adapter_name(id, number))
    return replace(
        instance,
        adapters={id: n for id, n in instance.adapters.items() if id not in stale},
        adapter_problems={
            id: problem
            for id, problem in instance.adapter_problems.items()
            if id in numbers and numbers[id] == before.get(id)
        },
    )


def resume_unloads(state: HostState, instance: Instance) -> None:
    """Unload what an earlier agent of this host may not have unloaded before it ended; twice does no harm."""
    for name in state.weights[instance.id].adapter_unloads:
        state.effects.append(effects.UnloadAdapter(instance, name))


def _unload(state: HostState, instance: Instance, name: str) -> None:
    weights = state.weights[instance.id]
    names = (*(n for n in weights.adapter_unloads if n != name), name)
    state.weights[instance.id] = replace(weights, adapter_unloads=names[-MOST_UNLOADS:])
    state.effects.append(effects.UnloadAdapter(instance, name))


def _declared(function: Function, variant: str) -> Adapter | None:
    return next((a for a in function.adapters if a.id == variant), None)


def _without(table: dict[str, str], key: str) -> dict[str, str]:
    return {k: v for k, v in table.items() if k != key}
