"""The operators' API for functions and hosts: `/admin/…`. The CLI is its client."""

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from msgspec import Struct, to_builtins
from msgspec.structs import asdict

from cortex.functions.names import nearest
from cortex.functions.spec import Function, revision
from cortex.platform.record import Fleet, HostRecord, Instance, Override, Use, use, used_function
from cortex.platform.registry import RecordUnavailable
from cortex.platform.scheduling.ledger import Entry, Reading, device_of, placement_mb, revision_of
from cortex.platform.scheduling.reaping import reap_at
from cortex.router import operations
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.activation.load_balancing import blocked_by_foreign_memory
from cortex.router.activation.waits import Place, Wait, places_in_line, waits_at
from cortex.router.errors import BadRequest, HostNotFound, NoCapacity, RecordIsAway
from cortex.router.model_listing import failures, state
from cortex.router.runtime import Runtime
from cortex.router.start_history import LastStart, by_revision, last_start, left_s
from cortex.router.status.hosts import eviction_order
from cortex.router.status.planning import eviction_order_on, plan_action, take_snapshot
from cortex.router.status.snapshot import Index

VERBS = "warm, cool, pin, unpin, set, reset or forget"


class InstanceView(Struct, frozen=True, kw_only=True):
    """One instance, as `cortex fn ls` shows it."""

    id: str
    host: str
    silent_s: float | None
    """How long its host has not reported, which is the age of this data; None: it reports."""
    state: str
    revision: str
    in_flight: int
    pinned: bool
    memory_mb: int
    memory_from: str
    used_mb: int | None
    devices: tuple[str, ...]
    pid: int
    url: str
    server: str
    """The inference server it runs."""
    path: str
    """How it was started: plain, or warm from a parked launcher."""
    phase: str
    progress: float | None
    since: float
    start_s: float | None
    phases: dict[str, float]
    """Seconds of the start by phase."""
    left_s: float | None
    """Remaining seconds of the start, from earlier starts; None if unknown."""
    idle_in_s: float | None
    """Seconds until it is reaped if it stays idle; None while in use or if never reaped."""
    why: str
    yields_to: str
    """The function whose turn it is, when it is closing for that."""
    leaves_in_s: float | None
    """When a closing instance leaves at the latest: as soon as its requests end."""


class Measurement(Struct, frozen=True, kw_only=True):
    """A function's measured memory on one kind of device, summed over an instance's devices."""

    device: str
    memory_mb: int
    counts: bool
    """Whether the next placement uses it. Less than `vram_mb` counts only once an instance has served."""
    readings: tuple[Reading, ...]
    """The maximum of each of the last starts, oldest first."""


class Row(Struct, frozen=True, kw_only=True):
    """One function, as `cortex fn ls` shows it."""

    id: str
    aliases: list[str]
    engine: str
    state: str
    instances: list[InstanceView]
    in_flight: int
    waiting: int
    in_line: list[Wait]
    """Where its requests wait for memory, the soonest turn first."""
    pinned: bool
    min: int
    max: int
    overridden: list[str]
    """The settings that runtime overrides replace."""
    last_used: float | None
    last_start: LastStart | None
    """The last start by phase."""
    expected_start_s: float | None
    """Duration of a start from the worker's launch, from earlier starts; None if unknown."""
    vram_mb: int
    """The declared memory; 0: none."""
    measured: list[Measurement]
    failure: str | None
    blocked: str
    """Why it cannot start now: processes outside cortex hold the memory. Empty: they do not prevent a start."""
    retry_at: float | None
    cause: str
    """The cause recognized in the worker's last lines, if any; admins can read its log."""
    failed_instance: str
    """The instance with that log; empty without a failure."""


def rows(
    functions: Iterable[Function],
    aliases: Mapping[str, list[str]],
    fleet: Fleet,
    ledger: Mapping[str, Entry],
    now: float,
) -> list[Row]:
    """Return a row per function, in catalogue order. Pure."""
    usage, latest, places = use(fleet), by_revision(ledger), places_in_line(fleet)
    kinds: dict[str, dict[str, Entry]] = {}
    for field, entry in ledger.items():
        kinds.setdefault(revision_of(field), {})[device_of(field)] = entry
    return [
        _row(f, aliases.get(f.id, []), fleet, usage, places.get(f.id, ()), latest.get(rev), kinds.get(rev, {}), now)
        for f in functions
        for rev in (revision(f),)
    ]


