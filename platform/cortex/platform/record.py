"""The record: what each process says of itself in Redis, as values.

One writer each: a host's record is written by that host's agent, a router's report by that router. Nothing
here is secret: worker keys are derived (see `keys.py`), never stored. Memory is MiB. Times are Unix seconds by the
clock of the process that writes them; a process that reads another's record has them by its own clock
(`record_reader.py`), so that no two machines' clocks are ever compared.
"""

import enum
from collections.abc import Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import LIVE, State


class Device(Struct, frozen=True, kw_only=True):
    """A GPU, or the CPU of a host without one. `used_mb` is what the hardware reports, if it does."""

    id: str
    name: str
    kind: str
    total_mb: int
    used_mb: int | None = None
    reserve_mb: int = 0
    foreign_mb: int = 0
    """Taken on a GPU by processes that are not cortex's instances."""
    index: int | None = None
    """NVML's, which follows the PCI bus. For people to read: CUDA may number differently."""
    compute_capability: str = ""
    utilization_pct: int | None = None
    temp_c: int | None = None
    note: str = ""
    """Why cortex puts nothing on it, although it is there. Its budget is then 0."""

    @property
    def budget_mb(self) -> int:
        """What instances may take together: the total less the headroom kept free."""
        return max(0, self.total_mb - self.reserve_mb)


class Held(Struct, frozen=True, kw_only=True):
    """A process on a device. Without a command it is not of this host's processes as the agent sees them."""

    device: str
    pid: int
    command: str = ""
    memory_mb: int | None = None


class ProcessId(Struct, frozen=True):
    """One process, for good: see `process_id.py`."""

    boot: str
    pid: int
    ticks: int
    """Its start, in clock ticks since the boot."""


class Instance(Struct, frozen=True, kw_only=True):
    """One running worker process of a function, or one on its way."""

    id: str
    function: str
    revision: str
    state: State
    since: float
    """When it entered this state."""
    created: float
    devices: tuple[str, ...] = ()
    memory_mb: int = 0
    """Reserved on each of its devices."""
    memory_from: str = ""
    """Where that number comes from: measured, declared or estimated."""
    used_mb: int | None = None
    """Measured, over all its devices; the highest so far."""
    epoch: int = 0
    """Raised whenever routers must look again before the agent goes on (the drain handshake)."""
    url: str = ""
    pid: int = 0
    boot: str = ""
    process_ticks: int = 0
    """With `pid` and `boot`, the worker's identity: see `process_id.py`."""
    server: str = ""
    """Which server it runs: a row of `servers.py`."""
    health_path: str = "/health"
    path: str = ""
    """How it was started: `plain`, or `warm` from a launcher that was parked; and why, where that says something."""
    phase: str = ""
    """How far a start is: what is fetched, or the step the worker says it is at."""
    phase_since: float = 0.0
    """When that step of a start began."""
    progress: float | None = None
    """How far that is, from 0 to 1, where anybody says so."""
    last_sign: float = 0.0
    """When it last showed a sign of life while starting."""
    phases: dict[str, float] = {}
    """Seconds it spent in each state on its way up; in place of `starting`, in each step the worker said it took."""
    started: float = 0.0
    ready: float = 0.0
    why: str = ""
    """Why it is draining or stopping: idle, cool, evict, superseded, failed, shutdown."""
    deadline: float = 0.0
    """Until when a drain may wait for requests in flight."""
    waits_for: tuple[str, ...] = ()
    """Instances that leave so that this one fits."""
    moves_to: str = ""
    """The instance that takes over, on other devices, before this one leaves."""
    yields_to: str = ""
    """The function whose turn it is: this instance was in use and is closing for it. It leaves when its requests end,
    at `deadline` at the latest."""
    for_minimum: bool = False
    """Started to keep its function's `min`, and no request waited for it."""
    pinned: bool = False
    priority: int = 0
    context: int = 0
    """Tokens one request may use, as the worker says; 0: it does not."""
    vision: bool | None = None
    """Whether it takes images, as the worker says."""
    problem: str = ""
    """What keeps it from moving on, when it is overdue."""

    @property
    def process(self) -> ProcessId | None:
        """The worker's process; None before it is spawned."""
        return ProcessId(self.boot, self.pid, self.process_ticks) if self.pid else None


class FailureKind(enum.StrEnum):
    """What a waiter may do about it: ask another host (room), give up with the reason (crash, cancelled)."""

    CRASH = "crash"
    OUT_OF_MEMORY = "out of memory"
    WEIGHTS = "weights"
    ROOM = "room"
    CANCELLED = "cancelled"


class Cause(enum.StrEnum):
    """What a worker's last lines point at. Its own words stay in its log: they may quote a prompt."""

    UNKNOWN = ""
    OUT_OF_MEMORY = "out of memory"
    DISK_FULL = "no space is left on a disk"
    PORT_IN_USE = "its port is in use"
    NO_DEVICE = "no usable GPU"
    MISSING_LIBRARY = "a library or module is missing"
    BAD_ARGUMENT = "an argument that the engine does not know"
    CONTEXT_TOO_LARGE = "the context does not fit into the memory"
    UNSUPPORTED_MODEL = "a model that the engine does not support"
    BAD_WEIGHTS = "the weights cannot be loaded"
    MISSING_FILE = "a file is missing"
    NO_PERMISSION = "no permission for a file or device"


