"""The scheduler's events: what callers request, what the agent reads, and what the supervisor reports. Pure values, so
that they can be logged and replayed (`event_log.py`). No event has text of a prompt, an answer or a worker's log.
"""

from collections.abc import Mapping

from msgspec import Struct

from cortex.functions.capabilities import ModelProfile
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Ensure, EnsureAdapter
from cortex.platform.fleet import Fleet
from cortex.platform.record import Device, FailureKind, Held, ProcessId, SavedContext, Tier
from cortex.platform.scheduling.failures import Evidence
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import LocalWeights, SavedWorker
from cortex.platform.served_model import ServedModel

# Requests.


class EnsureRequest(Struct, frozen=True, tag=True):
    """Ensure that an instance is ready or on its way up: an `Answer` follows at once.

    `instance` is the id of an instance that is started for it; `weights` are None when they are not on this host.
    """

    request: Ensure
    weights: LocalWeights | None
    instance: str


class AdapterRequest(Struct, frozen=True, tag=True):
    """Load a variant's adapter into an instance: an `AdapterAnswer` follows at once."""

    request: EnsureAdapter


class StartWithdrawn(Struct, frozen=True, tag=True):
    """The record does not show a start that a router requested: end the instance before it is used."""

    instance: str


class CoolRequest(Struct, frozen=True, tag=True):
    """End the instances of a function, after their requests or at once; or park them: `Ending` follows at once."""

    function: str
    at_once: bool = False
    park: bool = False


class DrainRequest(Struct, frozen=True, tag=True):
    """Start nothing more, and end every instance after its requests: `Ending` follows at once."""


class ShutdownRequest(Struct, frozen=True, tag=True):
    """End every instance at once."""


class FailuresCleared(Struct, frozen=True, tag=True):
    """An operator has fixed a function: its failures do not count any more."""

    function: str


class CatalogueChanged(Struct, frozen=True, tag=True):
    """There is a new catalogue."""

    functions: Mapping[str, Function]
    digest: str


class Adopted(Struct, frozen=True, tag=True):
    """An earlier agent of this host left a worker: whether its process lives, and whether it serves its model."""

    worker: SavedWorker
    alive: bool
    healthy: bool
    asleep: bool | None = None
    """Of a worker that is parked, parking or returning: whether its engine sleeps; None: it does not answer."""


# Readings.


class Reported(Struct, frozen=True, tag=True):
    """A reading of the record; None when it cannot be read."""

    fleet: Fleet | None


