"""The record: what each process publishes about itself in Redis, as values; and the sum of what routers publish, `Use`.

Each value has one writer: an agent writes its host's record, a router its report. Nothing here is secret: worker keys
are derived (`keys.py`), never stored. Memory is in MiB. Times are Unix seconds by the writer's clock; a reader
converts them to its own (`record_reader.py`), so two machines' clocks are never compared.
"""

import enum

from msgspec import Struct

from cortex.functions.capabilities import ModelProfile
from cortex.functions.launch.modes import StartMode
from cortex.functions.lifecycle import COMING, State


class Device(Struct, frozen=True, kw_only=True):
    """A GPU, or the CPU of a host without one. `used_mb` is the hardware's value; None: not reported."""

    id: str
    name: str
    kind: str
    total_mb: int
    used_mb: int | None = None
    reserve_mb: int = 0
    foreign_mb: int = 0
    """Memory on a GPU of processes that are not cortex's instances."""
    index: int | None = None
    """NVML's index, in the order of the PCI bus. For display only: CUDA may number differently."""
    compute_capability: str = ""
    utilization_pct: int | None = None
    temp_c: int | None = None
    energy_mj: int | None = None
    """What it has used since its driver was loaded, in millijoules; None: not reported."""
    note: str = ""
    """Why cortex does not use the device. Its budget is then 0."""

    @property
    def budget_mb(self) -> int:
        """The memory for all instances together: the total without the reserve."""
        return max(0, self.total_mb - self.reserve_mb)


class DeviceUse(Struct, frozen=True):
    """What requests used of GPUs: the time of each, in milliseconds, and energy in millijoules. Requests that share a
    GPU share both, in proportion to their tokens."""

    gpu_ms: int = 0
    mj: int = 0


class Held(Struct, frozen=True, kw_only=True):
    """A process on a device. Without a command, it is none of the processes that the agent can see."""

    device: str
    pid: int
    command: str = ""
    memory_mb: int | None = None


class ProcessId(Struct, frozen=True):
    """The identity of a process, which no other process ever has: see `process_id.py`."""

    boot: str
    pid: int
    ticks: int
    """Its start, in clock ticks since boot."""


class DrainReason(enum.StrEnum):
    """Why an instance ends; a label of `cortex_drains_total`."""

    IDLE = "idle"
    COOL = "cool"
    EVICTED = "evicted"
    TURN = "turn"
    """It was in use, and closes for a function whose turn has come."""
    SUPERSEDED = "superseded"
    HOST_DRAIN = "host drain"
    MOVED = "moved"
    SHUTDOWN = "shutdown"
    FAILED = "failed"
    REHEARSAL = "rehearsal"
    """It sleeps once and wakes at once: an engine's first sleep is slow, because it pins memory."""
    UPGRADED = "upgraded"
    """It was started fast; a full start takes its place."""
    UNRECORDED = "unrecorded"
    """The record of its start could not be written, so the caller tries another host."""
    OTHER = "other"
    """A reason of a later release."""

    @classmethod
    def _missing_(cls, value: object) -> "DrainReason":
        return cls.OTHER


class Tier(enum.StrEnum):
    """What an instance that leaves its devices keeps: the fastest return first."""

    SLEEP = "sleep"
    """Its engine moves the weights to RAM; part of the memory stays on the devices."""
    FREEZE = "freeze"
    """The driver moves all device memory to RAM."""
    STOP = "stop"
    """Nothing: it ends."""
    OTHER = "other"
    """A tier of a later release: its memory counts as held, and no instance is sent there."""

    @classmethod
    def _missing_(cls, value: object) -> "Tier":
        return cls.OTHER