class Failure(Struct, frozen=True, kw_only=True):
    """The last thing that went wrong with a function on a host, kept for the next caller. No word of it is a
    worker's."""

    function: str
    revision: str
    instance: str
    reason: str
    at: float
    kind: FailureKind = FailureKind.CRASH
    count: int = 1
    """Crashes in a row; starts back off from the third on."""
    retry_at: float = 0.0
    cause: Cause = Cause.UNKNOWN
    lines: int = 0
    """How many of the worker's last lines were read for the cause; they are in its log, on its host."""
    served: bool = False
    """It had been ready: what failed was no start, and the next one may do."""
    early: int = 0
    """Deaths right after ready, in a row."""
    hung: bool = False
    """It was stopped because it made no progress: a request that was aboard is not sent again."""


class InLine(Struct, frozen=True, kw_only=True):
    """A function with requests that wait for memory on a host."""

    function: str
    since: float
    """Since when the first of them waits."""
    priority: int = 0
    turn_at: float = 0.0
    """When instances are closed for it, at the latest; 0: none can be closed for it."""
    closes: tuple[str, ...] = ()
    """The instances that are to leave then."""
    devices: tuple[str, ...] = ()
    """The devices that are reserved for it."""
    start_s: float = 0.0
    """How long its start took before; 0: not measured."""


class HostRecord(Struct, frozen=True, kw_only=True):
    """All a host says of itself: `cortex:host:<name>`."""

    name: str
    address: str
    """Base URL of its agent."""
    version: str = ""
    at: float = 0.0
    labels: tuple[str, ...] = ()
    engines: dict[str, str] = {}
    """Engines it can run, with their versions."""
    servers: tuple[str, ...] = ()
    """And which servers of them: rows of `servers.py`."""
    launchers: dict[str, str] = {}
    """By engine, how the launcher stands that is kept ready for its next start."""
    devices: tuple[Device, ...] = ()
    instances: tuple[Instance, ...] = ()
    foreign: tuple[Held, ...] = ()
    """Processes on its devices that are none of ours."""
    problem: str = ""
    """Why the devices cannot be read, if they cannot."""
    problems: tuple[str, ...] = ()
    """What else is wrong on this host, for an operator: one sentence each."""
    failures: tuple[Failure, ...] = ()
    line: tuple[InLine, ...] = ()
    """Functions that wait for memory here, in the order of their turns."""
    weights: dict[str, int] = {}
    """Functions whose weights are on this host, with their size in MiB."""
    epoch: int = 0
    """The highest epoch of any instance; a router that has seen it has seen every drain."""
    catalogue: str = ""
    """Digest of the catalogue the agent last heard of."""
    models: dict[str, ModelProfile] = {}
    """By function, what the weights on this host say about it."""
    agent: str = ""
    """The agent's process: a random id, another one after every start. Empty in a record of an older release."""
    home: str = ""
    """The machine and state directory of that agent: of two records of one name, whether one host wrote both."""
    started: float = 0.0
    """When that process started."""
    sequence: int = 0
    """How many times that process has published its record."""
    silent: dict[str, float] = {}
    """Paths that do not answer, and since when by this host's clock: mounts that hang."""
    unreadable: dict[str, str] = {}
    """Functions that cannot be started now because a path does not answer, and why in words."""

    def of(self, function: str) -> list[Instance]:
        """Return the function's instances that are serving or on their way."""
        return [i for i in self.instances if i.function == function and i.state in LIVE]


class Silence(Struct, frozen=True, kw_only=True):
    """An instance owes a router an answer and gives no byte to any of its requests."""

    for_s: float
    usual_s: float = 0.0
    """95 of 100 of the function's requests get their first byte within this; 0: not known."""


class Death(Struct, frozen=True, kw_only=True):
    """A request was aboard a worker that died: what one router tells the others, when it happens."""

    router: str
    marks: tuple[str, ...]
    """What stands for the request and for its API key at the function: a digest, never its text."""
    alone: bool


class RouterReport(Struct, frozen=True, kw_only=True):
    """What a router worker says of itself: `cortex:router:<id>`."""

    id: str
    at: float = 0.0
    in_flight: dict[str, int] = {}
    """Live requests per instance."""
    waiting: dict[str, int] = {}
    """Held requests per function."""
    seen: dict[str, int] = {}
    """Per host, the epoch up to which this router has stopped choosing draining instances."""
    silent: dict[str, Silence] = {}
    """Instances that have given this router's requests nothing for a while."""


class Override(Struct, frozen=True, kw_only=True):
    """What an operator set for a function at run time, over its catalogue entry; None: as the catalogue says."""

    pinned: bool | None = None
    min: int | None = None
    max: int | None = None


class Namesake(Struct, frozen=True, kw_only=True):
    """A host whose agent may not publish, because a host on another machine has its name in the record."""

    name: str
    address: str
    version: str = ""
    home: str = ""


