"""Input and output of the engines' builders: the context of a worker on its host, and its command."""

from collections.abc import Collection
from typing import Literal

from msgspec import Struct

from cortex.functions.launch.modes import StartMode, Trick


class LaunchContext(Struct, frozen=True, kw_only=True):
    """Address, devices, memory and paths for a worker. `tools` has this host's command for each program by name."""

    host: str
    port: int
    weights: str
    key: str
    tools: dict[str, tuple[str, ...]]
    devices: tuple[str, ...] = ()
    """UUIDs of GPUs. Declared devices without a UUID are missing."""
    device_kind: Literal["gpu", "cpu"] = "cpu"
    device_total_mb: int = 0
    """Memory of the smallest of its devices."""
    memory_mb: int = 0
    """Memory limit on each of its devices."""
    least_mb: int = 0
    """The least memory on each device that its engine may be told to use; 0: unknown."""
    cache_mb: int = 0
    """KV cache to reserve on each device; 0: the engine sizes it by `memory_mb`."""
    version: str = ""
    """Of the engine."""
    weights_mb: int = 0
    layers: int = 0
    """Number of the model's layers, from its file; 0: unknown."""
    cache: str = ""
    """A folder for files that the engine reuses between starts, for this build and this kind of device."""
    scratch: str = ""
    """A file of the worker; its folder exists."""
    engine_modules: str = ""
    """The folder of cortex modules that an engine's own Python imports."""
    key_file: str = ""
    """The path for the key of a program that reads it from a file; its folder exists."""
    control_key: str = ""
    """A second key, which opens the paths that move an engine's memory: only the agent has it."""
    sleeps: bool = False
    """Whether the engine must be able to sleep."""
    saved_slots: str = ""
    """The folder for the conversations that the engine saves; "": it saves none."""
    adapters: tuple[str, ...] = ()
    """Files of the adapters to load, in the order in which requests number them."""
    adapter_rank: int = 0
    """The highest rank of the adapters that an engine loads while it runs; 0: it loads none."""
    mode: StartMode | None = None
    """None: the engine has one set of settings."""
    tricks_off: Collection[str] = ()
    """Tricks that failed for this revision."""
    compiled: Collection[str] = ()
    """For which settings an earlier start has left compiled code in `cache`: see `Launch.compiles`."""


class Launch(Struct, frozen=True, kw_only=True):
    """The command of a worker, and its health check."""

    argv: tuple[str, ...]
    env: dict[str, str]
    health_path: str = "/health"
    served_name: str = ""
    """The model's name at the worker, if that is not the function's id."""
    server: str = ""
    """Its server, a row of `servers.py`."""
    files: dict[str, str] = {}
    """Files to write before the start, readable by its user only: content by path."""
    tricks: tuple[Trick, ...] = ()
    """Those that it uses."""
    compiles: str = ""
    """The settings for which its `cache` has compiled code once it is ready; "": for none."""


class CannotLaunch(Exception):
    """This host lacks what the function's engine needs."""


def visible(context: LaunchContext) -> dict[str, str]:
    """Return the variable that restricts a worker to its GPUs."""
    # CUDA may order GPUs by speed, NVML orders by PCI bus: pass UUIDs, never indexes.
    return {"CUDA_VISIBLE_DEVICES": ",".join(context.devices)} if context.devices else {}


def tool(name: str, context: LaunchContext) -> tuple[str, ...]:
    """Return this host's command for a program. Raises CannotLaunch."""
    try:
        return context.tools[name]
    except KeyError:
        raise CannotLaunch(f"no '{name}' on this host") from None
