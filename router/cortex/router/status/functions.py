"""Functions: a row each, and everything about one. Pure."""

from collections.abc import Mapping, Sequence

from msgspec.structs import asdict

from cortex.functions.lifecycle import COMING, State
from cortex.functions.spec import Engine, Function
from cortex.platform.record import HostRecord, Instance, Override, used_function
from cortex.platform.scheduling.ledger import Entry
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


def rows(known: FleetSnapshot, index: Index) -> tuple[Row, ...]:
    """Return every function: what fails or comes up first, then what is warm, then the cold, as the catalogue has it.

    What still runs although the catalogue does not name it any more is there, too.
    """
    functions = list(known.catalogue.functions.values())
    named = known.catalogue.functions.keys()
    functions += [Function(id=f, engine=Engine.COMMAND) for f in sorted(index.placed) if f not in named]
    aliases: dict[str, list[str]] = {}
    for alias, target in known.catalogue.aliases.items():
        aliases.setdefault(target, []).append(alias)
    found = (row(f, nth, tuple(aliases.get(f.id, ())), known, index) for nth, f in enumerate(functions))
    return tuple(sorted(found, key=lambda r: r.order))


def row(function: Function, nth: int, aliases: tuple[str, ...], known: FleetSnapshot, index: Index) -> Row:
    """Return one function."""
    placed = index.placed.get(function.id, [])
    failures = [f for _, f in index.failures.get(function.id, [])]
    retry_at = max((f.retry_at for f in failures), default=0.0)
    state = furthest({i.state for _, i in placed}, failing=retry_at > known.now)
    in_flight = sum(index.in_flight(i) for _, i in placed)
    tone = _TONES.get(state) or ("leaving" if state != State.READY else "busy" if in_flight else "idle")
    where, coming = next(((h.name, i) for h, i in placed if i.state in COMING), ("", None))
    over = ends(where, coming, known) if coming else None
    idle = [at for _, i in placed if (at := reaped_at(i, known.catalogue, index)) is not None]
    entry = known.starts.get(known.revisions.get(function.id, ""))
    rates = known.rates.get(function.id, Rates())
    last = _last_start([i for _, i in placed], entry)
    pinned = function.pinned or any(i.pinned for _, i in placed)
    unnamed = function.id not in known.catalogue.functions
    return Row(
        key=key("fn", function.id),
        order=f"{_RANKS[tone]}{nth:05}",
        id=function.id,
        aliases=aliases,
        engine="not in the catalogue" if unnamed else str(function.engine),
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
        phase=step(coming, over) if coming else "",
        share=coming.progress if coming else None,
        since=(coming.started or coming.created) if coming else None,
        ends=over,
        failure=failures[0].reason if failures and tone == "failing" else "",
        retry_at=retry_at if tone == "failing" else None,
        in_line=next((str(w) for w in waits_at(index.in_line.get(function.id, ()), known.now)), ""),
        kept="pinned" if pinned else f"at least {function.min} kept warm" if function.min else "",
    )


def details(function: Function, known: FleetSnapshot, index: Index) -> Details:
    """Return everything about one function."""
    aliases = tuple(known.catalogue.aliases_of(function.id))
    placed = index.placed.get(function.id, [])
    revision = known.revisions.get(function.id, "")
    last = _last_start([i for _, i in placed], known.starts.get(revision))
    return Details(
        row=row(function, 0, aliases, known, index),
        revision=revision,
        instances=tuple(_placed(h, i, revision, known, index) for h, i in placed),
        troubles=tuple(trouble(h, f) for h, f in index.failures.get(function.id, [])),
        settings=(*_settings(function), *_at_run_time(known.fleet.overrides.get(function.id))),
        pinned=function.pinned,
        last_used=known.fleet.used.get(used_function(function.id)),
        phases=last[1] if last else (),
        phases_at=last[0] if last else None,
    )


def phases(spent: Mapping[str, float]) -> tuple[Phase, ...]:
    """Return a start's phases side by side."""
    total = sum(spent.values()) or 1.0
    found, at = [], 0.0
    for name, seconds in spent.items():
        found.append(Phase(name=name, seconds=seconds, at=at, width=seconds / total))
        at += seconds / total
    return tuple(found)


def _placed(host: HostRecord, instance: Instance, revision: str, known: FleetSnapshot, index: Index) -> InstanceView:
    return InstanceView(
        id=instance.id,
        host=host.name,
        devices=tuple(_named(host, device) for device in instance.devices),
        state=str(instance.state),
        tone=index.tone(instance),
        in_flight=index.in_flight(instance),
        memory_mb=instance.memory_mb,
        memory_from=instance.memory_from,
        used_mb=instance.used_mb,
        idle_until=reaped_at(instance, known.catalogue, index),
        why=step(instance, None) if instance.state in COMING else instance.why,
        phases=phases(instance.phases),
        start_s=instance.ready - instance.started if instance.ready else None,
        pid=instance.pid,
        current=instance.revision == revision,
    )


def _named(host: HostRecord, device: str) -> str:
    """Return how people call a device: ids of GPUs are long."""
    found = next((d for d in host.devices if d.id == device), None)
    return f"GPU {found.index}" if found is not None and found.index is not None else device


def _last_start(placed: Sequence[Instance], entry: Entry | None) -> tuple[float, tuple[Phase, ...]] | None:
    """Return when the last start was over, and its phases: of an instance that is there, else of the ledger."""
    newest = max((i for i in placed if i.ready and i.phases), key=lambda i: i.ready, default=None)
    if newest is not None and (entry is None or newest.ready >= entry.started_at):
        return newest.ready, phases(newest.phases)
    return (entry.started_at, phases(entry.phases)) if entry and entry.phases else None


def _settings(function: Function) -> tuple[tuple[str, str], ...]:
    """Return what the catalogue says of a function, where it differs from saying nothing. Not its environment,
    which may hold secrets."""
    blank = asdict(Function(id=function.id, engine=function.engine))
    said = {k: v for k, v in asdict(function).items() if v != blank[k] and k != "env"}
    return tuple((key, _said(key, value)) for key, value in said.items())


def _at_run_time(override: Override | None) -> tuple[tuple[str, str], ...]:
    """Return what an operator has set over the catalogue."""
    said = {k: v for k, v in asdict(override).items() if v is not None} if override else {}
    return (("set at run time", ", ".join(f"{k} = {str(v).lower()}" for k, v in said.items())),) if said else ()


def _said(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if key.endswith("_mb") and isinstance(value, int):
        return mib(value)
    if key.endswith("_s") and isinstance(value, float):
        return span(value)
    return str(value)
