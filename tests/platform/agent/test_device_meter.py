"""Who used a host's GPUs, by a recorded energy counter."""

from collections.abc import Iterable

import pytest

from cortex.platform.agent.device_meter import KEEP_S, DeviceMeter
from cortex.platform.record import Device, DeviceUse, Instance, RouterReport
from tests.support.factories import a_device, an_instance

COUNTER = (5_000_000, 5_301_277, 5_602_998, 5_902_301)
"""Millijoules that a GPU at 60 W reports every 5 s."""


def gpu(energy_mj: int | None, id: str = "gpu-0") -> Device:
    return a_device(id, energy_mj=energy_mj)


def report(router: str, in_flight: int = 0, **tokens: int) -> RouterReport:
    """Return a report of tokens per instance, with this number of requests in flight at each."""
    return RouterReport(id=router, in_flight=dict.fromkeys(tokens, in_flight), tokens=tokens)


def sample(
    meter: DeviceMeter, at: float, devices: Iterable[Device], *reports: RouterReport, instances: Iterable[Instance]
) -> None:
    meter.sample(devices, instances, {r.id: r for r in reports}, at)


ONE = (an_instance("i", devices=("gpu-0",)),)


def test_the_energy_of_requests_is_the_growth_of_the_counter() -> None:
    meter = DeviceMeter()
    for n, counter in enumerate(COUNTER):
        sample(meter, 5.0 * n, [gpu(counter)], report("r1", i=100 * n), report("r2", i=33 * n), instances=ONE)

    uses = [use["i"] for use in meter.use.values()]
    assert sum(use.mj for use in uses) == COUNTER[-1] - COUNTER[0]
    assert sum(use.gpu_ms for use in uses) == 15_000
    assert meter.use["r1"]["i"].mj == pytest.approx(902_301 * 100 / 133, abs=3)


def test_without_tokens_the_requests_in_flight_count() -> None:
    meter = DeviceMeter()
    sample(meter, 0.0, [gpu(0)], instances=ONE)
    sample(meter, 1.0, [gpu(400)], report("r1", 3, i=0), report("r2", 1, i=0), instances=ONE)

    assert meter.use == {"r1": {"i": DeviceUse(750, 300)}, "r2": {"i": DeviceUse(250, 100)}}


def test_an_idle_gpus_energy_belongs_to_none() -> None:
    meter = DeviceMeter()
    sample(meter, 0.0, [gpu(0)], report("r1", i=7), instances=ONE)
    sample(meter, 1.0, [gpu(400)], report("r1", i=7), instances=ONE)

    assert meter.use == {}


def test_instances_on_one_gpu_share_it_and_those_on_two_have_both() -> None:
    meter = DeviceMeter()
    instances = (an_instance("small", devices=("gpu-0",)), an_instance("wide", devices=("gpu-0", "gpu-1")))
    for n in range(2):
        devices = [gpu(1000 * n), gpu(500 * n, "gpu-1")]
        sample(meter, float(n), devices, report("r1", small=30 * n, wide=10 * n), instances=instances)

    assert meter.use["r1"] == {"small": DeviceUse(750, 750), "wide": DeviceUse(250 + 1000, 250 + 500)}


def test_a_counter_that_is_silent_is_made_up_for_and_one_that_was_reset_counts_on() -> None:
    meter = DeviceMeter()
    for n, counter in enumerate((1000, None, 1700, 20, 50)):
        sample(meter, float(n), [gpu(counter)], report("r1", 1, i=n), instances=ONE)

    assert meter.use["r1"]["i"].mj == 700 + 30


def test_a_gpu_without_a_counter_and_a_cpu_have_no_energy() -> None:
    meter = DeviceMeter()
    instances = (*ONE, an_instance("c", devices=("cpu",)))
    for n in range(2):
        devices = [gpu(None), a_device("cpu", kind="cpu")]
        sample(meter, float(n), devices, report("r1", i=n, c=n), instances=instances)

    assert meter.use == {"r1": {"i": DeviceUse(1000, 0)}}


def test_what_routers_and_instances_used_is_dropped_when_they_are_gone() -> None:
    meter = DeviceMeter()
    for n in range(2):
        sample(meter, float(n), [gpu(n)], report("r1", i=n), report("r2", i=n), instances=ONE)

    sample(meter, 2.0, [gpu(2)], report("r2", i=2), instances=())
    soon = dict(meter.use)
    sample(meter, 1.0 + KEEP_S, [gpu(2)], report("r2", i=2), instances=())

    assert soon.keys() == {"r1", "r2"}
    assert meter.use == {}


def test_a_router_whose_report_is_missing_once_goes_on_from_its_last_one() -> None:
    meter = DeviceMeter()
    sample(meter, 0.0, [gpu(0)], report("r1", i=5_000_000), report("r2", i=100), instances=ONE)
    sample(meter, 1.0, [gpu(0)], report("r2", i=200), instances=ONE)
    sample(meter, 2.0, [gpu(400)], report("r1", i=5_000_100), report("r2", i=500), instances=ONE)

    assert meter.use == {"r1": {"i": DeviceUse(250, 100)}, "r2": {"i": DeviceUse(1750, 300)}}


def test_what_a_router_counted_before_the_agent_knew_it_is_not_the_use_of_an_interval() -> None:
    meter = DeviceMeter()
    sample(meter, 0.0, [gpu(0)], report("r2", i=0), instances=ONE)
    sample(meter, 1.0, [gpu(400)], report("r1", i=5_000_000), report("r2", i=10), instances=ONE)

    assert meter.use == {"r2": {"i": DeviceUse(1000, 400)}}
