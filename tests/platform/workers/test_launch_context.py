"""A launch_context is put together from the placement, and an engine is never told more than was placed."""

from typing import Any

from cortex.functions.launch import LaunchContext
from cortex.functions.spec import Engine, Function
from cortex.platform.host.engines import Engines
from cortex.platform.scheduling.effects import Spawn
from cortex.platform.scheduling.placement import need
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Agent
from cortex.platform.workers.launch_context import launch_context, overflows
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


def test_a_declared_gpu_is_a_gpu_that_the_worker_is_not_told_of() -> None:
    here = made(Function(id="m", engine=Engine.VLLM), [a_device("gpu-0", 24_000)])

    assert (here.device_kind, here.devices) == ("gpu", ())


def test_what_an_engine_compiled_is_kept_by_build_and_kind_of_device() -> None:
    here = made(Function(id="m", engine=Engine.VLLM), [a_device("cpu", kind="cpu")])

    assert here.cache == "/cache/engines/vllm-vllm-0.32.0-torch-2.13.0/cpu"


def test_an_engine_that_fills_its_share_is_told_what_was_meant_not_what_it_took() -> None:
    function = Function(id="m", engine=Engine.VLLM, vram_mb=4000)

    here = made(function, [a_device("GPU-0")], memory_mb=4700, memory_from="measured")

    assert here.memory_mb == 4000


def test_an_engine_that_fills_its_share_neither_shrinks_nor_grows_with_each_start() -> None:
    function = Function(id="m", engine=Engine.VLLM, vram_mb=4000)

    assert (need(function, HERE, 2500).memory_mb, need(function, HERE, 2500).memory_from) == (4000, "declared")
    assert (need(function, HERE, 4700).memory_mb, need(function, HERE, 4700).memory_from) == (4700, "measured")


def test_layers_matter_only_where_the_weights_are_more_than_was_placed() -> None:
    function = Function(id="m", engine=Engine.LLAMACPP)

    assert overflows(Spawn(an_instance(memory_mb=900), function, HERE))
    assert not overflows(Spawn(an_instance(memory_mb=900, devices=("gpu-0", "gpu-1")), function, HERE))
    assert not overflows(Spawn(an_instance(memory_mb=1500), function, HERE))
