"""The scheduler's effects: what the agent must do. The supervisor answers each of its own with an event."""

from collections.abc import Mapping

from msgspec import Struct

from cortex.functions.spec import Adapter, Function
from cortex.platform.agent_messages import Accepted, AdapterState, Rejected
from cortex.platform.record import DrainReason, Instance, Tier
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import LocalWeights


class Fetch(Struct, frozen=True, tag=True):
    """Fetch the weights of an instance's function to this host: `Fetched` or `FetchFailed` follows."""

    instance: Instance
    function: Function


class CancelFetch(Struct, frozen=True, tag=True):
    """Cancel a fetch, unless another instance waits for it: this instance is gone. No event follows."""

    instance: Instance
    function: Function


class Spawn(Struct, frozen=True, tag=True):
    """Start the worker of an instance: `Spawned`, then `Answered` or `Exited`, or `SpawnFailed` follows."""

    instance: Instance
    function: Function
    weights: LocalWeights
    beside_cache_mb: int = 0
    """Measured memory on each device without the KV cache; 0: unknown."""


class LoadAdapter(Struct, frozen=True, tag=True):
    """Load a variant's adapter into a running worker, after fetching it if needed: `AdapterLoaded` or `AdapterFailed`
    follows, with `AdapterProgress` before. `weights` are those the worker was started from."""

    instance: Instance
    function: Function
    adapter: Adapter
    weights: LocalWeights


class UnloadAdapter(Struct, frozen=True, tag=True):
    """Unload an adapter, by its name at the worker, when no request uses it any more. No event follows."""

    instance: Instance
    name: str


class Look(Struct, frozen=True, tag=True):
    """Check whether a worker is idle before it is stopped: `Looked` follows."""

    instance: Instance


class Prove(Struct, frozen=True, tag=True):
    """Send a silent worker a request of one token: `Proved` follows."""

    instance: Instance
    function: Function


class Park(Struct, frozen=True, tag=True):
    """Move the device memory of an idle worker to RAM: `Parked` or `ParkFailed` follows."""

    instance: Instance
    function: Function
    tier: Tier
    unseated: Mapping[str, int] | None = None
    """Save its conversations first, with the requests that each router has sent without a seat; None: save none."""


class Wake(Struct, frozen=True, tag=True):
    """Move the memory of a parked worker back to its devices: `Answered`, `StartFailed` or `Exited` follows."""

    instance: Instance
    function: Function
    tier: Tier


class Stop(Struct, frozen=True, tag=True):
    """Send TERM to the worker's process group, then KILL after the grace period: `Exited` follows."""

    instance: Instance
    grace_s: float
    unseated: Mapping[str, int] | None = None
    """Save its conversations first, with the requests that each router has sent without a seat; None: save none."""


class Reclaim(Struct, frozen=True, tag=True):
    """Wait until the worker's processes are gone and its memory is free: `Reclaimed` follows."""

    instance: Instance


class Decision(Struct, frozen=True, tag=True):
    """A decision to log: `what` happened to which function and instance, and why."""

    what: DecisionKind
    function: str
    instance: str
    why: str
    reason: DrainReason | None = None
    """Of a drain or stop."""


class Answer(Struct, frozen=True, tag=True):
    """Answer the caller of an `EnsureRequest`."""

    answer: Accepted | Rejected


class AdapterAnswer(Struct, frozen=True, tag=True):
    """Answer the caller of an `AdapterRequest`."""

    answer: AdapterState


class Ending(Struct, frozen=True, tag=True):
    """Answer the caller of a `CoolRequest` or `DrainRequest`: these instances end."""

    instances: tuple[str, ...]


Effect = (
    Fetch | CancelFetch | Spawn | LoadAdapter | UnloadAdapter | Look | Prove | Park | Wake | Stop | Reclaim
    | Decision | Answer | AdapterAnswer | Ending
)  # fmt: skip