class HostRead(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """What the agent read of its host, as in the host's record; None: unchanged."""

    devices: tuple[Device, ...] | None = None
    foreign: tuple[Held, ...] | None = None
    problem: str | None = None
    problems: tuple[str, ...] | None = None
    models: Mapping[str, ModelProfile] | None = None
    weights: Mapping[str, int] | None = None
    silent: Mapping[str, float] | None = None
    unreadable: Mapping[str, str] | None = None
    park_ram_mb: int | None = None
    tiers: Mapping[Tier, str] | None = None
    contexts: tuple[SavedContext, ...] | None = None
    contexts_off: Mapping[str, str] | None = None


class ContextNoted(Struct, frozen=True, tag=True):
    """Something to log about the saved conversations of a function; `instance` may be empty."""

    what: DecisionKind
    function: str
    instance: str
    why: str


class LedgerRead(Struct, frozen=True, tag=True):
    """Measurements of earlier starts on this host's devices, by revision."""

    entries: Mapping[str, Entry]


class MemoryRead(Struct, frozen=True, tag=True):
    """The memory that an instance uses."""

    instance: str
    used_mb: int


class LauncherChanged(Struct, frozen=True, tag=True):
    """The state of the launcher for an engine's starts, and its memory while it is parked."""

    engine: str
    state: str
    memory_mb: int = 0


# Workers.


class FetchProgress(Struct, frozen=True, tag=True):
    """How far a fetch is."""

    instance: str
    phase: str
    progress: float | None


class Fetched(Struct, frozen=True, tag=True):
    """The weights are on this host."""

    instance: str
    weights: LocalWeights


class FetchFailed(Struct, frozen=True, tag=True):
    """The weights could not be fetched."""

    instance: str
    reason: str


class Spawned(Struct, frozen=True, tag=True):
    """The worker's process runs. `path` says how it was started, `warm` whether by a parked launcher."""

    instance: str
    process: ProcessId
    url: str
    server: str = ""
    health_path: str = "/health"
    served_name: str = ""
    path: str = "plain"
    warm: bool = False
    sleeps: bool = False
    """Whether its engine can sleep."""
    adapters: dict[str, int] = {}
    adapter_problems: dict[str, str] = {}
    """As in its record."""
    tricks: tuple[str, ...] = ()
    """Those that its start uses."""


class SpawnFailed(Struct, frozen=True, tag=True):
    """The worker's process could not be started."""

    instance: str
    reason: str
    kind: FailureKind = FailureKind.CRASH


class SignOfLife(Struct, frozen=True, tag=True):
    """A starting worker wrote to its log: the phase of its start, and its progress in it."""

    instance: str
    phase: str
    progress: float | None = None


class ModelDescribed(Struct, frozen=True, tag=True):
    """The worker's description of its model."""

    instance: str
    model: ServedModel


class Answered(Struct, frozen=True, tag=True):
    """The worker is healthy and serves its model."""

    instance: str


class StartFailed(Struct, frozen=True, tag=True):
    """The worker runs, but cannot serve: it serves another model, for example."""

    instance: str
    reason: str
    evidence: Evidence = Evidence()


class AdapterProgress(Struct, frozen=True, tag=True):
    """How far the load of an adapter is."""

    instance: str
    variant: str
    step: str


class AdapterLoaded(Struct, frozen=True, tag=True):
    """An instance has loaded an adapter: its number, and its path on this host."""

    instance: str
    variant: str
    number: int
    path: str


class AdapterFailed(Struct, frozen=True, tag=True):
    """An adapter could not be loaded."""

    instance: str
    variant: str
    number: int
    reason: str


class HealthCheckFailed(Struct, frozen=True, tag=True):
    """A ready worker did not answer `misses` consecutive health checks; `stuck`: it uses no CPU time either."""

    instance: str
    misses: int
    stuck: bool


class FellBackToCpu(Struct, frozen=True, tag=True):
    """A ready worker that belongs on a GPU has no process there: it computes on the CPU."""

    instance: str


class Looked(Struct, frozen=True, tag=True):
    """A look at a worker: its engine's count of running requests (None: it has none), the connections to its port."""

    instance: str
    running: int | None
    connections: int


class Proved(Struct, frozen=True, tag=True):
    """A silent worker was sent a request of one token: whether it answered, and whether it used CPU time."""

    instance: str
    answered: bool
    worked: bool


class Exited(Struct, frozen=True, tag=True):
    """The worker's process ended; unexpected unless the instance was stopping."""

    instance: str
    description: str
    evidence: Evidence = Evidence()


class Parked(Struct, frozen=True, tag=True):
    """The worker's device memory is in RAM. `device_mb` stays on each device while it sleeps, which a frozen one does,
    too, if its engine can; `ram_mb` of RAM holds the rest."""

    instance: str
    tier: Tier
    device_mb: int
    ram_mb: int
    took_s: float


class ParkFailed(Struct, frozen=True, tag=True):
    """The worker could not be parked. It may be half-way: it is stopped."""

    instance: str
    tier: Tier
    reason: str


class EndDelayed(Struct, frozen=True, tag=True):
    """A problem keeps an instance from ending."""

    instance: str
    problem: str


class Reclaimed(Struct, frozen=True, tag=True):
    """The worker's processes are gone and its memory is free."""

    instance: str


Event = (
    EnsureRequest | AdapterRequest | StartWithdrawn | CoolRequest | DrainRequest | ShutdownRequest | FailuresCleared
    | CatalogueChanged | Adopted | Reported | HostRead | LedgerRead | MemoryRead | LauncherChanged
    | FetchProgress | Fetched | FetchFailed | Spawned | SpawnFailed | SignOfLife | ModelDescribed | Answered
    | AdapterProgress | AdapterLoaded | AdapterFailed | ContextNoted
    | StartFailed | HealthCheckFailed | FellBackToCpu | Looked | Proved | Parked | ParkFailed | Exited | EndDelayed
    | Reclaimed
)  # fmt: skip
