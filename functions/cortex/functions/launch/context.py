"""What every engine's builder takes and gives: a slot on a host, and the command that was made for it."""

from typing import Literal

from msgspec import Struct


class LaunchContext(Struct, frozen=True, kw_only=True):
    """Where and with what one worker is to run. `tools` maps a program's name to how this host runs it."""

    host: str
    port: int
    weights: str
    key: str
    tools: dict[str, tuple[str, ...]]
    devices: tuple[str, ...] = ()
    """UUIDs of GPUs. Declared devices without one are not told to the worker."""
    device_kind: Literal["gpu", "cpu"] = "cpu"
    device_total_mb: int = 0
    """Of the smallest of its devices."""
    memory_mb: int = 0
    """What it may take on each of its devices."""
    weights_mb: int = 0
    layers: int = 0
    """Of the model, where its file tells; 0: unknown."""
    cache: str = ""
    """A folder for what the engine keeps from one start to the next; of this build of it and this kind of device."""
    scratch: str = ""
    """A file of the worker's own; its folder exists."""
    engine_modules: str = ""
    """The folder of modules of ours that an engine's own Python imports."""
    key_file: str = ""
    """Where the key may be put for a program that reads it from a file; its folder exists."""


class Launch(Struct, frozen=True, kw_only=True):
    """A command ready to be run, and how to tell that it is up."""

    argv: tuple[str, ...]
    env: dict[str, str]
    health_path: str = "/health"
    server: str = ""
    """Which server it is: a row of `servers.py`."""
    files: dict[str, str] = {}
    """What has to be written before it starts, for its user alone, by path."""


class CannotLaunch(Exception):
    """This host lacks what the function's engine needs."""


def visible(slot: LaunchContext) -> dict[str, str]:
    """Return the variable that shows a worker its GPUs and no others."""
    # CUDA may order GPUs by speed, NVML orders by PCI bus: pass UUIDs, never indexes.
    return {"CUDA_VISIBLE_DEVICES": ",".join(slot.devices)} if slot.devices else {}


def tool(name: str, slot: LaunchContext) -> tuple[str, ...]:
    """Return how this host runs a program. Raises CannotLaunch."""
    try:
        return slot.tools[name]
    except KeyError:
        raise CannotLaunch(f"no '{name}' on this host") from None
