"""LaunchContext follows the placement; an engine never gets a higher limit than was placed."""

from typing import Any

import pytest

from cortex.functions.launch import LaunchContext, launch
from cortex.functions.spec import Engine, Function
from cortex.platform.host.engines import Engines
from cortex.platform.scheduling.effects import Spawn
from cortex.platform.scheduling.ledger import beside_cache_mb, placement_mb, with_memory
from cortex.platform.scheduling.placement import need
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Agent
from cortex.platform.workers.launch_context import exceeds_placement, launch_context
from tests.support.factories import a_device, an_instance

HERE = LocalWeights("/cache/model", 1000)
ENGINES = Engines({"vllm": "0.32.0"}, {"vllm": ("vllm", "serve")}, {"vllm": "vllm-0.32.0-torch-2.13.0"})


def a_context(function: Function, devices: Any, **placed: Any) -> LaunchContext:
    instance = an_instance(devices=tuple(d.id for d in devices), **placed)
    effect = Spawn(instance, function, HERE)
    return launch_context(effect, Agent(cache_dir="/cache"), ENGINES, devices, port=1, key="k", scratch="/run/one")


def test_the_smallest_of_several_devices_sets_the_share() -> None:
    here = a_context(Function(id="m", engine=Engine.VLLM), [a_device("GPU-0", 24_000), a_device("GPU-1", 16_000)])

    assert (here.device_kind, here.device_total_mb, here.devices) == ("gpu", 16_000, ("GPU-0", "GPU-1"))


def test_a_declared_gpu_without_uuid_is_a_gpu_but_not_passed_to_the_worker() -> None:
    here = a_context(Function(id="m", engine=Engine.VLLM), [a_device("gpu-0", 24_000)])

    assert (here.device_kind, here.devices) == ("gpu", ())


def test_the_compile_cache_is_separate_by_build_and_kind_of_device() -> None:
    here = a_context(Function(id="m", engine=Engine.VLLM), [a_device("cpu", kind="cpu")])

    assert here.cache == "/cache/engines/vllm-vllm-0.32.0-torch-2.13.0/cpu"


def test_an_engine_that_fills_its_limit_gets_the_requested_memory_not_the_measured_one() -> None:
    function = Function(id="m", engine=Engine.VLLM, vram_mb=4000)

    here = a_context(function, [a_device("GPU-0")], memory_mb=4700, memory_from="measured")

    assert here.memory_mb == 4000


def test_the_limit_of_an_engine_that_fills_it_is_stable_across_starts() -> None:
    function = Function(id="m", engine=Engine.VLLM, vram_mb=4000)

    assert (need(function, HERE, 2500).memory_mb, need(function, HERE, 2500).memory_from) == (4000, "declared")
    assert (need(function, HERE, 4700).memory_mb, need(function, HERE, 4700).memory_from) == (4700, "measured")


class SimulatedVllm:
    """The device memory that vLLM takes for its arguments: it fills its share or reserves the named cache, and takes
    `outside_mb` beside."""

    def __init__(self, weights_mb: int, activations_mb: int, outside_mb: int, total_mb: int) -> None:
        self.weights_mb, self.activations_mb, self.outside_mb = weights_mb, activations_mb, outside_mb
        self.total_mb = total_mb

    def starts(self, argv: tuple[str, ...]) -> tuple[int, int]:
        """Return the memory of the device that it takes, and its cache."""
        own_mb = self.weights_mb + self.activations_mb
        if "--kv-cache-memory-bytes" in argv:
            cache_mb = int(argv[argv.index("--kv-cache-memory-bytes") + 1]) >> 20
        else:
            cache_mb = int(float(argv[argv.index("--gpu-memory-utilization") + 1]) * self.total_mb) - own_mb
        assert cache_mb > 0
        return own_mb + cache_mb + self.outside_mb, cache_mb


