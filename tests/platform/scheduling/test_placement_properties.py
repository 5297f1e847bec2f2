"""Placement holds its rules on every host, by trying hosts small enough to try everything."""

from itertools import combinations
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.record import Device, HostRecord, Instance, Use, used_instance
from cortex.platform.scheduling.eviction import RESIDENCY_S, displaceable
from cortex.platform.scheduling.placement import (
    Need,
    NoRoom,
    Placement,
    place,
)
from tests.support.factories import a_device, a_host, a_need, an_instance

NOW = 1000.0
LEAVING = (State.DRAINING, State.STOPPING, State.RECLAIMING)


class Scene:
    """One host with some instances, the reports about them, and a need."""

    def __init__(self, host: HostRecord, reports: Use, wanted: Need, strategy: str) -> None:
        self.host, self.reports, self.wanted, self.strategy = host, reports, wanted, strategy

    def __repr__(self) -> str:
        return f"{self.host}\n{self.reports}\n{self.wanted}\n{self.strategy}"

    def place(self) -> Placement | NoRoom:
        return place(self.wanted, self.host, self.reports, NOW, strategy=self.strategy)

    def victims(self) -> list[Instance]:
        return [
            i
            for i in self.host.instances
            if displaceable(i, self.wanted.priority, self.reports, NOW, strategy=self.strategy)
        ]

    def worth(self, instance: Instance) -> tuple[int, float, str]:
        by_class = instance.priority if self.strategy == "priority" else 0
        return (by_class, self.reports.last_used(instance), instance.id)

    def fits(self, devices: tuple[str, ...], gone: tuple[Instance, ...]) -> bool:
        """Whether the need fits on these devices once those that leave, and `gone`, are gone."""
        stay = [i for i in self.host.instances if i.state not in LEAVING and i not in gone]
        return all(load(d, stay) + self.wanted.memory_mb <= room(d) for d in self.on(devices))

    def on(self, devices: tuple[str, ...]) -> list[Device]:
        return [d for d in self.host.devices if d.id in devices]

    def grown(self, mb: int) -> "Scene":
        """The same, with so much more on every device that the need would fit on, were it empty."""
        devices = [
            replace(d, total_mb=d.total_mb + mb)
            if d.budget_mb >= self.wanted.memory_mb and d.total_mb >= self.wanted.device_total_mb
            else d
            for d in self.host.devices
        ]
        return Scene(replace(self.host, devices=tuple(devices)), self.reports, self.wanted, self.strategy)

    def ways(self) -> list[tuple[Instance, ...]]:
        """Every set of victims that makes room somewhere."""
        able = [d.id for d in self.host.devices if d.total_mb >= self.wanted.device_total_mb]
        return [
            gone
            for size in range(len(self.victims()) + 1)
            for gone in combinations(self.victims(), size)
            if any(self.fits(devices, gone) for devices in combinations(able, self.wanted.devices))
        ]


def room(device: Device) -> int:
    return device.budget_mb - device.foreign_mb


def load(device: Device, instances: list[Instance]) -> int:
    return sum(i.memory_mb for i in instances if device.id in i.devices)


RESIDENTS = st.tuples(
    st.sampled_from([State.READY] * 8 + [State.PLACING, State.STARTING, *LEAVING]),
    st.integers(1, 4),  # memory
    st.integers(0, 6),  # devices, as bits
    st.sampled_from([0.0, 0.0, 0.0, 0.0, NOW - 20, NOW - 5]),  # ready
    st.sampled_from([0.0, 0.0, NOW - 4, NOW - 2, NOW - 1]),  # last used
    st.sampled_from(["", "", "", "", "", "busy", "pinned"]),
    st.integers(0, 2),  # priority
)


def scene_of(
    sizes: list[int],
    foreign: list[int],
    residents: list[Any],
    memory_mb: int,
    wide: bool,
    floor: int,
    strategy: str,
) -> Scene:
    """Take in the residents one by one, as far as one host can come to hold them."""
    devices = tuple(
        replace(a_device(f"gpu-{n}", size, reserve_mb=n), foreign_mb=foreign_mb)
        for n, (size, foreign_mb) in enumerate(zip(sizes, foreign, strict=False))
    )
    instances: list[Instance] = []
    reports = Use()
    for n, (state, mb, bits, ready, last_used, trait, priority) in enumerate(residents):
        instance = an_instance(
            f"i{n}",
            function=f"f{n}",
            state=state,
            ready=ready,
            memory_mb=mb,
            devices=tuple(d.id for k, d in enumerate(devices) if (bits + 1) >> k & 1) or ("gpu-0",),
            pinned=trait == "pinned",
            priority=priority,
        )
        # A placing one may count on room that is being given up; all others are there together.
        admitted = [i for i in [*instances, instance] if i.state not in LEAVING]
        present = [i for i in [*instances, instance] if i.state is not State.PLACING]
        if all(load(d, group) <= room(d) for d in devices for group in (admitted, present)):
            instances.append(instance)
            reports.used[used_instance(instance.id)] = last_used
            reports.in_flight.update({instance.id: 1} if trait == "busy" else {})
    wanted = a_need(memory_mb, devices=min(len(devices), 1 + wide), device_total_mb=floor, priority=min(2, memory_mb))
    return Scene(a_host(*instances, devices=devices), reports, wanted, strategy)