class Instance(Struct, frozen=True, kw_only=True):
    """A worker process of a function, running or starting."""

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
    """The highest measured memory so far, over all its devices."""
    epoch: int = 0
    """Raised when routers must acknowledge a change before the agent continues (the drain handshake)."""
    url: str = ""
    pid: int = 0
    boot: str = ""
    process_ticks: int = 0
    """With `pid` and `boot`, the worker's identity: see `process_id.py`."""
    server: str = ""
    """Its server, a row of `servers.py`."""
    health_path: str = "/health"
    served_name: str = ""
    """The model's name at the worker, if that is not the function's id."""
    warm: bool = False
    """Whether a parked launcher started it."""
    sleeps: bool = False
    """Whether its engine was started so that it can sleep."""
    path: str = ""
    """How it was started: `warm` from a parked launcher, or `plain`, with the reason if there is one."""
    start_mode: StartMode | None = None
    """Whether it was started fast or in full; None: its engine has no such difference, or not chosen yet."""
    tricks: tuple[str, ...] = ()
    """Tricks of its start: see `Trick` in `launch/modes.py`."""
    replaces: str = ""
    """The instance that was started fast, and that this full start is to replace."""
    phase: str = ""
    """The step of a start: the progress of a fetch, or the step in the worker's log."""
    phase_since: float = 0.0
    """When that step began."""
    progress: float | None = None
    """Progress of that step from 0 to 1; None: unknown."""
    last_sign: float = 0.0
    """Its last sign of life while starting."""
    phases: dict[str, float] = {}
    """Seconds in each state until it was ready; instead of `starting`, in each step of the worker's log."""
    started: float = 0.0
    ready: float = 0.0
    reason: DrainReason | None = None
    """Why it is draining or stopping. None also in records of earlier releases, which have only `why`."""
    why: str = ""
    """The reason as text."""
    deadline: float = 0.0
    """When a drain stops waiting for requests in flight, or a parked instance that leaves for RAM."""
    waits_for: tuple[str, ...] = ()
    """Instances that leave to make room for this one."""
    moves_to: str = ""
    """The instance that takes over, on other devices, before this one leaves."""
    yields_to: str = ""
    """The function whose turn it is: this instance was in use and closes for it. It leaves when its requests end, at
    `deadline` at the latest."""
    parks_to: Tier | None = None
    """The tier that it goes to, or stays in; None: it stops when it leaves its devices."""
    parked: Tier | None = None
    """The tier in which its memory is; None: on its devices."""
    tiers: tuple[Tier, ...] = ()
    """The tiers that it may go to instead of stopping, the fastest return first."""
    return_s: dict[Tier, float] = {}
    """Seconds of an earlier return from each tier; `stop` stands for a start. Empty: not measured, or its host has no
    tiers."""
    parked_mb: int = 0
    """Device memory on each device that stays while it sleeps: measured, or an estimate before that."""
    ram_mb: int = 0
    """RAM of the host that its parked weights hold. An engine may keep it after a return, until its process ends."""
    park_s: float = 0.0
    """Seconds that it took to park it last; 0: never parked."""
    for_minimum: bool = False
    """Started for its function's `min` or baseline, without a waiting request."""
    pinned: bool = False
    priority: int = 0
    cache_mb: int = 0
    """KV cache on each device, as the worker logged it; 0: unknown."""
    context: int = 0
    """Context length in tokens that the worker reports; 0: not reported."""
    vision: bool | None = None
    """Whether it accepts images, as the worker reports."""
    problem: str = ""
    """Why it does not progress, when it is overdue."""
    adapters: dict[str, int] = {}
    """The adapters that it has loaded, by the variant's id, with their numbers: llama.cpp's are in requests, vLLM's
    follow from the source (`variants.adapter_number`)."""
    adapter_problems: dict[str, str] = {}
    """By variant, why its adapter is not loaded."""
    adapter_steps: dict[str, str] = {}
    """By variant, the progress of an adapter that is being loaded."""
    key_host: str = ""
    """The host's name when it was started: its key follows from that name, also after the host is renamed."""
    host: str = ""
    """The host it is on. The reader of a host's record sets it, whatever the record says: a key follows from it."""

    @property
    def name_at_worker(self) -> str:
        """The name of the model at the worker."""
        return self.served_name or self.function

    @property
    def held_mb(self) -> int:
        """Its memory on each of its devices now. For one that returns, the memory it will have counts already."""
        if self.parked is Tier.FREEZE and self.state is not State.PLACING:
            return 0
        return self.parked_mb if self.parked is Tier.SLEEP and self.state is not State.PLACING else self.memory_mb

    @property
    def is_coming(self) -> bool:
        """Whether it is on its way up: a request may wait for it. One that is being parked without a reason is: it
        returns right after that."""
        return self.state in COMING or (self.state is State.PARKING and self.reason is None)

    @property
    def comes_back(self) -> bool:
        """Whether it leaves only to serve again right after that: it rehearses its first sleep, or it is about to be
        started in full."""
        if self.reason is DrainReason.UPGRADED:
            return self.state is State.DRAINING and not self.moves_to
        return self.reason is DrainReason.REHEARSAL and self.state in (State.DRAINING, State.PARKING)

    @property
    def process(self) -> ProcessId | None:
        """The worker's process; None before it is spawned."""
        return ProcessId(self.boot, self.pid, self.process_ticks) if self.pid else None


class FailureKind(enum.StrEnum):
    """What failed. After ROOM a router tries another host; after CRASH or CANCELLED it gives up with the reason."""

    CRASH = "crash"
    OUT_OF_MEMORY = "out of memory"
    WEIGHTS = "weights"
    ROOM = "room"
    CANCELLED = "cancelled"

    @classmethod
    def _missing_(cls, value: object) -> "FailureKind":
        """A kind of a later release counts as a crash."""
        return cls.CRASH


