"""The content of the status page as values. Equal values render the same, so only changed values are sent again.

Times are Unix seconds, memory is MiB, shares are between 0 and 1.
"""

from msgspec import Struct

from cortex.platform.decisions import DecisionRecord


class Attention(Struct, frozen=True, kw_only=True):
    """A point for the operator at the top of the page."""

    grave: bool
    text: str
    detail: str = ""
    to: str = ""
    """The fragment with details, if any."""


class Verdict(Struct, frozen=True, kw_only=True):
    """The state of the fleet in one line, and its problems."""

    well: bool
    text: str
    attention: tuple[Attention, ...] = ()
    more: int = 0
    """Number of points that are not listed."""


class Series(Struct, frozen=True, kw_only=True):
    """One figure over the last hour, oldest first; None without a measurement."""

    values: tuple[float | None, ...]
    step_s: float
    ends: float


class Figures(Struct, frozen=True, kw_only=True):
    """Totals of the fleet."""

    functions: int
    serving: int
    coming: int
    failing: int
    hosts: int
    cordoned: int
    in_flight: int
    waiting: int
    used_mb: int
    """Reserved by instances or used by other processes, on all devices."""
    total_mb: int


class Latency(Struct, frozen=True, kw_only=True):
    """Percentiles of a duration."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


class Flow(Struct, frozen=True, kw_only=True):
    """Request statistics over all routers. None: no requests, or no data."""

    minutes: int = 5
    """Period of the single figures."""
    rate_per_min: float | None = None
    errors_per_min: float | None = None
    first_token_ms: float | None = None
    """The median."""
    tokens_per_s: float | None = None
    first_token_hour: Latency | None = None
    duration_hour: Latency | None = None
    requests: Series | None = None
    errors: Series | None = None
    first_token: tuple[Series, ...] = ()
    """p50 and p95 by minute."""
    duration: tuple[Series, ...] = ()


class Start(Struct, frozen=True, kw_only=True):
    """A starting instance."""

    key: str
    function: str
    instance: str
    host: str
    state: str
    phase: str
    """The download, or the step that the worker reports."""
    share: float | None
    """Progress of the phase."""
    phases: tuple[tuple[str, float], ...]
    """Finished phases in seconds, without very short ones."""
    since: float
    expected_s: float | None
    """Duration of a start with local weights, from earlier starts."""
    ends: float | None
    """Expected end."""
    waiting: int
    waits_for: tuple[str, ...] = ()
    """Functions that are evicted first."""
    silent_since: float | None = None
    """Time of the last sign of life, if that is a while ago."""


class Segment(Struct, frozen=True, kw_only=True):
    """A part of a device's memory."""

    label: str
    tone: str
    """busy, idle, coming, parked, leaving or foreign."""
    source: str
    """measured, declared, estimated or foreign."""
    at: float
    width: float
    mb: int
    measured_mb: int | None
    note: str


class Bar(Struct, frozen=True, kw_only=True):
    """A device and its memory."""

    id: str
    name: str
    label: str
    total_mb: int
    used_mb: int
    free_mb: int
    reserve_mb: int
    segments: tuple[Segment, ...]
    note: str = ""
    utilization_pct: int | None = None
    temp_c: int | None = None


class Host(Struct, frozen=True, kw_only=True):
    """A machine."""

    key: str
    order: str
    name: str
    mood: str
    """ok, cordoned or problem."""
    problem: str
    bars: tuple[Bar, ...]
    instances: int
    in_flight: int
    next_out: str
    """The function that would be evicted first."""
    silent_since: float | None = None


class Row(Struct, frozen=True, kw_only=True):
    """A function in the table."""

    key: str
    order: str
    id: str
    aliases: tuple[str, ...]
    engine: str
    state: str
    tone: str
    hosts: tuple[str, ...]
    instances: int
    pinned: bool
    in_flight: int
    waiting: int
    first_token_ms: float | None
    tokens_per_s: float | None
    idle_until: float | None
    last_start_s: float | None
    expected_s: float | None
    phase: str
    share: float | None
    since: float | None
    ends: float | None
    """Expected end of its start."""
    failure: str
    retry_at: float | None
    retention: str = ""
    """Why it is never reaped: pinned, or a minimum."""
    in_line: str = ""
    """For whom its requests wait, and for how long at most."""


