"""The scheduler's effects: what the agent must do. The supervisor answers each with an event."""

from msgspec import Struct

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.platform.scheduling.saved_state import LocalWeights


class Fetch(Struct, frozen=True):
    """Fetch the weights of an instance's function to this host: `fetched` or `fetch_failed` follows."""

    instance: Instance
    function: Function


class CancelFetch(Struct, frozen=True):
    """Cancel a fetch, unless another instance waits for it: this instance is gone. No event follows."""

    instance: Instance
    function: Function


class Spawn(Struct, frozen=True):
    """Start the worker of an instance: `spawned`, then `answered` or `exited`, or `spawn_failed` follows."""

    instance: Instance
    function: Function
    weights: LocalWeights
    beside_cache_mb: int = 0
    """Measured memory on each device without the KV cache; 0: unknown."""


class Look(Struct, frozen=True):
    """Check whether a worker is idle before it is stopped: `looked` follows."""

    instance: Instance


class Prove(Struct, frozen=True):
    """Send a silent worker a request of one token: `proved` follows."""

    instance: Instance
    function: Function


class Stop(Struct, frozen=True):
    """Send TERM to the worker's process group, then KILL after the grace period: `exited` follows."""

    instance: Instance
    grace_s: float


class Reclaim(Struct, frozen=True):
    """Wait until the worker's processes are gone and its memory is free: `reclaimed` follows."""

    instance: Instance


class Decision(Struct, frozen=True):
    """A receipt to write: `what` happened to which function and instance, and why."""

    what: str
    function: str
    instance: str
    why: str


Effect = Fetch | CancelFetch | Spawn | Look | Prove | Stop | Reclaim | Decision
