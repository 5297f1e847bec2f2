"""The admin API as types: routes encode them and `cli/client.py` decodes them. Pure.

Times are Unix seconds by the router's clock, which `now` holds where a reader needs it. Memory is MiB. Text in these
types is a reason that a process gave; the page and the CLI make all other text from the facts.
"""

from msgspec import Struct

from cortex.functions.estimate import Estimate
from cortex.platform.agent_messages import Stored
from cortex.platform.api_keys import ApiKey, Count, Glob, Group, Name, Priority, Scope
from cortex.platform.audit import AuditRecord
from cortex.platform.budget import Budget, Spent
from cortex.platform.decisions import DecisionRecord
from cortex.platform.record import Device, HostRecord, Instance, Namesake
from cortex.platform.scheduling.ledger import Reading
from cortex.platform.usage import By
from cortex.router.activation.waits import Wait

# Functions and instances.


class LastStart(Struct, frozen=True, kw_only=True):
    """A function's last start, by phase."""

    at: float
    """When the instance was ready."""
    total_s: float
    phases: dict[str, float]


class StartTime(Struct, frozen=True, kw_only=True):
    """What the last starts of a function took in one mode, on one kind of device."""

    device: str
    mode: str
    """`fast` or `full`."""
    version: str
    """Of the engine."""
    usual_s: float
    """The median, from the worker's process to ready."""
    starts: int


class Measurement(Struct, frozen=True, kw_only=True):
    """A function's measured memory on one kind of device, summed over an instance's devices."""

    device: str
    memory_mb: int
    counts: bool
    """Whether the next placement uses it. Less than `vram_mb` counts only once an instance has served."""
    readings: tuple[Reading, ...]
    """The maximum of each of the last starts, oldest first."""


class InstanceView(Instance, frozen=True, kw_only=True):
    """An instance: its agent's record of it, and what the router adds."""

    host: str
    silent_since: float | None = None
    """Since when its host has not reported, which is the age of this data; None: it reports."""
    in_flight: int = 0
    start_s: float | None = None
    """Duration of its start, from the worker's launch."""
    fetched_at: float | None = None
    """When its download should end, at the current rate; None if it fetches nothing."""
    ready_at: float | None = None
    """When its start should end, from earlier starts; None if unknown."""
    reap_at: float | None = None
    """When it is reaped if it stays idle; None while it is in use, or if it is never reaped."""


class FunctionView(Struct, frozen=True, kw_only=True):
    """A function."""

    id: str
    now: float
    declared: bool = True
    """Whether the catalogue has it. Instances of a function that was removed run until they are drained."""
    aliases: tuple[str, ...] = ()
    variant_of: str = ""
    """Its base, which has its instances and failures; empty: it has instances of its own."""
    variants: tuple[str, ...] = ()
    """The functions that its instances serve beside it. `in_flight` and `waiting` are each one's own."""
    engine: str = ""
    revision: str = ""
    state: str
    """The state of its most advanced instance, else `failing` or `cold`."""
    instances: tuple[InstanceView, ...] = ()
    in_flight: int = 0
    waiting: int = 0
    in_line: tuple[Wait, ...] = ()
    """Where its requests wait for memory, the soonest turn first."""
    pinned: bool = False
    min: int = 0
    """Now: with `warm`, it changes with the hours."""
    max: int = 1
    warm: tuple[str, ...] = ()
    """The windows in which alone the function has a minimum."""
    hours_change: float | None = None
    """When these windows begin or end next."""
    baseline: bool = False
    overridden: tuple[str, ...] = ()
    """The settings that runtime overrides replace."""
    last_used: float | None = None
    last_start: LastStart | None = None
    expected_start_s: float | None = None
    """Duration of a start from the worker's launch, from earlier starts; None if unknown."""
    start: str = "auto"
    """Whether it starts fast or in full: `auto`, `fast` or `full`."""
    start_times: tuple[StartTime, ...] = ()
    """What its last starts took, by kind of device and mode; empty where the engine has one mode."""
    tricks_off: tuple[tuple[str, str, str], ...] = ()
    """Host, trick and reason, where starts go without a trick that failed once; `full`: where an instance that was
    started fast is not replaced by a full start, because that failed."""
    vram_mb: int = 0
    """The declared memory; 0: none."""
    measured: tuple[Measurement, ...] = ()
    failure: str | None = None
    """The reason of its last failure, or why it cannot be started now."""
    blocked: str = ""
    """Why it cannot start now: processes outside cortex hold the memory. Empty: they do not prevent a start."""
    retry_at: float | None = None
    """When a start is attempted again after failures."""
    cause: str = ""
    """The cause recognized in the worker's last lines, if any; admins can read its log."""
    failed_instance: str = ""
    """The instance with that log; empty without a failure."""
    park: str = "auto"
    """What its idle or evicted instances may keep."""
    unparkable: tuple[tuple[str, str, str], ...] = ()
    """Host, tier and reason, where its instances stop instead of being parked, because that failed once."""


