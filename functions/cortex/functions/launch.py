"""How a worker is started: from a spec and a slot to an argv and an environment. Pure; tested by golden argv.

The worker's API key travels in the environment: an argv can be read by every user of the machine.
"""

from typing import assert_never

from msgspec import Struct

from cortex.functions.spec import Engine, Function

PROMPT_CACHE_MB = 256
"""llama.cpp keeps prompts in RAM, 8 GiB by its own default: too much beside other functions on one host."""


class Slot(Struct, frozen=True, kw_only=True):
    """Where and with what one worker is to run. `tools` maps a program's name to how this host runs it."""

    host: str
    port: int
    weights: str
    key: str
    tools: dict[str, tuple[str, ...]]
    devices: tuple[str, ...] = ()
    memory_mb: int = 0
    scratch: str = ""
    """A file of the worker's own; its folder exists."""


class Launch(Struct, frozen=True, kw_only=True):
    """A command ready to be run, and how to tell that it is up."""

    argv: tuple[str, ...]
    env: dict[str, str]
    health_path: str = "/health"


class CannotLaunch(Exception):
    """This host lacks what the function's engine needs."""


def launch(function: Function, slot: Slot) -> Launch:
    """Return the command that serves `function` in `slot`. Raises CannotLaunch when the engine is not there."""
    devices = _visible(slot.devices)
    match function.engine:
        case Engine.LLAMACPP:
            return _llamacpp(function, slot, devices)
        case Engine.FAKE:
            return _fake(function, slot, devices)
        case Engine.VLLM | Engine.COMMAND:
            raise CannotLaunch(f"engine '{function.engine}' is not there on this host")
        case _:
            assert_never(function.engine)


def _visible(devices: tuple[str, ...]) -> dict[str, str]:
    # CUDA may order GPUs by speed, NVML orders by PCI bus: pass UUIDs, never indexes.
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}


def _tool(name: str, slot: Slot) -> tuple[str, ...]:
    try:
        return slot.tools[name]
    except KeyError:
        raise CannotLaunch(f"no '{name}' on this host") from None


def _llamacpp(function: Function, slot: Slot, devices: dict[str, str]) -> Launch:
    # llama.cpp divides --ctx-size among its slots; `context` is what one request may use.
    context = ("--ctx-size", str(function.context * function.target_concurrency)) if function.context else ()
    return Launch(
        argv=(
            *_tool("llama-server", slot),
            "--model", slot.weights,
            "--alias", function.id,
            "--host", slot.host,
            "--port", str(slot.port),
            "--parallel", str(function.target_concurrency),
            "--cache-ram", str(PROMPT_CACHE_MB),
            *context,
            *function.args,
        ),
        env={**function.env, **devices, "LLAMA_API_KEY": slot.key},
    )  # fmt: skip


def _fake(function: Function, slot: Slot, devices: dict[str, str]) -> Launch:
    return Launch(
        argv=(
            *_tool("fake", slot),
            "--model", function.id,
            "--host", slot.host,
            "--port", str(slot.port),
            *function.args,
        ),
        env={
            **function.env,
            **devices,
            "CORTEX_WORKER_KEY": slot.key,
            **({"CORTEX_FAKE_MEMORY_FILE": slot.scratch} if slot.scratch else {}),
        },
    )  # fmt: skip
