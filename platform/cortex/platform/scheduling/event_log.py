"""The last events of a scheduler, with the state that they began from: enough to replay its decisions. Pure.

The log is JSON lines, compressed in segments. A segment begins with a checkpoint, the state before its first event; the
oldest segment is dropped for a new one, so there are always the last `EVENTS` events, or as many as fit `MOST_BYTES`.
Each line has its effects: a replay that yields others has found a bug, or another release.

Of the record, a line has what changed since the reading before, and of hosts only which instances they have: that is
what the scheduler reads.

Values of environment variables, and of arguments, may be secrets. They are replaced by digests under a key that never
leaves the process: equal values stay equal. The true revision of such a spec is in its `env`.
"""

import hashlib
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.spec import Function, revision
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Instance, RouterReport, used_instance
from cortex.platform.scheduling.effects import CancelFetch, Effect, Fetch, LoadAdapter, Park, Prove, Spawn, Wake
from cortex.platform.scheduling.events import AdapterRequest, Adopted, CatalogueChanged, EnsureRequest, Event, Reported
from cortex.platform.scheduling.state import MASKED_REVISION, HostState
from cortex.platform.scheduling.turns import Line

EVENTS = 1000
SEGMENTS = 3
SEGMENT_EVENTS = EVENTS // (SEGMENTS - 1)
MOST_BYTES = 12 * 1024 * 1024
"""Compressed."""
CHUNK_BYTES = 64 * 1024
_OPTION = re.compile(r"(--[a-z][a-z0-9_-]*|-[a-z]{1,3})(=|\.|$)|-O")
"""The part of an argument that is the name of an option, and no secret: start modes depend on it."""


class Checkpoint(Struct, frozen=True, kw_only=True, tag_field="line", tag="checkpoint"):
    """The state before the next event."""

    now: float
    state: HostState