class FunctionsAnswer(Struct, frozen=True, kw_only=True):
    """Every function: those of the catalogue in its order, then running ones that it no longer has."""

    functions: tuple[FunctionView, ...]


class InstancesAnswer(Struct, frozen=True, kw_only=True):
    """The instances of all hosts."""

    instances: tuple[InstanceView, ...]


class WarmAnswer(Struct, frozen=True, kw_only=True):
    """The instance that is ready or starting."""

    instance: str


class CoolAnswer(Struct, frozen=True, kw_only=True):
    """The instances that drain."""

    instances: tuple[str, ...]


class FunctionSettings(Struct, frozen=True, kw_only=True):
    """A function's settings that can be overridden at run time."""

    id: str
    pinned: bool
    min: int
    max: int


class ForgetAnswer(Struct, frozen=True, kw_only=True):
    """A function, and how many of its measurements were deleted."""

    id: str
    entries: int


# Hosts.


class EvictionCandidate(Struct, frozen=True, kw_only=True):
    """An instance in a host's eviction order."""

    rank: int
    """1: evicted first, when room is needed."""
    instance: str
    function: str
    memory_mb: int
    """On all its devices."""
    idle_since: float
    priority: int
    protection: str = ""
    """Why it may not be evicted now; empty if it may."""
    reap_at: float | None = None
    """When it is reaped even if no room is needed; None while it is protected, or if it is never reaped."""


class DeviceView(Device, frozen=True, kw_only=True):
    """A device: its agent's record of it, and the sums of its memory."""

    admitted_mb: int = 0
    """Reserved by instances, including those that end."""
    free_mb: int = 0
    """Neither reserved by instances, nor held by foreign processes, nor part of the reserve."""


class HostView(HostRecord, frozen=True, kw_only=True):
    """A host: its agent's record of it, and what the router adds."""

    now: float = 0.0
    devices: tuple[DeviceView, ...] = ()
    silent_since: float | None = None
    """Since when its record is missing; None: it reports."""
    cordoned: bool = False
    in_flight: int = 0
    strategy: str = "lru"
    """The order of eviction: `lru` or `priority`."""
    eviction_order: tuple[EvictionCandidate, ...] = ()
    """Its instances, those that may be evicted now first; empty if it is silent."""
    namesake: Namesake | None = None
    """Another host with this name, which is rejected."""

    @property
    def evicted_next(self) -> EvictionCandidate | None:
        """The first instance that may be evicted now."""
        return next((c for c in self.eviction_order if not c.protection), None)


class HostsAnswer(Struct, frozen=True, kw_only=True):
    """Every host. The instances of a silent one may still serve."""

    hosts: tuple[HostView, ...]
    silent: tuple[HostView, ...] = ()
    cordoned_and_away: tuple[str, ...] = ()
    """Cordoned hosts that do not report."""

    @property
    def every(self) -> tuple[HostView, ...]:
        """The hosts that report, then the silent ones."""
        return (*self.hosts, *self.silent)


class CordonAnswer(Struct, frozen=True, kw_only=True):
    """Whether a host takes no new instances."""

    host: str
    cordoned: bool


class DrainAnswer(Struct, frozen=True, kw_only=True):
    """The functions that run elsewhere now, and the instances that drain."""

    moved: tuple[str, ...]
    draining: tuple[str, ...]


# Requests, traffic and decisions.


class Try(Struct, frozen=True):
    """An instance that broke before it answered, and how."""

    instance: str
    host: str
    why: str
    replayed: bool = True
    """The request was sent again."""


