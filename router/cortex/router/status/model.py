"""What the status page shows, as values. Two equal values look the same, so nothing is sent again for them.

Times are Unix seconds, memory is MiB, shares are between 0 and 1.
"""

from msgspec import Struct


class Attention(Struct, frozen=True, kw_only=True):
    """Something an operator should know before anything else."""

    grave: bool
    text: str
    detail: str = ""
    to: str = ""
    """The fragment that says more, if there is one."""


class Verdict(Struct, frozen=True, kw_only=True):
    """The page in one line, and what speaks against it."""

    well: bool
    text: str
    attention: tuple[Attention, ...] = ()
    more: int = 0
    """Further points that are not listed."""


class Series(Struct, frozen=True, kw_only=True):
    """One figure over the last hour, oldest first; None where nothing was measured."""

    values: tuple[float | None, ...]
    step_s: float
    ends: float


class Figures(Struct, frozen=True, kw_only=True):
    """The fleet in numbers."""

    functions: int
    serving: int
    coming: int
    failing: int
    hosts: int
    cordoned: int
    in_flight: int
    waiting: int
    used_mb: int
    """Promised to instances or taken by others, on all devices."""
    total_mb: int


class Latency(Struct, frozen=True, kw_only=True):
    """Half, 95 and 99 of a hundred requests took no longer."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


class Flow(Struct, frozen=True, kw_only=True):
    """How requests go, over all routers. None: nothing was asked, or nobody counts."""

    minutes: int = 5
    """What `now` means in the single figures."""
    rate_per_min: float | None = None
    errors_per_min: float | None = None
    first_token_ms: float | None = None
    """Of the median request."""
    tokens_per_s: float | None = None
    first_token_hour: Latency | None = None
    duration_hour: Latency | None = None
    requests: Series | None = None
    errors: Series | None = None
    first_token: tuple[Series, ...] = ()
    """Per minute: the median, and what 95 of a hundred stayed below."""
    duration: tuple[Series, ...] = ()


class Start(Struct, frozen=True, kw_only=True):
    """An instance on its way up."""

    key: str
    function: str
    instance: str
    host: str
    state: str
    phase: str
    """What is fetched, or the step the worker says it is at."""
    share: float | None
    """How far that is."""
    passed: tuple[tuple[str, float], ...]
    """What is behind it, in seconds; not what took no time."""
    since: float
    expected_s: float | None
    """How long a start takes, by earlier ones, when its weights are there."""
    ends: float | None
    """When it should be over."""
    waiting: int
    waits_for: tuple[str, ...] = ()
    """Functions that leave first."""
    silent_since: float | None = None
    """Set when it has shown no sign of life for a while."""


class Segment(Struct, frozen=True, kw_only=True):
    """A piece of a device's memory."""

    label: str
    tone: str
    """busy, idle, coming, leaving or foreign."""
    source: str
    """measured, declared, estimated or foreign."""
    at: float
    width: float
    mb: int
    measured_mb: int | None
    note: str


class Bar(Struct, frozen=True, kw_only=True):
    """A device and what fills its memory."""

    id: str
    name: str
    label: str
    total_mb: int
    taken_mb: int
    free_mb: int
    kept_free_mb: int
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
    """When its start should be over."""
    failure: str
    retry_at: float | None
    kept: str = ""
    """Why it is never let go: pinned, or a minimum."""
    in_line: str = ""
    """For whom its requests wait, and for how long at most."""


class Leaving(Struct, frozen=True, kw_only=True):
    """Who would be evicted next on a host, and why."""

    host: str
    function: str
    instance: str
    mb: int
    idle_since: float
    reaped_at: float | None
    why: str
    rank: int
    protected: str = ""
    """Why it cannot go now."""


class Departures(Struct, frozen=True, kw_only=True):
    """Who goes next, host by host, fullest host first."""

    strategy: str
    warm: bool
    """Whether anything is there that could be evicted, were it not protected."""
    first: tuple[Leaving, ...]
    more: int
    kept: tuple[Leaving, ...] = ()
    """Who stays, and why, while nobody may be evicted anywhere."""


class Decision(Struct, frozen=True, kw_only=True):
    """A receipt."""

    at: float
    what: str
    by: str = ""
    function: str
    host: str
    instance: str
    why: str


class Job(Struct, frozen=True, kw_only=True):
    """Slow work of a host: fetching weights."""

    id: str
    host: str
    what: str
    state: str
    share: float | None
    said: str
    at: float | None
    functions: tuple[str, ...] = ()
    ends: float | None = None
    """When it should be over, at this rate."""


class Trouble(Struct, frozen=True, kw_only=True):
    """Something that failed. What the worker wrote is fetched from its host by admins."""

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
    """What a worker wrote: the end of it, or the last of its lines with a text."""

    function: str
    host: str
    """Where it was found; empty when it was not."""
    instance: str
    """Asked for; empty: the function's newest."""
    run: str
    grep: str
    text: str = ""
    lines: int = 0
    cut: bool = False
    """Earlier lines were left out because those shown are so long."""
    problem: str = ""
    """Why there is nothing to show."""


class Phase(Struct, frozen=True, kw_only=True):
    """A part of a start."""

    name: str
    seconds: float
    at: float
    width: float


class InstanceView(Struct, frozen=True, kw_only=True):
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
    phases: tuple[Phase, ...]
    start_s: float | None
    pid: int
    current: bool
    """Whether it is of the catalogue's present revision."""


class Details(Struct, frozen=True, kw_only=True):
    """Everything about one function."""

    row: Row
    revision: str
    instances: tuple[InstanceView, ...]
    troubles: tuple[Trouble, ...]
    settings: tuple[tuple[str, str], ...]
    last_used: float | None
    phases: tuple[Phase, ...] = ()
    """Of its last cold start."""
    phases_at: float | None = None
    pinned: bool = False
    """Whether it is to be kept, by its entry or by an operator."""


class HostDetails(Struct, frozen=True, kw_only=True):
    """Everything about one host."""

    host: Host
    address: str
    version: str
    engines: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    order: tuple[Leaving, ...]
    """Every instance, in the order in which they would leave."""
    foreign: tuple[str, ...]
    troubles: tuple[Trouble, ...]


class Picture(Struct, frozen=True, kw_only=True):
    """The whole page at one moment."""

    now: float
    verdict: Verdict
    figures: Figures
    flow: Flow
    starts: tuple[Start, ...]
    hosts: tuple[Host, ...]
    rows: tuple[Row, ...]
    departures: Departures
    decisions: tuple[Decision, ...]
    jobs: tuple[Job, ...] | None
    """None: nobody can say."""
    troubles: tuple[Trouble, ...]
