"""LaunchContext follows the placement; an engine never gets a higher limit than was placed."""

from typing import Any

from cortex.functions.launch import LaunchContext
from cortex.functions.spec import Engine, Function
from cortex.platform.host.engines import Engines
from cortex.platform.scheduling.effects import Spawn
from cortex.platform.scheduling.placement import need
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Agent
from cortex.platform.workers.launch_context import exceeds_placement, launch_context
from tests.support.factories import a_device, an_instance

HERE = LocalWeights("/cache/model", 1000)
ENGINES = Engines({"vllm": "0.32.0"}, {"vllm": ("vllm", "serve")}, {"vllm": "vllm-0.32.0-torch-2.13.0"})


def made(function: Function, devices: Any, **placed: Any) -> LaunchContext:
    instance = an_instance(devices=tuple(d.id for d in devices), **placed)
    effect = Spawn(instance, function, HERE)
    return launch_context(effect, Agent(cache_dir="/cache"), ENGINES, devices, port=1, key="k", scratch="/run/one")


def test_the_smallest_of_several_devices_sets_the_share() -> None:
    here = made(Function(id="m", engine=Engine.VLLM), [a_device("GPU-0", 24_000), a_device("GPU-1", 16_000)])

    assert (here.device_kind, here.device_total_mb, here.devices) == ("gpu", 16_000, ("GPU-0", "GPU-1"))


def test_a_declared_gpu_without_uuid_is_a_gpu_but_not_passed_to_the_worker() -> None:
    here = made(Function(id="m", engine=Engine.VLLM), [a_device("gpu-0", 24_000)])

    assert (here.device_kind, here.devices) == ("gpu", ())


def test_the_compile_cache_is_separate_by_build_and_kind_of_device() -> None:
    here = made(Function(id="m", engine=Engine.VLLM), [a_device("cpu", kind="cpu")])

    assert here.cache == "/cache/engines/vllm-vllm-0.32.0-torch-2.13.0/cpu"


def test_an_engine_that_fills_its_limit_gets_the_requested_memory_not_the_measured_one() -> None:
    function = Function(id="m", engine=Engine.VLLM, vram_mb=4000)

    here = made(function, [a_device("GPU-0")], memory_mb=4700, memory_from="measured")

    assert here.memory_mb == 4000


def test_the_limit_of_an_engine_that_fills_it_is_stable_across_starts() -> None:
    function = Function(id="m", engine=Engine.VLLM, vram_mb=4000)

    assert (need(function, HERE, 2500).memory_mb, need(function, HERE, 2500).memory_from) == (4000, "declared")
    assert (need(function, HERE, 4700).memory_mb, need(function, HERE, 4700).memory_from) == (4700, "measured")


def test_layers_matter_only_when_the_weights_exceed_the_placement() -> None:
    function = Function(id="m", engine=Engine.LLAMACPP)

    assert exceeds_placement(Spawn(an_instance(memory_mb=900), function, HERE))
    assert not exceeds_placement(Spawn(an_instance(memory_mb=900, devices=("gpu-0", "gpu-1")), function, HERE))
    assert not exceeds_placement(Spawn(an_instance(memory_mb=1500), function, HERE))
