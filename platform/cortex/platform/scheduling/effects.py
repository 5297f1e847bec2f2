"""What the scheduler asks its agent to do. The supervisor answers each with an event."""

from msgspec import Struct

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.platform.scheduling.saved_state import LocalWeights


class Fetch(Struct, frozen=True):
    """Bring the weights of an instance's function to this host: `fetched` or `fetch_failed` follows."""

    instance: Instance
    function: Function


class CallOff(Struct, frozen=True):
    """The instance that waited for these weights is gone: nobody may want them any more. No event follows."""

    instance: Instance
    function: Function


class Spawn(Struct, frozen=True):
    """Start the worker of an instance: `spawned`, then `answered` or `exited`, or `spawn_failed` follows."""

    instance: Instance
    function: Function
    weights: LocalWeights


class Look(Struct, frozen=True):
    """Look at a worker whether it has something to do, before it is stopped: `looked` follows."""

    instance: Instance


class Prove(Struct, frozen=True):
    """Give a silent worker a request of one token: `proved` follows."""

    instance: Instance
    function: Function


class Stop(Struct, frozen=True):
    """TERM the worker's group, then KILL what is left after the grace: `exited` follows."""

    instance: Instance
    grace_s: float


class Reclaim(Struct, frozen=True):
    """See that nothing of the worker is left and its memory is back: `reclaimed` follows."""

    instance: Instance


class Decision(Struct, frozen=True):
    """Worth a receipt: `what` happened to which function and instance, and why."""

    what: str
    function: str
    instance: str
    why: str


Effect = Fetch | CallOff | Spawn | Look | Prove | Stop | Reclaim | Decision