SCENES = st.builds(
    scene_of,
    sizes=st.lists(st.integers(4, 9), min_size=1, max_size=3),
    foreign=st.lists(st.sampled_from([0, 0, 0, 1]), min_size=3, max_size=3),
    residents=st.lists(RESIDENTS, min_size=2, max_size=7),
    memory_mb=st.integers(1, 6),
    wide=st.booleans(),
    floor=st.sampled_from([0, 0, 6]),
    strategy=st.sampled_from(["lru", "priority"]),
)


SELDOM = settings(max_examples=30, suppress_health_check=[HealthCheck.filter_too_much])
"""For what is true of few scenes only."""


@given(SCENES)
def test_no_budget_is_exceeded_once_all_it_waits_for_are_gone(scene: Scene) -> None:
    placement = scene.place()
    assume(isinstance(placement, Placement))
    assert isinstance(placement, Placement)

    stay = [i for i in scene.host.instances if i.id not in placement.waits_for]
    assert len(set(placement.devices)) == scene.wanted.devices
    for device in scene.on(placement.devices):
        assert device.total_mb >= scene.wanted.device_total_mb
        assert load(device, stay) + placement.memory_mb <= room(device)


@given(SCENES)
def test_a_start_waits_only_for_leaving_instances(scene: Scene) -> None:
    placement = scene.place()
    assume(isinstance(placement, Placement))
    assert isinstance(placement, Placement)

    leaving = {i.id for i in scene.host.instances if i.state in LEAVING}
    assert set(placement.evict) <= set(placement.waits_for) <= leaving.union(placement.evict)


@given(SCENES)
def test_no_busy_pinned_or_protected_instance_is_a_victim(scene: Scene) -> None:
    placement = scene.place()
    assume(isinstance(placement, Placement))
    assert isinstance(placement, Placement)

    victims = [i for i in scene.host.instances if i.id in placement.evict]
    assert not [v for v in victims if v.pinned or v.id in scene.reports.in_flight]
    assert {v.state for v in victims} <= {State.READY}
    assert not [v for v in victims if NOW - v.ready < RESIDENCY_S]


@settings(max_examples=100)
@given(SCENES)
def test_it_is_placed_if_and_only_if_some_set_of_idle_victims_could_make_room(scene: Scene) -> None:
    assert isinstance(scene.place(), Placement) is bool(scene.ways())


@given(SCENES)
def test_the_most_valuable_victim_is_worth_as_little_as_can_be(scene: Scene) -> None:
    placement, ways = scene.place(), scene.ways()
    assume(isinstance(placement, Placement))
    assert isinstance(placement, Placement)

    victims = [i for i in scene.host.instances if i.id in placement.evict]
    cheapest = min(max(map(scene.worth, way), default=(-1, 0.0, "")) for way in ways)
    assert max(map(scene.worth, victims), default=(-1, 0.0, "")) == cheapest


@SELDOM
@given(SCENES)
def test_no_victim_could_have_been_spared(scene: Scene) -> None:
    placement = scene.place()
    assume(isinstance(placement, Placement) and placement.evict)
    assert isinstance(placement, Placement)

    victims = tuple(i for i in scene.host.instances if i.id in placement.evict)
    for spared in victims:
        assert not scene.fits(placement.devices, tuple(v for v in victims if v is not spared))


@SELDOM
@given(SCENES)
def test_by_how_much_it_does_not_fit_is_exact(scene: Scene) -> None:
    refusal = scene.place()
    assume(isinstance(refusal, NoRoom) and "does not fit" in refusal.reason)
    assert isinstance(refusal, NoRoom)

    assert isinstance(scene.grown(refusal.short_by_mb - 1).place(), NoRoom)
    assert isinstance(scene.grown(refusal.short_by_mb).place(), Placement)


@given(SCENES)
def test_a_need_with_a_minimum_is_placed_wherever_the_minimum_fits(scene: Scene) -> None:
    least = max(1, scene.wanted.memory_mb // 2)
    smallest = Scene(scene.host, scene.reports, replace(scene.wanted, memory_mb=least), scene.strategy).place()
    result = Scene(scene.host, scene.reports, replace(scene.wanted, least_mb=least), scene.strategy).place()

    assert isinstance(result, Placement) is isinstance(smallest, Placement)
    if isinstance(result, Placement):
        assert least <= result.memory_mb <= scene.wanted.memory_mb
        stay = [i for i in scene.host.instances if i.id not in result.waits_for]
        assert all(load(d, stay) + result.memory_mb <= room(d) for d in scene.on(result.devices))


@given(SCENES, st.randoms(use_true_random=False))
def test_the_order_of_instances_and_devices_makes_no_difference(scene: Scene, random: Any) -> None:
    instances, devices = list(scene.host.instances), list(scene.host.devices)
    random.shuffle(instances)
    random.shuffle(devices)

    shuffled = replace(scene.host, instances=tuple(instances), devices=tuple(devices))

    assert Scene(shuffled, scene.reports, scene.wanted, scene.strategy).place() == scene.place()