@pytest.mark.parametrize(
    ("weights_mb", "vram_mb", "args", "outside_mb"),
    [
        (1126, 12_000, (), 2158),
        (1126, 12_000, ("--enforce-eager",), 1650),
        (1126, 79_074, ("--enforce-eager",), 1328),
        (15_667, 27_915, ("--enforce-eager",), 1143),
        (15_667, 27_915, (), 1700),
    ],
)
def test_vllm_takes_no_more_than_was_placed_at_its_first_start_and_just_that_from_the_second_on(
    weights_mb: int, vram_mb: int, args: tuple[str, ...], outside_mb: int
) -> None:
    """By what 0.26 took beside its share on an H200."""
    device = a_device("GPU-0", 143_771)
    function = Function(id="m", engine=Engine.VLLM, vram_mb=vram_mb, context=4096, args=args)
    engine = SimulatedVllm(weights_mb, 900, outside_mb, device.total_mb)
    weights, entry, usage = LocalWeights("/cache/model", weights_mb), None, []

    for start in range(4):
        measured = placement_mb(entry, vram_mb)
        requirement = need(function, weights, measured)
        instance = an_instance(devices=("GPU-0",), memory_mb=requirement.memory_mb, memory_from=requirement.memory_from)
        effect = Spawn(instance, function, weights, beside_cache_mb(entry, 1))
        context = launch_context(effect, Agent(), ENGINES, [device], port=1, key="k", scratch="/run/one")
        memory_mb, cache_mb = engine.starts(launch(function, context).argv)
        usage.append((memory_mb, requirement.memory_mb))
        entry = with_memory(entry, memory_mb, 1000.0 + start, start=float(start), cache_mb=cache_mb) or entry

    assert all(memory_mb <= placed_mb for memory_mb, placed_mb in usage)
    assert all(placed_mb - memory_mb <= 256 for memory_mb, placed_mb in usage[1:])


def test_a_declaration_below_what_vllm_needs_is_placed_by_the_measurement_from_the_second_start_on() -> None:
    device = a_device("GPU-0", 24_000)
    function = Function(id="m", engine=Engine.VLLM, vram_mb=5000, context=4096)
    weights, engine = LocalWeights("/cache/model", 3000), SimulatedVllm(3000, 900, 2000, device.total_mb)
    first = Spawn(an_instance(devices=("GPU-0",), memory_mb=5000), function, weights)
    context = launch_context(first, Agent(), ENGINES, [device], port=1, key="k", scratch="/run/one")
    memory_mb, cache_mb = engine.starts(launch(function, context).argv)
    entry = with_memory(None, memory_mb, 1000.0, cache_mb=cache_mb)

    requirement = need(function, weights, placement_mb(entry, 5000))
    instance = an_instance(devices=("GPU-0",), memory_mb=requirement.memory_mb, memory_from=requirement.memory_from)
    second = Spawn(instance, function, weights, beside_cache_mb(entry, 1))
    context = launch_context(second, Agent(), ENGINES, [device], port=1, key="k", scratch="/run/one")

    assert (requirement.memory_mb, requirement.memory_from) == (memory_mb, "measured")
    assert memory_mb > 5000
    assert engine.starts(launch(function, context).argv)[0] <= memory_mb


def test_a_cache_is_named_only_for_vllm_on_a_gpu() -> None:
    devices = [a_device("GPU-0", 24_000)]

    def named(engine: Engine, devices: Any) -> int:
        effect = Spawn(an_instance(devices=(devices[0].id,)), Function(id="m", engine=engine), HERE, 900)
        return launch_context(effect, Agent(), ENGINES, devices, port=1, key="k", scratch="/run/one").cache_mb

    assert named(Engine.VLLM, devices) > 0
    assert named(Engine.LLAMACPP, devices) == 0
    assert named(Engine.VLLM, [a_device("cpu", kind="cpu")]) == 0


def test_layers_matter_only_when_the_weights_exceed_the_placement() -> None:
    function = Function(id="m", engine=Engine.LLAMACPP)

    assert exceeds_placement(Spawn(an_instance(memory_mb=900), function, HERE))
    assert not exceeds_placement(Spawn(an_instance(memory_mb=900, devices=("gpu-0", "gpu-1")), function, HERE))
    assert not exceeds_placement(Spawn(an_instance(memory_mb=1500), function, HERE))
