"""The slot a worker is started in: what a host knows of the place, put together for `launch()`. Pure."""

from collections.abc import Sequence
from pathlib import PurePath

from cortex.functions.launch import LaunchContext
from cortex.functions.names import slug
from cortex.functions.spec import Engine
from cortex.platform.host.engines import Engines
from cortex.platform.record import Device
from cortex.platform.scheduling.effects import Spawn
from cortex.platform.scheduling.placement import need
from cortex.platform.settings import Agent

ENGINE_MODULES = PurePath(__file__).with_name("engine_modules")
"""The folder of modules of ours that an engine's own Python imports."""


def launch_context(
    effect: Spawn,
    settings: Agent,
    engines: Engines,
    devices: Sequence[Device],
    *,
    port: int,
    key: str,
    scratch: str,
    layers: int = 0,
) -> LaunchContext:
    """Return where and with what an instance is to run."""
    instance = effect.instance
    there = [d for d in devices if d.id in instance.devices]
    kind = "gpu" if any(d.kind == "gpu" for d in there) else "cpu"
    return LaunchContext(
        host=settings.worker_host,
        port=port,
        weights=effect.weights.path,
        key=key,
        tools=engines.tools,
        devices=tuple(d for d in instance.devices if d.startswith("GPU-")),
        device_kind=kind,  # type: ignore[arg-type]
        device_total_mb=min((d.total_mb for d in there), default=0),
        memory_mb=engine_mb(effect),
        weights_mb=effect.weights.size_mb,
        layers=layers,
        cache=str(cache(settings, engines, effect.function.engine, there)),
        scratch=scratch,
        engine_modules=str(ENGINE_MODULES),
        key_file=f"{scratch}.key",
    )


def overflows(effect: Spawn) -> bool:
    """Whether the weights are more than what was placed, so that it matters how many layers they have."""
    placed = effect.instance.memory_mb * max(1, len(effect.instance.devices))
    return effect.function.engine is Engine.LLAMACPP and effect.weights.size_mb > placed


def engine_mb(effect: Spawn) -> int:
    """Return what the engine is told it may take of each device.

    What was measured is what an engine that fills its share took together with what it does not count: told that,
    it would take more with each start.
    """
    placed = effect.instance
    if effect.function.engine is Engine.VLLM and placed.memory_from == "measured":
        return min(placed.memory_mb, need(effect.function, effect.weights).memory_mb)
    return placed.memory_mb


def cache(settings: Agent, engines: Engines, engine: Engine, devices: Sequence[Device]) -> PurePath:
    """Return the folder for what one build of an engine compiled for one kind of device."""
    build = engines.builds.get(engine, engines.versions.get(engine, ""))
    kind = devices[0].name if devices else "cpu"
    return PurePath(settings.cache_dir) / "engines" / slug(f"{engine}-{build}") / slug(kind)