class FleetChange(Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A `Reported` of a record that was read; None stands for what is gone."""

    routers: dict[str, RouterReport]
    cordoned: frozenset[str]
    hosts: dict[str, HostRecord | None] = {}
    used: dict[str, float | None] = {}


class Entry(Struct, frozen=True, kw_only=True):
    """An event and its effects."""

    now: float
    event: Event
    effects: tuple[Effect, ...]
    raised: str
    """The kind of exception it raised; empty: none."""


class _Line(Struct, frozen=True, kw_only=True, tag_field="line", tag="event", omit_defaults=True):
    """An entry as it is written."""

    now: float
    event: Event | FleetChange
    effects: tuple[Effect, ...] = ()
    raised: str = ""


_INSTANCE = used_instance("")
_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Checkpoint | _Line)


class EventLog:
    """The events of one scheduler. Its caller adds each right after the scheduler has handled it."""

    def __init__(self, state: HostState, now: float, key: bytes, *, segment_events: int = SEGMENT_EVENTS) -> None:
        self._state, self._masks, self._segment_events = state, _Masks(key), segment_events
        self._fleet = Fleet()
        """The last reading in this segment."""
        self._segments: deque[_Segment] = deque(maxlen=SEGMENTS)
        self._begin(now)

    def add(self, event: Event, effects: Iterable[Effect], now: float, raised: str = "") -> None:
        """Add an event. What cannot be encoded is raised; the log then begins anew."""
        try:
            safe_event, safe_effects = self._without_secrets(event), tuple(map(self._masks.effect, effects))
            line = _Line(now=now, event=safe_event, effects=safe_effects, raised=raised)
            if self._segments:
                self._segments[-1].write(line)
            if not self._segments or self._is_full(self._segments[-1]):
                self._begin(now)
        except Exception:
            self._segments.clear()
            raise

    def export(self) -> Iterator[bytes]:
        """Yield the log as JSON lines, in chunks."""
        for content in [s.content() for s in self._segments]:
            rest = zlib.decompressobj()
            yield rest.decompress(content, CHUNK_BYTES)
            while rest.unconsumed_tail:
                yield rest.decompress(rest.unconsumed_tail, CHUNK_BYTES)
            yield rest.flush()

    def _is_full(self, segment: "_Segment") -> bool:
        return segment.lines > self._segment_events or segment.size > MOST_BYTES / SEGMENTS

    def _begin(self, now: float) -> None:
        segment = _Segment()
        state = self._masks.state(self._state)
        if state.reports.fleet is not None:
            fleet = _apply(Fleet(), _difference(Fleet(), state.reports.fleet, state.host.name))
            state.reports = replace(state.reports, fleet=fleet)
        segment.write(Checkpoint(now=now, state=state))
        self._segments.append(segment)
        self._fleet = Fleet()

    def _without_secrets(self, event: Event) -> Event | FleetChange:
        if not isinstance(event, Reported) or event.fleet is None:
            return self._masks.event(event)
        before, self._fleet = self._fleet, event.fleet
        return _difference(before, event.fleet, self._state.host.name)


def read(lines: Iterable[bytes | str]) -> Iterator[Checkpoint | Entry]:
    """Read an export. Raises MsgspecError."""
    fleet = Fleet()
    for line in map(_DECODER.decode, lines):
        if isinstance(line, Checkpoint):
            fleet = Fleet()
            yield line
            continue
        if isinstance(line.event, FleetChange):
            fleet = _apply(fleet, line.event)
        event = Reported(fleet) if isinstance(line.event, FleetChange) else line.event
        yield Entry(now=line.now, event=event, effects=line.effects, raised=line.raised)


def _difference(before: Fleet, fleet: Fleet, host: str) -> FleetChange:
    """Return what changed between two readings. A host's record that did not change is the same object in both."""
    hosts: dict[str, HostRecord | None] = dict.fromkeys(before.hosts.keys() - fleet.hosts.keys())
    for name, record in fleet.hosts.items():
        if record is not before.hosts.get(name):
            hosts[name] = HostRecord(name=name, address="", instances=tuple(map(_identity, record.instances)))
    used: dict[str, float | None] = {
        member: at
        for member, at in (*fleet.used.items(), *dict.fromkeys(before.used.keys() - fleet.used.keys()).items())
        if before.used.get(member) != at and member.startswith(_INSTANCE)
    }
    return FleetChange(routers=fleet.routers, cordoned=fleet.cordoned & {host}, hosts=hosts, used=used)


def _apply(fleet: Fleet, change: FleetChange) -> Fleet:
    """Return the reading after a change."""
    hosts, used = {**fleet.hosts, **change.hosts}, {**fleet.used, **change.used}
    return Fleet(
        hosts={name: record for name, record in hosts.items() if record is not None},
        routers=change.routers,
        used={member: at for member, at in used.items() if at is not None},
        cordoned=change.cordoned,
    )


def _identity(instance: Instance) -> Instance:
    return Instance(
        id=instance.id, function=instance.function, revision="", state=instance.state, since=0.0, created=0.0
    )


class _Segment:
    """Lines that are compressed as they come."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(level=1)
        self._data = bytearray()
        self.lines = 0

    def write(self, line: Checkpoint | _Line) -> None:
        self._data += self._compressor.compress(_ENCODER.encode(line) + b"\n")
        self.lines += 1

    @property
    def size(self) -> int:
        """Bytes, without what the compressor still buffers."""
        return len(self._data)

    def content(self) -> bytes:
        """Return all of it so far; more can be written."""
        return bytes(self._data) + self._compressor.copy().flush()


class _Masks:
    """Replaces what may be a secret in the specs of functions."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._specs: dict[str, tuple[Function, Function]] = {}
        """By function, the last spec and what it became."""

    def state(self, state: HostState) -> HostState:
        """Return the state without secrets, and forget what it does not refer to."""
        specs = [*(state.catalogue or {}).values(), *state.functions.values()]
        present = {f.id for f in specs}
        self._specs = {id: spec for id, spec in self._specs.items() if id in present}
        waiters = {id: replace(w, function=self.function(w.function)) for id, w in state.line.waiters.items()}
        return replace(
            state,
            functions={id: self.function(f) for id, f in state.functions.items()},
            catalogue=None if state.catalogue is None else {id: self.function(f) for id, f in state.catalogue.items()},
            line=Line(waiters),
            masked=True,
        )

    def event(self, event: Event) -> Event:
        match event:
            case EnsureRequest(request) | AdapterRequest(request):
                return replace(event, request=replace(request, function=self.function(request.function)))
            case CatalogueChanged(functions):
                return replace(event, functions={id: self.function(f) for id, f in functions.items()})
            case Adopted(worker):
                return replace(event, worker=replace(worker, function=self.function(worker.function)))
        return event

    def effect(self, effect: Effect) -> Effect:
        match effect:
            case Fetch() | CancelFetch() | Spawn() | LoadAdapter() | Prove() | Park() | Wake():
                return replace(effect, function=self.function(effect.function))
        return effect

    def function(self, function: Function) -> Function:
        if not (function.env or function.args or function.command):
            return function
        true, masked = self._specs.get(function.id, (None, function))
        if true is not function:
            env = {name: self._digest(value) for name, value in function.env.items()}
            masked = replace(
                function,
                env={**env, MASKED_REVISION: revision(function)},
                args=tuple(map(self._word, function.args)),
                command=tuple(map(self._word, function.command)),
            )
            self._specs[function.id] = (function, masked)
        return masked

    def _word(self, word: str) -> str:
        option = _OPTION.match(word)
        name = option[0] if option else ""
        return name if name == word else name + self._digest(word[len(name) :])

    def _digest(self, value: str) -> str:
        return f"<{hashlib.blake2b(value.encode('utf-8', 'surrogatepass'), key=self._key, digest_size=8).hexdigest()}>"
