"""What an agent keeps of its workers beside the record: the specs and weights they were started from."""

from msgspec import Struct

from cortex.functions.estimate import Shape
from cortex.functions.spec import Function
from cortex.platform.record import Failure, Instance


class LocalWeights(Struct, frozen=True):
    """LocalWeights that are on this host."""

    path: str
    size_mb: int
    shape: Shape | None = None
    """What the cache will take, where they tell and somebody asked."""
    layers: int = 0
    """Of a GGUF, where it tells and its head was read."""


class SavedWorker(Struct, frozen=True):
    """A worker process: the instance it is, and what it was started from."""

    instance: Instance
    function: Function
    weights: LocalWeights


class AgentState(Struct, frozen=True):
    """All of the file."""

    workers: tuple[SavedWorker, ...] = ()
    failures: tuple[Failure, ...] = ()
    epoch: int = 0
    """The highest epoch of the agent that wrote it."""
    boot: str = ""
    """The boot it was written in. Processes of another boot are gone, and its times are another clock's."""
    origin: float = 0.0
    """The origin of the clock its times are by: see `clock.py`."""
