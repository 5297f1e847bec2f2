"""The table of functions, and the details of one function. Pure."""

from collections.abc import Mapping, Sequence

from msgspec.structs import asdict

from cortex.functions.lifecycle import COMING, State
from cortex.functions.spec import Engine, Function
from cortex.platform.record import HostRecord, Instance, Override, used_function
from cortex.platform.scheduling.ledger import Entry
from cortex.router.activation.load_balancing import blocked_by_foreign_memory
from cortex.router.activation.waits import waits_at
from cortex.router.model_listing import furthest
from cortex.router.status.failures import trouble
from cortex.router.status.format import mib, span
from cortex.router.status.hosts import reaped_at
from cortex.router.status.model import Details, InstanceView, Phase, Row
from cortex.router.status.snapshot import FleetSnapshot, Index, Rates, key
from cortex.router.status.starts import ends, step

_TONES = {"failing": "failing", "cold": "cold", **dict.fromkeys(map(str, COMING), "coming")}
_RANKS = {"failing": 0, "coming": 1, "busy": 2, "idle": 3, "leaving": 4, "cold": 5}


def rows(snapshot: FleetSnapshot, index: Index) -> tuple[Row, ...]:
    """Return every function: failing, starting, warm, cold; each group in catalogue order.

    Running functions that are no longer in the catalogue are included.
    """
    functions = list(snapshot.catalogue.functions.values())
    declared = snapshot.catalogue.functions.keys()
    functions += [Function(id=f, engine=Engine.COMMAND) for f in sorted(index.placed) if f not in declared]
    aliases: dict[str, list[str]] = {}
    for alias, target in snapshot.catalogue.aliases.items():
        aliases.setdefault(target, []).append(alias)
    entries = (row(f, nth, tuple(aliases.get(f.id, ())), snapshot, index) for nth, f in enumerate(functions))
    return tuple(sorted(entries, key=lambda r: r.order))


def row(function: Function, nth: int, aliases: tuple[str, ...], snapshot: FleetSnapshot, index: Index) -> Row:
    """Return one function."""
    placed = index.placed.get(function.id, [])
    failures = [f for _, f in index.failures.get(function.id, [])]
    retry_at = max((f.retry_at for f in failures), default=0.0)
    state = furthest({i.state for _, i in placed}, failing=retry_at > snapshot.now)
    in_flight = sum(index.in_flight(i) for _, i in placed)
    tone = _TONES.get(state) or ("leaving" if state != State.READY else "busy" if in_flight else "idle")
    host, coming = next(((h.name, i) for h, i in placed if i.state in COMING), ("", None))
    end = ends(host, coming, snapshot) if coming else None
    idle = [at for _, i in placed if (at := reaped_at(i, snapshot.catalogue, index)) is not None]
    entry = snapshot.starts.get(snapshot.revisions.get(function.id, ""))
    rates = snapshot.rates.get(function.id, Rates())
    last = _last_start([i for _, i in placed], entry)
    pinned = function.pinned or any(i.pinned for _, i in placed)
    undeclared = function.id not in snapshot.catalogue.functions
    return Row(
        key=key("fn", function.id),
        order=f"{_RANKS[tone]}{nth:05}",
        id=function.id,
        aliases=aliases,
        engine="not in the catalogue" if undeclared else str(function.engine),
        state=state,
        tone=tone,
        hosts=tuple(dict.fromkeys(h.name for h, _ in placed)),
        instances=len(placed),
        pinned=pinned,
        in_flight=in_flight,
        waiting=index.usage.waiting.get(function.id, 0),
        first_token_ms=rates.first_token_ms,
        tokens_per_s=rates.tokens_per_s,
        idle_until=max(idle) if tone == "idle" and idle else None,
        last_start_s=sum(p.seconds for p in last[1]) if last else None,
        expected_s=(entry.start_s or None) if entry else None,
        phase=step(coming, end) if coming else "",
        share=coming.progress if coming else None,
        since=(coming.started or coming.created) if coming else None,
        ends=end,
        failure=failures[0].reason
        if failures and tone == "failing"
        else blocked_by_foreign_memory(function, snapshot.fleet, index.usage, snapshot.now),
        retry_at=retry_at if tone == "failing" else None,
        in_line=next((str(w) for w in waits_at(index.in_line.get(function.id, ()), snapshot.now)), ""),
        retention="pinned" if pinned else f"at least {function.min} kept warm" if function.min else "",
    )


def details(function: Function, snapshot: FleetSnapshot, index: Index) -> Details:
    """Return everything about one function."""
    aliases = tuple(snapshot.catalogue.aliases_of(function.id))
    placed = index.placed.get(function.id, [])
    revision = snapshot.revisions.get(function.id, "")
    last = _last_start([i for _, i in placed], snapshot.starts.get(revision))
    return Details(
        row=row(function, 0, aliases, snapshot, index),
        revision=revision,
        instances=tuple(_placed(h, i, revision, snapshot, index) for h, i in placed),
        troubles=tuple(trouble(h, f) for h, f in index.failures.get(function.id, [])),
        settings=(*_settings(function), *_overrides(snapshot.fleet.overrides.get(function.id))),
        pinned=function.pinned,
        last_used=snapshot.fleet.used.get(used_function(function.id)),
        phases=last[1] if last else (),
        phases_at=last[0] if last else None,
    )


def phases(durations: Mapping[str, float]) -> tuple[Phase, ...]:
    """Return a start's phases with their positions on a bar."""
    total = sum(durations.values()) or 1.0
    bar, at = [], 0.0
    for name, seconds in durations.items():
        bar.append(Phase(name=name, seconds=seconds, at=at, width=seconds / total))
        at += seconds / total
    return tuple(bar)


def _placed(host: HostRecord, instance: Instance, revision: str, snapshot: FleetSnapshot, index: Index) -> InstanceView:
    return InstanceView(
        id=instance.id,
        host=host.name,
        devices=tuple(_device_name(host, device) for device in instance.devices),
        state=str(instance.state),
        tone=index.tone(instance),
        in_flight=index.in_flight(instance),
        memory_mb=instance.memory_mb,
        memory_from=instance.memory_from,
        used_mb=instance.used_mb,
        idle_until=reaped_at(instance, snapshot.catalogue, index),
        why=step(instance, None) if instance.state in COMING else instance.why,
        phases=phases(instance.phases),
        start_s=instance.ready - instance.started if instance.ready else None,
        pid=instance.pid,
        current=instance.revision == revision,
    )


def _device_name(host: HostRecord, id: str) -> str:
    """Return a device's short name, because ids of GPUs are long."""
    device = next((d for d in host.devices if d.id == id), None)
    return f"GPU {device.index}" if device is not None and device.index is not None else id


def _last_start(placed: Sequence[Instance], entry: Entry | None) -> tuple[float, tuple[Phase, ...]] | None:
    """Return the end and the phases of the last start, from a live instance or else from the ledger."""
    newest = max((i for i in placed if i.ready and i.phases), key=lambda i: i.ready, default=None)
    if newest is not None and (entry is None or newest.ready >= entry.started_at):
        return newest.ready, phases(newest.phases)
    return (entry.started_at, phases(entry.phases)) if entry and entry.phases else None


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