class Cause(enum.StrEnum):
    """The cause that a worker's last log lines indicate. The lines stay in the log, since they may quote a prompt."""

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

    @classmethod
    def _missing_(cls, value: object) -> "Cause":
        """The cause of a later release is unknown to this one."""
        return cls.UNKNOWN


class Failure(Struct, frozen=True, kw_only=True):
    """The last failure of a function on a host, for the next caller. It contains no text from a worker."""

    function: str
    revision: str
    instance: str
    reason: str
    at: float
    kind: FailureKind = FailureKind.CRASH
    count: int = 1
    """Consecutive crashes; from the third on, starts back off."""
    retry_at: float = 0.0
    cause: Cause = Cause.UNKNOWN
    lines: int = 0
    """Number of last log lines that were read for the cause; they are in the log on the host."""
    served: bool = False
    """It had been ready, so the start did not fail and the next one may succeed."""
    early: int = 0
    """Consecutive deaths right after ready."""
    hung: bool = False
    """It was stopped because it made no progress: its requests are not replayed."""


class InLine(Struct, frozen=True, kw_only=True):
    """A function with requests that wait for memory on a host."""

    function: str
    since: float
    """When the first of them began to wait."""
    priority: int = 0
    turn_at: float = 0.0
    """The latest time at which instances close for it; 0: none can."""
    closes: tuple[str, ...] = ()
    """The instances that close then."""
    devices: tuple[str, ...] = ()
    """The devices reserved for it."""
    start_s: float = 0.0
    """Duration of its last start; 0: not measured."""


class SavedContext(Struct, frozen=True, kw_only=True):
    """A conversation that a host saved before its worker left. Used only where everything but its id is equal."""

    id: str
    function: str
    revision: str
    mark: str
    """Identifies the conversation. It is derived from the caller's salt and the host's name, so that no other key and
    no other host can make it."""
    build: str
    """The engine's build, as its package and its server report it."""
    model: str
    """Digest of the model's files."""
    settings: str
    """Digest of the worker's command line, without its addresses and paths."""
    prompt_tokens: int
    """Length of the conversation's last prompt."""
    tokens: int
    """Tokens in the file: the prompt's, and those of the answer."""
    size: int
    """Bytes."""
    digest: str
    """SHA-256 of the file."""
    at: float
    """When it was saved."""
    prefill_s: float = 0.0
    """How long the worker needs to process the prompt again, by its own counts; 0: unknown."""


class HostRecord(Struct, frozen=True, kw_only=True):
    """Everything that a host's agent publishes: `cortex:host:<name>`."""

    name: str
    address: str
    """Base URL of its agent."""
    version: str = ""
    change: str = ""
    """Differs from write to write, except where only `at` and `sequence` do: a heartbeat. It is near the beginning of
    the record in Redis, by which a reader sees whether it has changed (`HEAD_BYTES` in `record_codec.py`)."""
    at: float = 0.0
    sequence: int = 0
    """How many times the agent's process has published its record."""
    labels: tuple[str, ...] = ()
    park_ram_mb: int = 0
    """RAM for parked instances; 0: this host parks none."""
    tiers: dict[Tier, str] = {}
    """Why this host cannot park an instance to a tier; "": it can."""
    unparkable: dict[str, dict[Tier, str]] = {}
    """By revision, the tiers that failed once, with the reason: its instances stop instead."""
    tricks_off: dict[str, dict[str, str]] = {}
    """By revision, the tricks of a start that failed once, with the reason: its starts go without. `full`: its full
    start failed although its fast one had not, so it stays as it is."""
    engines: dict[str, str] = {}
    """Installed engines, with their versions."""
    servers: tuple[str, ...] = ()
    """Installed servers of those engines, rows of `servers.py`."""
    launchers: dict[str, str] = {}
    """State of the parked launcher, by engine."""
    launcher_mb: dict[str, int] = {}
    """RAM of the parked launcher, by engine; 0: none is parked."""
    devices: tuple[Device, ...] = ()
    instances: tuple[Instance, ...] = ()
    foreign: tuple[Held, ...] = ()
    """Processes on its devices that do not belong to cortex."""
    problem: str = ""
    """Why the devices cannot be read; "": they can."""
    problems: tuple[str, ...] = ()
    """Other problems of this host, for an operator: one sentence each."""
    failures: tuple[Failure, ...] = ()
    line: tuple[InLine, ...] = ()
    """Functions that wait for memory here, in the order of their turns."""
    weights: dict[str, int] = {}
    """Functions whose weights are on this host, with their size in MiB."""
    epoch: int = 0
    """The highest epoch of any instance. A router that has seen it has seen every drain."""
    catalogue: str = ""
    """Digest of the last catalogue that the agent received."""
    models: dict[str, ModelProfile] = {}
    """Facts from the weights on this host, by function."""
    agent: str = ""
    """A random id of the agent's process, new after every start. Empty in a record of an older release."""
    home: str = ""
    """The machine and state directory of that agent. It shows whether one host wrote two records of one name."""
    started: float = 0.0
    """When that process started."""
    silent: dict[str, float] = {}
    """Paths that do not answer (hung mounts), each with the time since when, by this host's clock."""
    unreadable: dict[str, str] = {}
    """Functions that cannot start now because a path does not answer, each with the reason."""
    device_use: dict[str, dict[str, DeviceUse]] = {}
    """By router, and by instance: what the router's requests have used since the agent's process started."""

    contexts: tuple[SavedContext, ...] = ()
    """Conversations that this host has saved, the latest last."""
    contexts_off: dict[str, str] = {}
    """Functions whose conversations this host does not save, although they have `keep_context`, with the reason."""

    def of(self, function: str) -> list[Instance]:
        """Return the function's instances that are ready or starting."""
        return [i for i in self.instances if i.function == function and (i.state is State.READY or i.is_coming)]