def _row(
    function: Function,
    aliases: list[str],
    fleet: Fleet,
    usage: Use,
    places: Iterable[Place],
    entry: Entry | None,
    kinds: Mapping[str, Entry],
    now: float,
) -> Row:
    instances = [(host.name, i) for host in fleet.records() for i in host.instances if i.function == function.id]
    placed = []
    for host, instance in instances:
        reaped = reap_at(instance, function, usage, (i for _, i in instances))
        placed.append(_placed(host, _silent_s(host, fleet, now), instance, usage, reaped, entry, now))
    failure = next(iter(failures(function, fleet)), None)
    unreadable = [f"{h.name}: {why}" for h in fleet.hosts.values() if (why := h.unreadable.get(function.id))]
    return Row(
        id=function.id,
        aliases=aliases,
        engine=function.engine,
        state=state(function, fleet),
        instances=placed,
        in_flight=sum(p.in_flight for p in placed),
        waiting=usage.waiting.get(function.id, 0),
        in_line=waits_at(places, now),
        pinned=function.pinned,
        min=function.min,
        max=function.max,
        overridden=[k for k, v in asdict(fleet.overrides.get(function.id, Override())).items() if v is not None],
        last_used=fleet.used.get(used_function(function.id)),
        last_start=last_start(revision(function), fleet, entry),
        expected_start_s=(entry.start_s or None) if entry else None,
        vram_mb=function.vram_mb,
        measured=[_measurement(device, entry, function, fleet) for device, entry in sorted(kinds.items())],
        failure=failure.reason if failure else "; ".join(unreadable) or None,
        blocked=blocked_by_foreign_memory(function, fleet, usage, now),
        retry_at=(failure.retry_at or None) if failure else None,
        cause=failure.cause if failure else "",
        failed_instance=failure.instance if failure and failure.lines else "",
    )


def _measurement(device: str, entry: Entry, function: Function, fleet: Fleet) -> Measurement:
    running = {i.id for h in fleet.hosts.values() for i in h.instances}
    counts = placement_mb(entry, function.vram_mb, running, fleet.used) > 0
    return Measurement(device=device, memory_mb=entry.memory_mb, counts=counts, readings=entry.readings)


def _silent_s(host: str, fleet: Fleet, now: float) -> float | None:
    silent = fleet.silent.get(host)
    return round(max(0.0, now - silent.since), 1) if silent else None