class RequestSummary(Struct, frozen=True, kw_only=True):
    """A request's record for display."""

    id: str
    function: str
    model: str
    """The model that the client named: the function's id, or an alias."""
    dialect: str
    stream: bool
    instance: str
    host: str
    phase: str
    """choosing, waiting, forwarded, streaming or over."""
    at: float
    age_s: float
    start: str
    queued_ms: int
    first_ms: int | None
    tokens_in: int
    tokens_out: int
    """For an active stream: its pieces so far, an estimate."""
    substitute_for: str = ""
    """The function that was not ready, in whose place this one answered."""
    tries: tuple[Try, ...]
    """Workers that broke before this one answered."""
    status: int
    fault: str
    why: str
    who: str
    router: str


class RequestsAnswer(Struct, frozen=True, kw_only=True):
    """Requests of all router workers."""

    requests: tuple[RequestSummary, ...]


class CancelAnswer(Struct, frozen=True, kw_only=True):
    """How many requests were cancelled."""

    cancelled: int


class Percentiles(Struct, frozen=True, kw_only=True):
    """Percentiles of a duration."""

    p50_s: float
    p95_s: float
    p99_s: float


class LatencyPercentiles(Struct, frozen=True, kw_only=True):
    """Percentiles of whole answers and of the first token; None without data."""

    duration: Percentiles | None = None
    first: Percentiles | None = None


class TrafficBucket(Struct, frozen=True, kw_only=True):
    """Requests that ended within one period. Means are None without data."""

    at: int = 0
    """Its start."""
    requests: int = 0
    errors: int = 0
    cold: int = 0
    mean_s: float | None = None
    longest_s: float = 0.0
    first_s: float | None = None
    """Mean time to the first token of streams."""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_per_s: float | None = None
    """Of streams, after their first token."""


class TrafficTotal(TrafficBucket, frozen=True, kw_only=True):
    """The sum of several periods."""

    percentiles: LatencyPercentiles = LatencyPercentiles()


class TrafficAnswer(Struct, frozen=True, kw_only=True):
    """The last hour of all router workers, and the last five minutes by function."""

    now: float
    bucket_s: int
    last_hour: TrafficTotal
    hour: tuple[TrafficBucket, ...]
    functions: dict[str, TrafficTotal]


class DecisionsAnswer(Struct, frozen=True, kw_only=True):
    """Decisions, newest first."""

    decisions: tuple[DecisionRecord, ...]


class AuditAnswer(Struct, frozen=True, kw_only=True):
    """What operators did, newest first."""

    entries: tuple[AuditRecord, ...]


class UsageGroup(Struct, frozen=True, kw_only=True):
    """What the requests of a key, function, host, day or hour used."""

    name: str
    """A key's name and id, or the other's name. A day or hour is UTC."""
    requests: int
    tokens_in: int
    tokens_out: int
    cached: int
    """Of `tokens_in`, those that the worker had in its cache."""
    cold_starts: int
    """Requests that waited for a start."""
    usd: float
    """At the prices of that time; 0 where the function has none."""
    gpu_s: float
    """Seconds of GPUs. Requests that share a GPU share its time, in proportion to their tokens."""
    joules: float
    """The energy of GPUs, shared in the same way; 0 where the driver does not report it."""
    audio_s: float
    """Seconds of transcribed audio."""
    characters: int
    """Characters of text that was turned into speech."""
    images: int


class UsageAnswer(Struct, frozen=True, kw_only=True):
    """Usage between two times, in groups."""

    by: By
    since: float
    until: float
    groups: tuple[UsageGroup, ...]
    total: UsageGroup


class ForgetUsageAnswer(Struct, frozen=True, kw_only=True):
    """The keys whose usage was deleted, and the number of rows."""

    keys: tuple[str, ...]
    rows: int


# Weights and downloads.


class WeightsView(Stored, frozen=True, kw_only=True):
    """Weights on a host."""

    host: str


class WeightsAnswer(Struct, frozen=True, kw_only=True):
    """Weights, and the hosts that did not answer with the reason."""

    weights: tuple[WeightsView, ...]
    away: dict[str, str]


class RemoveRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weights to remove: by function or source, or all that no function uses; on one host, or on all."""

    names: tuple[str, ...] = ()
    unused: bool = False
    dry_run: bool = False
    host: str = ""


class RemainingWeights(Struct, frozen=True, kw_only=True):
    """Weights that were not removed, and the reason."""

    host: str
    name: str
    why: str


class RemoveAnswer(Struct, frozen=True, kw_only=True):
    """The weights that were removed, or would be (`dry_run`), and those that stay."""

    removed: tuple[WeightsView, ...]
    remaining: tuple[RemainingWeights, ...]
    away: dict[str, str]
    dry_run: bool


class FetchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The function whose weights to fetch, and the host; without one: where the function would start."""

    function: str
    host: str = ""


class FetchAnswer(Struct, frozen=True, kw_only=True):
    """A download that was requested."""

    host: str
    job: str
    function: str


class EstimateAnswer(Estimate, frozen=True, kw_only=True):
    """The estimated memory of an instance of a function, on one host."""

    host: str


class DownloadView(Struct, frozen=True, kw_only=True):
    """A running or recent download on a host. Bytes."""

    id: str
    host: str
    source: str
    state: str
    """queued, fetching, waiting (to try again), done, failed or stopped."""
    active: bool
    """Whether it is queued, fetching or waiting."""
    functions: tuple[str, ...] = ()
    done: int = 0
    total: int = 0
    """0: unknown."""
    fraction: float | None = None
    rate: float = 0.0
    """Bytes a second, lately."""
    ends_at: float | None = None
    """When it should end, at this rate; None if unknown or not active."""
    retry_at: float | None = None
    requested_at: float | None = None
    why: str = ""
    """Why it waits or failed."""


class JobsAnswer(Struct, frozen=True, kw_only=True):
    """Downloads, and the hosts that did not answer with the reason."""

    jobs: tuple[DownloadView, ...]
    away: dict[str, str]


class CancelJobAnswer(Struct, frozen=True, kw_only=True):
    """A download that was cancelled."""

    host: str
    job: str


# API keys.


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to create. Limits of 0: none; a lifetime of 0: no end."""

    name: Name
    scope: Scope = Scope.INFERENCE
    functions: tuple[Glob, ...] = ()
    rpm: Count = 0
    tpm: Count = 0
    concurrent: Count = 0
    budget: Budget = Budget()
    priority: Priority = Priority.NORMAL
    group: Group = ""
    expires_s: Count = 0


class KeyChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes of a key; null: no change."""

    name: Name | None = None
    group: Group | None = None
    budget: Budget | None = None


class KeyOverlap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a replaced key stays valid."""

    overlap_s: Count = 0


class KeysAnswer(Struct, frozen=True, kw_only=True):
    """Keys without secrets; `digest` is the beginning of the key's SHA-256."""

    keys: tuple[ApiKey, ...]
    spent: dict[str, Spent] = {}
    """What each key with a budget has spent this month, by id."""


class KeySecret(ApiKey, frozen=True, kw_only=True):
    """A new key. It is not stored and cannot be shown again."""

    key: str


class RevokeAnswer(Struct, frozen=True, kw_only=True):
    """The ids of the keys that were deleted."""

    revoked: tuple[str, ...]


# Health.


class NodeCount(Struct, frozen=True, kw_only=True):
    """Hosts that report, and all that are known."""

    healthy: int = 0
    total: int = 0


class HostSilence(Struct, frozen=True, kw_only=True):
    """How long a host has not reported, and how many of its instances still answer."""

    silent_s: int
    serving: int


class BackgroundFault(Struct, frozen=True, kw_only=True):
    """The last exception of a background task, and how many there were."""

    work: str
    error: str
    count: int
    failed_s_ago: int


class Health(Struct, frozen=True, kw_only=True):
    """The health of one router worker: `GET /health`."""

    status: str
    """ok or degraded."""
    nodes: NodeCount = NodeCount()
    silent: dict[str, HostSilence] = {}
    record: str = "ok"
    """ok, away, or why Redis holds another fleet's record."""
    record_read_s_ago: int | None = None
    catalogue: str = "ok"
    """ok, or the problem with the catalogue file."""
    background: tuple[BackgroundFault, ...] | str = "ok"
    shared_names: dict[str, tuple[str, str]] = {}
    """Addresses of two hosts with one name; the second is rejected."""