class Leaving(Struct, frozen=True, kw_only=True):
    """An instance in a host's eviction order."""

    host: str
    function: str
    instance: str
    mb: int
    idle_since: float
    reaped_at: float | None
    why: str
    rank: int
    protected: str = ""
    """Why it cannot be evicted now."""


class Departures(Struct, frozen=True, kw_only=True):
    """The next evictions by host, fullest host first."""

    strategy: str
    warm: bool
    """Whether any instance is ready, protected or not."""
    first: tuple[Leaving, ...]
    more: int
    protected: tuple[Leaving, ...] = ()
    """Protected instances, if no instance may be evicted on any host."""


class Job(Struct, frozen=True, kw_only=True):
    """A download of weights on a host, or a batch of a key."""

    id: str
    host: str
    """Or the key's name."""
    what: str
    state: str
    share: float | None
    detail: str
    at: float | None
    ends: float | None = None
    """Expected end at the current rate."""


class Trouble(Struct, frozen=True, kw_only=True):
    """A failure. Admins fetch the worker's log from its host."""

    key: str
    function: str
    host: str
    instance: str
    kind: str
    reason: str
    at: float
    count: int
    retry_at: float | None


class Log(Struct, frozen=True, kw_only=True):
    """The end of a worker's log, or its last lines that match `grep`."""

    function: str
    host: str
    """The host that has it; empty if none has."""
    instance: str
    """The requested instance; empty: the function's newest."""
    run: str
    grep: str
    text: str = ""
    lines: int = 0
    cut: bool = False
    """Earlier lines were omitted because of the size limit."""
    problem: str = ""
    """Why there is no log."""


class Phase(Struct, frozen=True, kw_only=True):
    """A phase of a start, with its position on the bar."""

    name: str
    seconds: float
    at: float
    width: float


class InstanceLine(Struct, frozen=True, kw_only=True):
    """An instance in a function's details."""

    id: str
    host: str
    devices: tuple[str, ...]
    state: str
    tone: str
    in_flight: int
    memory_mb: int
    memory_from: str
    used_mb: int | None
    idle_until: float | None
    why: str
    pid: int
    current: bool
    """Whether it has the catalogue's current revision."""


class Details(Struct, frozen=True, kw_only=True):
    """The details of one function."""

    row: Row
    revision: str
    instances: tuple[InstanceLine, ...]
    troubles: tuple[Trouble, ...]
    settings: tuple[tuple[str, str], ...]
    last_used: float | None
    phases: tuple[Phase, ...] = ()
    """Phases of the last cold start."""
    phases_at: float | None = None
    starts: tuple[str, ...] = ()
    """What starts take by mode, and what keeps one from being fast or full."""
    shared_with: tuple[str, ...] = ()
    """The other functions that its instances serve: its base and the variants of that."""
    pinned: bool = False
    """Whether its entry or an operator pins it."""


class HostDetails(Struct, frozen=True, kw_only=True):
    """The details of one host."""

    host: Host
    address: str
    version: str
    engines: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    order: tuple[Leaving, ...]
    """Every instance, in eviction order."""
    foreign: tuple[str, ...]
    saved: tuple[str, ...]
    """Its saved conversations by function, and the functions of which it saves none, with the reason."""
    troubles: tuple[Trouble, ...]


class Picture(Struct, frozen=True, kw_only=True):
    """The whole page at one time."""

    now: float
    verdict: Verdict
    figures: Figures
    flow: Flow
    starts: tuple[Start, ...]
    hosts: tuple[Host, ...]
    rows: tuple[Row, ...]
    departures: Departures
    decisions: tuple[DecisionRecord, ...]
    jobs: tuple[Job, ...] | None
    """None: unknown."""
    batches: tuple[Job, ...] = ()
    troubles: tuple[Trouble, ...]