def _placed(
    host: str,
    silent_s: float | None,
    instance: Instance,
    usage: Use,
    reaped: float | None,
    entry: Entry | None,
    now: float,
) -> InstanceView:
    return InstanceView(
        id=instance.id,
        host=host,
        silent_s=silent_s,
        state=instance.state,
        revision=instance.revision,
        in_flight=usage.in_flight.get(instance.id, 0),
        pinned=instance.pinned,
        memory_mb=instance.memory_mb,
        memory_from=instance.memory_from,
        used_mb=instance.used_mb,
        devices=instance.devices,
        pid=instance.pid,
        url=instance.url,
        server=instance.server,
        path=instance.path,
        phase=instance.phase,
        progress=instance.progress,
        since=instance.since,
        start_s=round(instance.ready - instance.started, 3) if instance.ready else None,
        phases=instance.phases,
        left_s=left_s(instance, entry, now),
        idle_in_s=max(0.0, round(reaped - now, 1)) if reaped is not None else None,
        why=instance.why,
        yields_to=instance.yields_to,
        leaves_in_s=max(0.0, round(instance.deadline - now, 1)) if instance.yields_to else None,
    )


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the admin routes of a router."""

    @get("/admin/functions", opt={"needs": "status"})
    async def functions() -> dict[str, Any]:
        catalogue = runtime.live_catalogue.catalogue
        aliases = {f: catalogue.aliases_of(f) for f in catalogue.functions}
        ledger = await runtime.history.ledger()
        entries = rows(catalogue.functions.values(), aliases, runtime.fleet(), ledger, time.time())
        return {"functions": to_builtins(entries)}

    @get("/admin/functions/{name:path}", opt={"needs": "status"})
    async def function(name: str) -> dict[str, Any]:
        target = runtime.live_catalogue.resolve(name.lstrip("/"))
        aliases = {target.function.id: runtime.live_catalogue.catalogue.aliases_of(target.function.id)}
        entries = rows([target.function], aliases, runtime.fleet(), await runtime.history.ledger(), time.time())
        described: dict[str, Any] = to_builtins(entries[0])
        return described | {"revision": target.revision}

    @post("/admin/functions/{name:path}", status_code=200, opt={"needs": "admin"})
    async def act(
        name: str,
        now: bool = False,
        plan: bool = False,
        least: Annotated[int | None, Parameter(query="min", ge=0, le=1000)] = None,
        most: Annotated[int | None, Parameter(query="max", ge=1, le=1000)] = None,
    ) -> dict[str, Any]:
        """`…/{id}/warm`, `…/cool?now=1`, `…/pin`, `…/unpin`, `…/set?min=1&max=2`, `…/reset`, `…/forget`; `?plan=1` only
        returns the plan of one of the first four.

        Ids may hold slashes: the verb is the last segment.
        """
        function_id, _, verb = name.lstrip("/").rpartition("/")
        if not plan and (target := runtime.live_catalogue.get(function_id)):
            runtime.decision_log.operator_action(verb, target.function.id, now=now)
        if verb == "warm" and plan:
            placement, refusals = await runtime.activator.plan(runtime.live_catalogue.resolve(function_id).function)
            leaving = eviction_order_on(runtime, placement.host) if placement else ()
            return {"plan": to_builtins(placement), "refused": refusals, "leaving": to_builtins(leaving)}
        if plan:
            return {"plan": to_builtins(await plan_action(runtime, verb, function=function_id))}
        if verb == "warm":
            return {"instance": await operations.warm(runtime.activator, runtime.live_catalogue, function_id)}
        if verb == "cool":
            target = runtime.live_catalogue.resolve(function_id)
            draining, away = await operations.cool(runtime.agents, runtime.view, target.function.id, at_once=now)
            if away:
                raise NoCapacity(f"the agents of these hosts do not answer: {', '.join(away)}", retry_after=5)
            return {"instances": draining}
        if verb == "forget":
            return await _forget(runtime, function_id)
        changes: dict[str, int | bool | None]
        match verb:
            case "pin" | "unpin":
                changes = {"pinned": verb == "pin"}
            case "set":
                changes = {k: v for k, v in (("min", least), ("max", most)) if v is not None}
            case "reset":
                changes = dict.fromkeys(("pinned", "min", "max"))
            case _:
                raise BadRequest(f"unknown action '{verb[:50]}': use {VERBS}")
        try:
            spec, catalogue = runtime.live_catalogue.resolve(function_id).function, runtime.live_catalogue
            changed = await operations.override(runtime.registry, runtime.view, catalogue, spec, **changes)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=5) from None
        return {"id": changed.id, "pinned": changed.pinned, "min": changed.min, "max": changed.max}

    @get("/admin/hosts", opt={"needs": "status"})
    async def hosts() -> dict[str, Any]:
        """List the hosts that report, and the silent ones, whose instances may still serve."""
        snapshot = take_snapshot(runtime)
        fleet, index = snapshot.fleet, Index(snapshot.fleet)

        def row_of(host: HostRecord) -> dict[str, Any]:
            leaving = eviction_order(host, snapshot, index) if host.name in fleet.hosts else ()
            return {
                **to_builtins(host),
                "silent_s": _silent_s(host.name, fleet, snapshot.now),
                "cordoned": host.name in fleet.cordoned,
                "in_flight": sum(index.in_flight(i) for i in host.instances),
                "leaving": to_builtins(leaving),
                "namesake": to_builtins(fleet.namesakes.get(host.name)),
            }

        reporting = [row_of(host) for _, host in sorted(fleet.hosts.items())]
        silent = [row_of(host.record) for _, host in sorted(fleet.silent.items())]
        away = sorted(fleet.cordoned.difference(fleet.hosts))
        return {"hosts": reporting, "silent": silent, "cordoned_and_away": away, "now": round(snapshot.now, 3)}

    @post("/admin/hosts/{host:str}/{verb:str}", status_code=200, opt={"needs": "admin"})
    async def act_on_host(host: str, verb: str, plan: bool = False) -> dict[str, Any]:
        """`cordon`, `uncordon` or `drain` a host, or return the plan (`?plan=1`). A silent host can be cordoned."""
        fleet = runtime.view.fleet
        if verb not in ("cordon", "uncordon", "drain"):
            raise BadRequest(f"unknown action '{verb[:50]}': use cordon, uncordon or drain")
        exists = host in fleet.hosts or (verb == "cordon" and host in fleet.silent)
        if not exists and (verb == "drain" or host not in fleet.cordoned):
            raise HostNotFound(host, nearest(host, fleet.hosts))
        if plan:
            return {"plan": to_builtins(await plan_action(runtime, verb, host=host))}
        runtime.decision_log.operator_action(verb, host=host)
        try:
            if verb == "drain":
                moved, draining = await operations.drain(
                    runtime.registry, runtime.view, runtime.live_catalogue, runtime.activator, runtime.agents, host
                )
                return {"moved": moved, "going": draining}
            await operations.cordon(runtime.registry, runtime.view, host, cordoned=verb == "cordon")
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=5) from None
        except AgentUnavailable as error:
            raise NoCapacity(str(error), retry_after=5) from None
        return {"host": host, "cordoned": verb == "cordon"}

    return [functions, function, act, hosts, act_on_host]


async def _forget(runtime: Runtime, name: str) -> dict[str, Any]:
    target = runtime.live_catalogue.resolve(name)
    try:
        entries, away = await operations.forget(runtime.registry, runtime.view, runtime.agents, runtime.history, target)
    except RecordUnavailable as error:
        raise RecordIsAway(str(error), retry_after=5) from None
    if away:
        raise NoCapacity(f"forgotten by the record, but these hosts did not answer: {', '.join(away)}", retry_after=5)
    return {"id": target.function.id, "entries": entries}
