"""Builds the LaunchContext, the host's side of a worker's command line. Pure."""

from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

from msgspec.structs import replace

from cortex.functions.estimate import estimate
from cortex.functions.launch import LaunchContext, vllm
from cortex.functions.names import slug
from cortex.functions.spec import Engine, Function
from cortex.platform.host.engines import Engines
from cortex.platform.record import Device
from cortex.platform.scheduling.effects import Spawn
from cortex.platform.scheduling.placement import need
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Agent

ENGINE_MODULES = PurePath(__file__).with_name("engine_modules")
"""The folder of cortex modules that an engine's own Python imports."""
LAUNCHER_ENV = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ENGINE_MODULES), **vllm.ALWAYS}
"""Import-time variables that every vLLM of local weights has."""


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
    control_key: str = "",
    sleeps: bool = False,
    adapters: Sequence[str] = (),
    adapter_rank: int = 0,
    tricks_off: Collection[str] = (),
) -> LaunchContext:
    """Return the address, devices, memory and paths for an instance."""
    instance = effect.instance
    placed = [d for d in devices if d.id in instance.devices]
    kind = "gpu" if any(d.kind == "gpu" for d in placed) else "cpu"
    return LaunchContext(
        host=settings.worker_host.strip("[]"),
        port=port,
        weights=effect.weights.path,
        key=key,
        tools=engines.tools,
        devices=tuple(d for d in instance.devices if d.startswith("GPU-")),
        device_kind=kind,  # type: ignore[arg-type]  # a literal of two
        device_total_mb=min((d.total_mb for d in placed), default=0),
        memory_mb=engine_mb(effect),
        least_mb=estimate(effect.function, effect.weights.size_mb, effect.weights.shape).least_mb,
        cache_mb=cache_mb(effect) if kind == "gpu" else 0,
        version=engines.versions.get(effect.function.engine, ""),
        weights_mb=effect.weights.size_mb,
        layers=layers,
        cache=str(cache_of(effect, settings, engines, devices)),
        scratch=scratch,
        engine_modules=str(ENGINE_MODULES),
        key_file=f"{scratch}.key",
        control_key=control_key,
        sleeps=sleeps,
        adapters=tuple(adapters),
        adapter_rank=adapter_rank,
        mode=instance.start_mode,
        tricks_off=tricks_off,
    )


def with_local_paths(function: Function, weights: LocalWeights) -> Function:
    """Return a function whose template and vision encoder are paths of this host."""
    mmproj = weights.mmproj or function.mmproj
    return replace(function, chat_template=_at_home(function.chat_template), mmproj=_at_home(mmproj))


def _at_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def exceeds_placement(effect: Spawn) -> bool:
    """Return whether the weights exceed the placed memory, so that their layer count matters."""
    budget_mb = effect.instance.memory_mb * max(1, len(effect.instance.devices))
    return effect.function.engine is Engine.LLAMACPP and effect.weights.size_mb > budget_mb


def engine_mb(effect: Spawn) -> int:
    """Return the memory limit per device for the engine, in MiB.

    A measurement of vLLM, which fills its limit, includes memory that vLLM does not count. Used as the limit, it would
    grow with each start.
    """
    instance = effect.instance
    if effect.function.engine is Engine.VLLM and instance.memory_from == "measured":
        return min(instance.memory_mb, need(effect.function, effect.weights).memory_mb)
    return instance.memory_mb


def cache_mb(effect: Spawn) -> int:
    """Return the KV cache per device that fills the engine's limit, by the measured memory beside the cache; at least
    one request's where the placement has room for it. 0: unknown."""
    if effect.function.engine is not Engine.VLLM or not effect.beside_cache_mb:
        return 0
    guess = estimate(effect.function, effect.weights.size_mb, effect.weights.shape)
    single_mb = guess.least_mb - -(-(guess.weights_mb + guess.overhead_mb) // guess.devices)
    beside_mb = effect.beside_cache_mb
    return max(0, engine_mb(effect) - beside_mb, min(effect.instance.memory_mb - beside_mb, single_mb))


def cache_of(effect: Spawn, settings: Agent, engines: Engines, devices: Sequence[Device]) -> PurePath:
    """Return the compile cache's folder for one build of an engine and one kind of device."""
    engine = effect.function.engine
    build = engines.builds.get(engine, engines.versions.get(engine, ""))
    kind = next((d.name for d in devices if d.id in effect.instance.devices), "cpu")
    return PurePath(settings.cache_dir) / "engines" / slug(f"{engine}-{build}") / slug(kind)
