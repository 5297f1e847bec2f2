"""Functions and their instances. Pure."""

from collections.abc import Iterable, Iterator

from msgspec.structs import asdict, replace

from cortex.functions import hours
from cortex.functions.catalogue import Catalogue
from cortex.functions.launch import StartMode
from cortex.functions.memo import Memo
from cortex.functions.spec import Engine, Function, Start
from cortex.platform.record import HostRecord, Instance, Override, used_function
from cortex.platform.scheduling.ledger import Entry, expected_s, placement_mb
from cortex.platform.scheduling.reaping import reap_at
from cortex.router.activation.load_balancing import blocked_by_foreign_memory
from cortex.router.activation.waits import room_text, waits_at
from cortex.router.api_types import FunctionView, InstanceView, Measurement
from cortex.router.model_listing import furthest
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.overview.starts import fetched_at, last_start, ready_at, start_times

_NO_OVERRIDE = Override()


def function_views(snapshot: FleetSnapshot, index: Index) -> Iterator[FunctionView]:
    """Yield every function: those of the catalogue in its order, then running ones that it no longer has."""
    undeclared = sorted(index.placed.keys() - snapshot.catalogue.functions.keys())
    for function in (*snapshot.catalogue.functions.values(), *map(placeholder, undeclared)):
        yield function_view(function, snapshot, index)


def placeholder(function: str) -> Function:
    """Return a specification of a function that runs and is no longer in the catalogue."""
    return Function(id=function, engine=Engine.COMMAND)


def function_view(function: Function, snapshot: FleetSnapshot, index: Index) -> FunctionView:
    """Return one function."""
    revision = snapshot.revisions.get(function.id, "")
    if function.warm or function.variant_of or not index.is_quiet(function.id, revision):
        return _function_view(function, snapshot, index)
    last_used = snapshot.fleet.used.get(used_function(function.id))
    return replace(_quiet_view(function), revision=revision, now=snapshot.now, last_used=last_used)


_quiet_view = Memo(lambda function: _function_view(function, *_quiet(function)))
"""The views of functions about which the record has nothing; revision, time and last use are filled in."""


def _quiet(function: Function) -> tuple[FleetSnapshot, Index]:
    snapshot = FleetSnapshot(catalogue=Catalogue(functions={function.id: function}, aliases={}))
    return snapshot, Index(snapshot)


def _function_view(function: Function, snapshot: FleetSnapshot, index: Index) -> FunctionView:
    declared = function.id in snapshot.catalogue.functions
    revision = snapshot.revisions.get(function.id, "")
    entry = index.starts.get(revision)
    failures = [f for _, f in index.failures.get(function.id, ())]
    failure = failures[0] if failures else None
    why = failure.reason if failure else "; ".join(index.unreadable.get(function.id, ()))
    retry_at = max((f.retry_at for f in failures), default=0.0)
    instances = tuple(instance_views(index.placed.get(function.id, ()), snapshot, index))
    requests = index.requests(function)
    measured = sorted(index.measured[revision].items()) if revision in index.measured else []
    override = snapshot.fleet.overrides.get(function.id, _NO_OVERRIDE)
    warm = hours.texts(function) if override.min is None else ()
    state, adapter_problem = furthest({i.state for i in instances}, failing=retry_at > snapshot.now), ""
    if function.adapter:
        state, adapter_problem = _adapter_state(function.id, instances, state)
    return FunctionView(
        id=function.id,
        now=snapshot.now,
        declared=declared,
        aliases=tuple(index.aliases.get(function.id, ())),
        variant_of=function.variant_of,
        variants=tuple(index.variants.get(function.id, ())),
        engine=function.engine if declared else "",
        revision=revision,
        state=state,
        instances=instances,
        in_flight=requests.in_flight,
        waiting=requests.waiting,
        in_line=tuple(waits_at(index.in_line.get(function.id, ()), snapshot.now)),
        pinned=function.pinned,
        min=function.min,
        max=function.max,
        warm=warm,
        hours_change=hours.next_change(function, snapshot.now) if warm else None,
        baseline=function.baseline,
        overridden=() if override is _NO_OVERRIDE else tuple(k for k, v in asdict(override).items() if v is not None),
        last_used=snapshot.fleet.used.get(used_function(function.id)),
        last_start=last_start(revision, instances, entry),
        expected_start_s=_expected_start_s(function, entry),
        start=str(function.start),
        start_times=tuple([time for device, of in measured for time in start_times(device, of)]),
        tricks_off=tuple(
            (host.name, trick, why)
            for host in index.without_tricks.get(revision, ())
            for trick, why in host.tricks_off[revision].items()
        ),
        vram_mb=function.vram_mb,
        measured=tuple([_measurement(device, of, function, snapshot, index) for device, of in measured]),
        failure=adapter_problem or why or None,
        blocked=(
            blocked_by_foreign_memory(_base(function, snapshot), snapshot.fleet, index.usage, snapshot.now)
            if index.has_foreign
            else ""
        ),
        retry_at=retry_at or None,
        cause=failure.cause if failure else "",
        failed_instance=failure.instance if failure and failure.lines else "",
        park=str(function.park),
        unparkable=tuple(
            (host.name, str(tier), why)
            for host in index.cannot_park.get(revision, ())
            for tier, why in host.unparkable[revision].items()
        ),
    )