class Silence(Struct, frozen=True, kw_only=True):
    """An instance with requests from a router sends no byte to any of them."""

    for_s: float
    usual_s: float = 0.0
    """95th percentile of the function's time to first byte; 0: unknown."""


class Death(Struct, frozen=True, kw_only=True):
    """A request was in flight at a worker that died. Its router sends this to the others at once."""

    router: str
    marks: tuple[str, ...]
    """Digests that identify the request, and its API key with the function. They contain no text."""
    alone: bool


class KeepAlive(Struct, frozen=True):
    """How long an instance may stay idle, as a request says, and how long ago that request was."""

    for_s: float
    ago_s: float = 0.0


class RouterReport(Struct, frozen=True, kw_only=True):
    """What a router worker publishes: `cortex:router:<id>`."""

    id: str
    at: float = 0.0
    in_flight: dict[str, int] = {}
    """Requests in flight, per instance."""
    waiting: dict[str, int] = {}
    """Waiting requests, per function."""
    seen: dict[str, int] = {}
    """Per host, the epoch up to which this router no longer chooses draining instances."""
    keep: dict[str, KeepAlive] = {}
    """How long instances may stay idle, where this router's last request to them says so."""
    silent: dict[str, Silence] = {}
    """Instances that have sent this router's requests nothing for a while."""
    tokens: dict[str, int] = {}
    """Tokens of this router's requests per instance, in and out, since the router started."""
    shares: dict[str, "ShareUse"] = {}
    """Per function that shares its instances, its part of the requests that `in_flight` and `waiting` count for the
    base."""
    unseated: dict[str, int] | None = None
    """Requests that this router has sent without a seat, per instance with `keep_context`, since the router started;
    None: a router of an older release, which takes no seats."""


class ShareUse(Struct, frozen=True):
    """The requests of one of several functions that share instances."""

    in_flight: int = 0
    waiting: int = 0


class Override(Struct, frozen=True, kw_only=True):
    """Settings of a function that an operator changed at run time; None: the catalogue's value."""

    pinned: bool | None = None
    min: int | None = None
    max: int | None = None


class Namesake(Struct, frozen=True, kw_only=True):
    """A host whose agent may not publish, because a host on another machine uses its name in the record."""

    name: str
    address: str
    version: str = ""
    home: str = ""


KEEP_SLACK_S = 3.0
"""Reports come once a second: a use this much later than a request with `keep_alive` may be that request itself."""


class Use(Struct, frozen=True, kw_only=True):
    """The usage of instances, from the routers' reports. While it is not `known`, no instance counts as idle."""

    known: bool = True
    in_flight: dict[str, int] = {}
    waiting: dict[str, int] = {}
    used: dict[str, float] = {}
    keep: dict[str, KeepAlive] = {}
    """How long instances may stay idle, where a request says so; `ago_s` counts back from `at`."""
    shares: dict[str, ShareUse] = {}
    at: float = 0.0

    def keep_s(self, instance: Instance) -> float | None:
        """Return how long an instance may stay idle as its last request says; None: that says nothing."""
        keep = self.keep.get(instance.id)
        if keep is None or self.last_used(instance) > self.at - keep.ago_s + KEEP_SLACK_S:
            return None
        return keep.for_s

    def last_used(self, instance: Instance) -> float:
        """Return when the instance was last used, or when it became ready if it never was."""
        return max(instance.ready, self.used.get(used_instance(instance.id), 0.0))


def used_function(function: str) -> str:
    """Return the function's member name in `cortex:used`."""
    return f"f:{function}"


def used_instance(instance: str) -> str:
    """Return the instance's member name in `cortex:used`."""
    return f"i:{instance}"