class SilentHost(Struct, frozen=True, kw_only=True):
    """A host whose record has expired: its agent is away, or cut off from Redis. Its workers may be well."""

    record: HostRecord
    """The last one that was read, with those of its instances that were ready."""
    since: float
    """When the record was found missing, by the clock of the process that looked."""


class Fleet(Struct, frozen=True, kw_only=True):
    """One reading of the whole record. What is not in it is not alive. Times are by the reader's clock."""

    hosts: dict[str, HostRecord] = {}
    routers: dict[str, RouterReport] = {}
    used: dict[str, float] = {}
    """Last use of each function (`f:<id>`) and instance (`i:<id>`)."""
    cordoned: frozenset[str] = frozenset()
    overrides: dict[str, Override] = {}
    """By function."""
    namesakes: dict[str, Namesake] = {}
    """By the name they share with a host in `hosts`; of several with one name, the last that tried to publish."""
    silent: dict[str, SilentHost] = {}
    """Hosts that a router knew and whose record has expired: their instances may be chosen, and nothing is placed
    there. Empty in a reading; `silence.py` of the router fills it in."""
    at: float = 0.0

    def records(self) -> Iterator[HostRecord]:
        """Yield the record of every host, alive or silent."""
        yield from self.hosts.values()
        for host in self.silent.values():
            yield host.record

    def record(self, host: str) -> HostRecord | None:
        """Return the record of a host, alive or silent."""
        return next((h for h in self.records() if h.name == host), None)


class Use(Struct, frozen=True, kw_only=True):
    """What instances are doing, as far as the routers' reports tell. Unknown means: nobody counts as idle."""

    known: bool = True
    in_flight: dict[str, int] = {}
    waiting: dict[str, int] = {}
    used: dict[str, float] = {}

    def last_used(self, instance: Instance) -> float:
        """Return when the instance was last used; one that never was, counts from when it was ready."""
        return max(instance.ready, self.used.get(used_instance(instance.id), 0.0))


def use(fleet: Fleet) -> Use:
    """Add up the reports of all live routers."""
    in_flight: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for report in fleet.routers.values():
        for instance, count in report.in_flight.items():
            in_flight[instance] = in_flight.get(instance, 0) + count
        for function, count in report.waiting.items():
            waiting[function] = waiting.get(function, 0) + count
    return Use(in_flight=in_flight, waiting=waiting, used=fleet.used)


def is_newer(read: HostRecord, present: HostRecord, *, overlapped: bool) -> bool:
    """Whether a host's record that was just read is newer than the one its reader has.

    `overlapped`: the read began before the present record came in, so it may have fetched an older value.

    (1) Both are of one agent process: its count of publications decides.
    (2) Another process wrote it, and the read began afterwards: Redis holds the present agent's record.
    (3) Another process wrote it, and the reads overlapped: the agent that started later. Where a step of the wall
        clock between the two starts makes this wrong, the next full read is case (2).
    """
    if read.agent and read.agent == present.agent:  # (1)
        return read.sequence > present.sequence
    if not overlapped:  # (2)
        return True
    return (read.started, read.at) > (present.started, present.at)  # (3)


def shifted(record: HostRecord, by_s: float) -> HostRecord:
    """Return a host's record with all its times moved by so many seconds; a time of 0 stands for none."""

    def moved(at: float) -> float:
        return at + by_s if at else 0.0

    return replace(
        record,
        at=moved(record.at),
        started=moved(record.started),
        instances=tuple(
            replace(
                i,
                since=moved(i.since),
                created=moved(i.created),
                phase_since=moved(i.phase_since),
                last_sign=moved(i.last_sign),
                started=moved(i.started),
                ready=moved(i.ready),
                deadline=moved(i.deadline),
            )
            for i in record.instances
        ),
        failures=tuple(replace(f, at=moved(f.at), retry_at=moved(f.retry_at)) for f in record.failures),
        line=tuple(replace(w, since=moved(w.since), turn_at=moved(w.turn_at)) for w in record.line),
    )


def shifted_fleet(fleet: Fleet, by_s: float) -> Fleet:
    """Return a reading with the times of hosts, of last uses and of the reading itself moved by so many seconds."""
    return replace(
        fleet,
        hosts={name: shifted(host, by_s) for name, host in fleet.hosts.items()},
        silent={
            name: replace(host, record=shifted(host.record, by_s), since=host.since + by_s)
            for name, host in fleet.silent.items()
        },
        used=shifted_uses(fleet.used, by_s),
        at=fleet.at + by_s if fleet.at else 0.0,
    )


def newest_uses(used: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Return the later of both times of each function and instance."""
    return {**used, **{member: max(at, used.get(member, at)) for member, at in more.items()}}


def shifted_uses(used: Mapping[str, float], by_s: float) -> dict[str, float]:
    """Return last uses moved by so many seconds."""
    return {member: at + by_s for member, at in used.items()}


def used_function(function: str) -> str:
    """Return the function's member name in `cortex:used`."""
    return f"f:{function}"


def used_instance(instance: str) -> str:
    """Return the instance's member name in `cortex:used`."""
    return f"i:{instance}"