def _adapter_state(id: str, instances: Iterable[Instance], state: str) -> tuple[str, str]:
    """Return the state of a variant with an adapter, by that of its base's instances, and why no instance has it."""
    if any(id in i.adapters for i in instances):
        return state, ""
    if any(id in i.adapter_steps for i in instances):
        return "starting", ""
    problem = next((p for i in instances if (p := i.adapter_problems.get(id))), "")
    return ("failing", problem) if problem else (state, "")


def _base(function: Function, snapshot: FleetSnapshot) -> Function:
    """Return the function whose instances serve another."""
    return snapshot.catalogue.functions.get(function.base_id, function)


def instance_views(
    placed: Iterable[tuple[HostRecord, Instance]], snapshot: FleetSnapshot, index: Index
) -> Iterator[InstanceView]:
    """Yield instances with their hosts."""
    return (_instance_view(host, instance, snapshot, index) for host, instance in placed)


def _instance_view(host: HostRecord, instance: Instance, snapshot: FleetSnapshot, index: Index) -> InstanceView:
    silent = snapshot.fleet.silent.get(host.name)
    fetched = fetched_at(host.name, instance, snapshot.downloads or ())
    return InstanceView(
        **asdict(instance) | {"host": host.name, "phase": instance.phase or room_text(instance, host, snapshot.now)},
        silent_since=silent.since if silent else None,
        in_flight=index.in_flight(instance),
        start_s=round(instance.ready - instance.started, 3) if instance.ready else None,
        fetched_at=fetched,
        ready_at=ready_at(instance, index.starts.get(instance.revision), fetched),
        reap_at=instance_reap_at(instance, snapshot, index),
    )


def instance_reap_at(instance: Instance, snapshot: FleetSnapshot, index: Index) -> float | None:
    """Return when an instance is reaped if it stays idle; None while it is in use or needed."""
    function = snapshot.catalogue.functions.get(instance.function)
    return reap_at(instance, function, index.usage, index.of(instance.function)) if function else None


def _expected_start_s(function: Function, entry: Entry | None) -> float | None:
    """Return the seconds of a start that a request waits for; None: unknown."""
    mode = StartMode.FULL if function.start is Start.FULL else StartMode.FAST
    return (expected_s(entry, mode) or None) if entry else None


def _measurement(device: str, entry: Entry, function: Function, snapshot: FleetSnapshot, index: Index) -> Measurement:
    counts = placement_mb(entry, function.vram_mb, index.instances.keys(), snapshot.fleet.used) > 0
    return Measurement(device=device, memory_mb=entry.memory_mb, counts=counts, readings=entry.readings)
