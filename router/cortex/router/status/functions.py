"""The table of functions, and the details of one function. Pure."""

from collections.abc import Mapping

from msgspec.structs import asdict

from cortex.functions.lifecycle import COMING, PARKED, State
from cortex.functions.spec import Function
from cortex.platform.record import HostRecord, Instance, Override
from cortex.router.api_types import FunctionView, InstanceView
from cortex.router.overview.functions import function_view
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.overview.traffic import traffic_total
from cortex.router.overview.wording import parked_text, retention, start_lines, start_text, step
from cortex.router.status.failures import trouble
from cortex.router.status.format import key, mib, span
from cortex.router.status.model import Details, InstanceLine, Phase, Row
from cortex.router.status.starts import ends

_TONES = {
    "failing": "failing",
    "cold": "cold",
    **dict.fromkeys(map(str, COMING), "coming"),
    **dict.fromkeys(map(str, PARKED), "parked"),
}
_RANKS = {"failing": 0, "coming": 1, "busy": 2, "idle": 3, "leaving": 4, "parked": 5, "cold": 6}


def rows(functions: tuple[FunctionView, ...], snapshot: FleetSnapshot) -> tuple[Row, ...]:
    """Return every function: failing, starting, warm, cold; each group in the order of the views."""
    return tuple(sorted((row(f, nth, snapshot) for nth, f in enumerate(functions)), key=lambda r: r.order))


def row(function: FunctionView, nth: int, snapshot: FleetSnapshot) -> Row:
    """Return one function."""
    instances, state = function.instances, function.state
    tone = _TONES.get(state) or ("leaving" if state != State.READY else "busy" if function.in_flight else "idle")
    coming = next((i for i in instances if i.state in COMING), None)
    idle = [i.reap_at for i in instances if i.reap_at is not None]
    lately = snapshot.lately.get(function.id)
    traffic = traffic_total(lately) if lately else None
    first = traffic.percentiles.first if traffic else None
    pinned = function.pinned or any(i.pinned for i in instances)
    return Row(
        key=key("fn", function.id),
        order=f"{_RANKS[tone]}{nth:05}",
        id=function.id,
        aliases=function.aliases,
        engine=_kind(function),
        state=state,
        tone=tone,
        hosts=tuple(dict.fromkeys(i.host for i in instances)),
        instances=len(instances),
        pinned=pinned,
        in_flight=function.in_flight,
        waiting=function.waiting,
        first_token_ms=round(1000 * first.p50_s, 1) if first else None,
        tokens_per_s=traffic.tokens_per_s if traffic else None,
        idle_until=max(idle) if tone == "idle" and idle else None,
        last_start_s=function.last_start.total_s if function.last_start else None,
        expected_s=function.expected_start_s,
        phase=step(coming) if coming else "",
        share=coming.progress if coming else None,
        since=(coming.started or coming.created) if coming else None,
        ends=ends(coming) if coming else None,
        failure=(function.failure or "") if tone == "failing" else function.blocked,
        retry_at=function.retry_at if tone == "failing" else None,
        in_line=str(function.in_line[0]) if function.in_line else "",
        retention="pinned" if pinned else retention(function),
    )


def _kind(function: FunctionView) -> str:
    """Return what runs a function: its engine, or the instances of its base."""
    if function.variant_of:
        return f"variant of {function.variant_of}"
    return function.engine if function.declared else "not in the catalogue"


def details(function: Function, snapshot: FleetSnapshot, index: Index) -> Details:
    """Return everything about one function."""
    view = function_view(function, snapshot, index)
    hosts = {h.name: h for h, _ in index.placed.get(function.id, ())}
    return Details(
        row=row(view, 0, snapshot),
        revision=view.revision,
        instances=tuple(_line(i, hosts[i.host], view, index) for i in view.instances),
        troubles=tuple(trouble(h, f) for h, f in index.failures.get(function.id, [])),
        settings=(*_settings(function), *_overrides(snapshot.fleet.overrides.get(function.id))),
        pinned=view.pinned,
        last_used=view.last_used,
        phases=phases(view.last_start.phases) if view.last_start else (),
        phases_at=view.last_start.at if view.last_start else None,
        starts=tuple(start_lines(view)),
        shared_with=_shared_with(view, index),
    )


def _shared_with(function: FunctionView, index: Index) -> tuple[str, ...]:
    """Return the other functions that share the instances of one, the base first."""
    base = function.variant_of or function.id
    every = (base, *index.variants.get(base, ()))
    return tuple(id for id in every if id != function.id)


def phases(durations: Mapping[str, float]) -> tuple[Phase, ...]:
    """Return a start's phases with their positions on a bar."""
    total = sum(durations.values()) or 1.0
    bar, at = [], 0.0
    for name, seconds in durations.items():
        bar.append(Phase(name=name, seconds=seconds, at=at, width=seconds / total))
        at += seconds / total
    return tuple(bar)


def tone(instance: Instance, index: Index) -> str:
    """Return an instance's tone: busy, idle, coming, parked or leaving."""
    if instance.state in COMING:
        return "coming"
    if instance.state in PARKED:
        return "parked"
    if instance.state is not State.READY:
        return "leaving"
    return "busy" if index.in_flight(instance) else "idle"


def _line(instance: InstanceView, host: HostRecord, function: FunctionView, index: Index) -> InstanceLine:
    return InstanceLine(
        id=instance.id,
        host=instance.host,
        devices=tuple(_device_name(host, device) for device in instance.devices),
        state=str(instance.state),
        tone=tone(instance, index),
        in_flight=instance.in_flight,
        memory_mb=instance.held_mb,
        memory_from=instance.memory_from,
        used_mb=instance.used_mb,
        idle_until=instance.reap_at,
        why=step(instance)
        if instance.state in COMING
        else parked_text(instance)
        if instance.state in PARKED
        else instance.why or start_text(instance),
        pid=instance.pid,
        current=instance.revision == function.revision,
    )


def _device_name(host: HostRecord, id: str) -> str:
    """Return a device's short name, because ids of GPUs are long."""
    device = next((d for d in host.devices if d.id == id), None)
    return f"GPU {device.index}" if device is not None and device.index is not None else id


def _settings(function: Function) -> tuple[tuple[str, str], ...]:
    """Return a function's settings that differ from the defaults, without `env`, which may hold secrets."""
    defaults = asdict(Function(id=function.id, engine=function.engine))
    changed = {k: v for k, v in asdict(function).items() if v != defaults[k] and k != "env"}
    return tuple((key, _text(key, value)) for key, value in changed.items())


def _overrides(override: Override | None) -> tuple[tuple[str, str], ...]:
    """Return the runtime overrides."""
    settings = {k: v for k, v in asdict(override).items() if v is not None} if override else {}
    return (("set at run time", ", ".join(f"{k} = {str(v).lower()}" for k, v in settings.items())),) if settings else ()


def _text(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if key.endswith("_mb") and isinstance(value, int):
        return mib(value)
    if key.endswith("_s") and isinstance(value, float):
        return span(value)
    return str(value)
