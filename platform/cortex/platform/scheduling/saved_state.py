"""The agent's state file, in addition to the record: the specs and weights its workers were started from, and what
failed here."""

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.estimate import Shape
from cortex.functions.spec import Function
from cortex.platform.record import Failure, Instance, Tier


class LocalWeights(Struct, frozen=True):
    """Weights on this host."""

    path: str
    size_mb: int
    shape: Shape | None = None
    """For the size of the KV cache; None: not read, or not in the files."""
    layers: int = 0
    """Layers of a GGUF; 0: not read, or not in its header."""
    mmproj: str = ""
    """The vision encoder that came with them."""
    adapters: dict[str, str] = {}
    """Paths of the adapters that fit them, by the variant's id."""
    adapter_problems: dict[str, str] = {}
    """Why an adapter cannot be used, by the variant's id."""
    adapter_unloads: tuple[str, ...] = ()
    """The engine's names of adapters that a running instance had to unload, and has not loaded since."""
    adapter_rank: int = 0
    """The highest rank of an adapter that the engine must be able to load while it runs; 0: it loads none."""


class SavedWorker(Struct, frozen=True):
    """A worker process: its instance, spec and weights."""

    instance: Instance
    function: Function
    weights: LocalWeights


class AgentState(Struct, frozen=True):
    """The content of the file."""

    workers: tuple[SavedWorker, ...] = ()
    failures: tuple[Failure, ...] = ()
    unparkable: dict[str, dict[Tier, str]] = {}
    tricks_off: dict[str, dict[str, str]] = {}
    """Tiers and tricks that failed, by revision: see `HostRecord`."""
    builds: dict[str, str] = {}
    """The driver and the engines with which they failed. With others they are tried again."""
    epoch: int = 0
    """The highest epoch of the agent that wrote it."""
    boot: str = ""
    """The boot id at the time of writing. Processes of another boot are gone, and its times are another clock's."""
    origin: float = 0.0
    """The origin of the clock its times are by: see `clock.py`."""

    def with_builds(self, builds: dict[str, str]) -> "AgentState":
        """Return the state for a host that has these builds."""
        if builds == self.builds:
            return self
        return replace(self, builds=builds, unparkable={}, tricks_off={})
