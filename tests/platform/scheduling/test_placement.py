"""Where an instance goes and which instances it displaces: a table per numbered case."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.estimate import Shape
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine
from cortex.platform.record import Device, Held, Instance, Tier, Use, used_instance
from cortex.platform.scheduling.placement import (
    Need,
    NoRoom,
    Placement,
    When,
    misfit,
    need,
    place,
)
from cortex.platform.scheduling.saved_state import LocalWeights
from tests.support.factories import a_device, a_function, a_host, a_need, an_instance

NOW = 1000.0
IDLE = Use()
LEAVING = (State.DRAINING, State.STOPPING, State.RECLAIMING)


def used(**when: float) -> Use:
    """Reports in which these instances were last used then."""
    return Use(used={used_instance(instance): at for instance, at in when.items()})


# What a function needs.


@pytest.mark.parametrize(
    ("declared", "weights", "measured", "per_device"),
    [
        ({"vram_mb": 5000}, 1000, 4000, 4000),
        ({"vram_mb": 5000}, 1000, None, 5000),
        ({"vram_mb": 0}, 1000, None, 1712),
        ({"vram_mb": 0}, None, None, 512),
        ({"vram_mb": 5000, "min_devices": 2}, None, None, 2500),
        ({"vram_mb": 5001, "min_devices": 2}, None, None, 2501),
    ],
)
def test_measured_beats_declared_beats_estimated(
    declared: dict[str, Any], weights: int | None, measured: int | None, per_device: int
) -> None:
    here = LocalWeights("/w", weights) if weights else None

    assert need(a_function(**declared), here, measured).memory_mb == per_device


SHAPE = Shape(numbers_per_token=32 * 1024)  # 64 KiB a token


@pytest.mark.parametrize(
    ("declared", "measured", "needed"),
    [
        ({"context": 1024}, None, (1000 + 8 * 64 + 3072, "estimated")),  # as `cortex fn estimate` says
        ({"context": 32_768}, None, (9_500, "estimated")),  # a smaller cache than its 16 GiB will do
        ({"context": 32_768}, 9_400, (9_500, "estimated")),  # it filled less than it was given
        ({"context": 32_768}, 9_900, (9_500, "measured")),  # it took more than it was given, and fitted
        ({"context": 1024, "vram_mb": 20_000}, None, (20_000, "declared")),  # a declaration overrides an estimate
    ],
)
def test_an_estimate_is_capped_at_the_budget_of_a_device(
    declared: dict[str, Any], measured: int | None, needed: tuple[int, str]
) -> None:
    function = a_function(engine=Engine.VLLM, **{"vram_mb": 0, **declared})
    devices = [a_device("gpu-0", 10_000, reserve_mb=500), a_device("gpu-1", 8_000)]

    result = need(function, LocalWeights("/w", 1000, SHAPE), measured, devices)

    assert (result.memory_mb, result.memory_from) == needed


def test_vllm_would_do_with_the_cache_of_one_request_and_others_not() -> None:
    least = {
        engine: need(a_function(engine=engine, vram_mb=0, context=1024), LocalWeights("/w", 1000, SHAPE)).least_mb
        for engine in (Engine.VLLM, Engine.LLAMACPP)
    }
    declared = need(a_function(engine=Engine.VLLM, vram_mb=9000), LocalWeights("/w", 1000, SHAPE))

    assert least == {Engine.VLLM: 1000 + 64 + 3072, Engine.LLAMACPP: 0}
    assert declared.least_mb == 0


def test_a_need_has_the_fields_of_the_spec() -> None:
    function = a_function(min_devices=2, min_device_vram_mb=8000, pinned_on=("host-a",), priority=3)

    assert need(function, None) == Need(
        function="org/model",
        engine="fake",
        devices=2,
        device_total_mb=8000,
        memory_mb=500,
        memory_from="declared",
        pinned_on=("host-a",),
        priority=3,
    )


# What may be less than it would like.


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], Placement(devices=("gpu-0",), memory_mb=8000)),
        ([an_instance("idle", memory_mb=4000)], Placement(devices=("gpu-0",), memory_mb=6000)),
        (
            [an_instance("idle", memory_mb=8000)],
            Placement(devices=("gpu-0",), memory_mb=8000, evict=("idle",), waits_for=("idle",)),
        ),
        (
            [an_instance("idle", memory_mb=3000), an_instance("pinned", memory_mb=5000, pinned=True)],
            Placement(devices=("gpu-0",), memory_mb=5000, evict=("idle",), waits_for=("idle",)),
        ),
        (
            [an_instance("pinned", memory_mb=7000, pinned=True)],
            NoRoom(reason="does not fit by 5000 MiB: org/model is pinned", when=When.NEVER, short_by_mb=5000),
        ),
    ],
    ids=["all of it", "what is free", "all of it after an eviction", "what an eviction frees", "too little"],
)
def test_a_need_with_a_minimum_takes_free_memory_before_it_evicts(
    others: list[Instance], expected: Placement | NoRoom
) -> None:
    assert place(a_need(8000, least_mb=4000), a_host(*others), IDLE, NOW) == expected


def test_a_smaller_device_with_room_comes_before_an_eviction_on_a_larger_one() -> None:
    devices = (a_device("gpu-0", 10_000), a_device("gpu-1", 5_000))
    host = a_host(an_instance("idle", memory_mb=8000), devices=devices)

    assert place(a_need(8000, least_mb=4000), host, IDLE, NOW) == Placement(devices=("gpu-1",), memory_mb=5000)


def test_a_sleeper_shrinks_no_cache_where_its_leaving_makes_the_room() -> None:
    sleeper = an_instance("asleep", memory_mb=6000, state=State.SLEEPING, parked=Tier.SLEEP, parks_to=Tier.SLEEP)

    placement = place(a_need(9000, least_mb=4000), a_host(replace(sleeper, parked_mb=2000)), IDLE, NOW)

    assert isinstance(placement, Placement)
    assert (placement.memory_mb, placement.evict) == (9000, ("asleep",))


# (1) Hosts that may not take it.


def test_a_host_it_is_not_pinned_on_may_not_take_it() -> None:
    assert place(a_need(pinned_on=("host-b", "host-c")), a_host(), IDLE, NOW) == NoRoom(
        reason="pinned on host-b, host-c", when=When.NEVER
    )


def test_a_host_it_is_pinned_on_takes_it() -> None:
    assert isinstance(place(a_need(pinned_on=("host-b", "host-a")), a_host(), IDLE, NOW), Placement)


def test_a_cordoned_host_takes_nothing_for_now() -> None:
    assert place(a_need(), a_host(), IDLE, NOW, cordoned=True) == NoRoom(reason="the host is cordoned", when=When.LATER)


def test_a_host_without_its_labels_may_not_take_it() -> None:
    wanted = a_need(labels=("fast", "nvme", "zone-a"))

    assert place(wanted, a_host(labels=("fast",)), IDLE, NOW) == NoRoom(
        reason="lacks the label nvme, zone-a", when=When.NEVER
    )
    assert isinstance(place(wanted, a_host(labels=("zone-a", "nvme", "fast", "x")), IDLE, NOW), Placement)


def test_a_host_without_the_engine_may_not_take_it() -> None:
    assert place(a_need(), a_host(engines={"vllm": "1"}), IDLE, NOW) == NoRoom(
        reason="engine 'fake' is not there", when=When.NEVER
    )


# (2) Devices too few or too small.


@pytest.mark.parametrize(
    ("wanted", "devices", "refusal"),
    [
        (a_need(), (), NoRoom(reason="needs 1 devices, has 0", when=When.NEVER)),
        (a_need(devices=2), (a_device(),), NoRoom(reason="needs 2 devices, has 1", when=When.NEVER)),
        (
            a_need(device_total_mb=10_001),
            (a_device(),),
            NoRoom(reason="needs 1 devices of at least 10001 MiB, has 0", when=When.NEVER),
        ),
        (
            a_need(10_001),
            (a_device(), a_device("gpu-1", 8000)),
            NoRoom(
                reason="needs 10001 MiB per device, 1 MiB more than there can ever be",
                when=When.NEVER,
                short_by_mb=1,
            ),
        ),
        (
            a_need(9000, devices=2),
            (a_device(), a_device("gpu-1", 8000)),
            NoRoom(
                reason="needs 9000 MiB per device, 1000 MiB more than there can ever be",
                when=When.NEVER,
                short_by_mb=1000,
            ),
        ),
        (
            a_need(9500),
            (a_device(reserve_mb=1000),),
            NoRoom(
                reason="needs 9500 MiB per device, 500 MiB more than there can ever be",
                when=When.NEVER,
                short_by_mb=500,
            ),
        ),
    ],
)
def test_devices_too_few_or_too_small_are_so_for_good(
    wanted: Need, devices: tuple[Device, ...], refusal: NoRoom
) -> None:
    assert place(wanted, a_host(devices=devices), IDLE, NOW) == refusal


def test_a_misfit_does_not_depend_on_the_instances_of_the_host() -> None:
    full = an_instance(memory_mb=10_000, pinned=True)

    assert misfit(a_need(10_000), a_host(full)) is None
    assert misfit(a_need(10_001), a_host()) is not None


# (3) Free room.


def test_free_room_is_used_without_waiting() -> None:
    assert place(a_need(), a_host(), IDLE, NOW) == Placement(devices=("gpu-0",), memory_mb=1000)


def test_the_last_mebibyte_can_be_used() -> None:
    host = a_host(an_instance(memory_mb=9000))

    assert place(a_need(1000), host, IDLE, NOW) == Placement(devices=("gpu-0",), memory_mb=1000)


def test_the_device_that_it_fills_most_tightly_is_chosen() -> None:
    devices = (a_device("gpu-0", 10_000), a_device("gpu-1", 3000), a_device("gpu-2", 6000))

    assert place(a_need(2000), a_host(devices=devices), IDLE, NOW) == Placement(devices=("gpu-1",), memory_mb=2000)


def test_the_most_tightly_filled_of_several_devices_are_chosen() -> None:
    devices = (a_device("gpu-0", 10_000), a_device("gpu-1", 3000), a_device("gpu-2", 6000))

    assert place(a_need(2000, devices=2), a_host(devices=devices), IDLE, NOW) == Placement(
        devices=("gpu-1", "gpu-2"), memory_mb=2000
    )


@pytest.mark.parametrize("state", [State.PLACING, State.STARTING, State.READY])
def test_an_admitted_instance_takes_room(state: State) -> None:
    devices = (a_device("gpu-0", 5000), a_device("gpu-1", 6000))
    host = a_host(an_instance(state=state, memory_mb=4500), devices=devices)

    assert place(a_need(), host, IDLE, NOW) == Placement(devices=("gpu-1",), memory_mb=1000)


@pytest.mark.parametrize("state", LEAVING)
def test_the_room_of_a_leaving_instance_counts_but_the_start_waits_for_it(state: State) -> None:
    host = a_host(an_instance("leaver", state=state, memory_mb=9500))

    assert place(a_need(), host, IDLE, NOW) == Placement(devices=("gpu-0",), memory_mb=1000, waits_for=("leaver",))


@pytest.mark.parametrize("state", LEAVING)
def test_a_start_does_not_wait_for_a_leaving_instance_when_there_is_room_for_both(state: State) -> None:
    host = a_host(an_instance("leaver", state=state, memory_mb=9000))

    assert place(a_need(), host, IDLE, NOW) == Placement(devices=("gpu-0",), memory_mb=1000)


def test_room_that_is_free_now_is_preferred_to_room_of_a_leaving_instance() -> None:
    devices = (a_device("gpu-0", 5000), a_device("gpu-1", 6000))
    host = a_host(an_instance("leaver", state=State.DRAINING, memory_mb=5000), devices=devices)

    assert place(a_need(), host, IDLE, NOW) == Placement(devices=("gpu-1",), memory_mb=1000)


def test_weights_on_their_way_take_no_room_yet() -> None:
    host = a_host(an_instance(state=State.FETCHING, devices=(), memory_mb=0))

    assert place(a_need(10_000), host, IDLE, NOW) == Placement(devices=("gpu-0",), memory_mb=10_000)


# (4) Room after evicting idle instances.


def test_the_least_recently_used_is_evicted() -> None:
    host = a_host(an_instance("old", memory_mb=5000), an_instance("older", memory_mb=5000))

    assert place(a_need(), host, used(old=200.0, older=100.0), NOW) == Placement(
        devices=("gpu-0",), memory_mb=1000, evict=("older",), waits_for=("older",)
    )


def test_no_more_are_evicted_than_needed() -> None:
    host = a_host(an_instance("a", memory_mb=1000), an_instance("b", memory_mb=4000), an_instance("c", memory_mb=5000))

    placement = place(a_need(4000), host, used(a=1.0, b=2.0, c=3.0), NOW)

    assert placement == Placement(devices=("gpu-0",), memory_mb=4000, evict=("b",), waits_for=("b",))


def test_several_are_evicted_when_one_does_not_free_enough() -> None:
    host = a_host(an_instance("a", memory_mb=4000), an_instance("b", memory_mb=4000))

    assert place(a_need(9000), host, used(a=1.0, b=2.0), NOW) == Placement(
        devices=("gpu-0",), memory_mb=9000, evict=("a", "b"), waits_for=("a", "b")
    )


def test_the_device_with_the_least_valuable_victims_is_chosen() -> None:
    host = a_host(
        an_instance("recent", memory_mb=9500),
        an_instance("stale", memory_mb=9500, devices=("gpu-1",)),
        devices=(a_device("gpu-0"), a_device("gpu-1")),
    )

    assert place(a_need(), host, used(recent=900.0, stale=100.0), NOW) == Placement(
        devices=("gpu-1",), memory_mb=1000, evict=("stale",), waits_for=("stale",)
    )


def test_one_victim_may_free_several_devices() -> None:
    host = a_host(
        an_instance("wide", memory_mb=9500, devices=("gpu-0", "gpu-1")),
        devices=(a_device("gpu-0"), a_device("gpu-1")),
    )

    assert place(a_need(devices=2), host, IDLE, NOW) == Placement(
        devices=("gpu-0", "gpu-1"), memory_mb=1000, evict=("wide",), waits_for=("wide",)
    )


def test_a_start_waits_for_victims_and_for_leaving_instances() -> None:
    host = a_host(an_instance("leaver", state=State.STOPPING, memory_mb=5000), an_instance("idle", memory_mb=5000))

    assert place(a_need(10_000), host, IDLE, NOW) == Placement(
        devices=("gpu-0",), memory_mb=10_000, evict=("idle",), waits_for=("idle", "leaver")
    )


def test_a_lower_priority_is_evicted_first_under_the_strategy_priority() -> None:
    host = a_host(an_instance("high", memory_mb=5000, priority=1), an_instance("low", memory_mb=5000))
    reports = used(high=100.0, low=200.0)

    by_priority = place(a_need(priority=1), host, reports, NOW, strategy="priority")
    by_use = place(a_need(priority=1), host, reports, NOW, strategy="lru")

    assert isinstance(by_priority, Placement)
    assert isinstance(by_use, Placement)
    assert (by_priority.evict, by_use.evict) == (("low",), ("high",))


# (5) No room.


def test_all_pinned_and_full_is_so_for_good_and_says_by_how_much() -> None:
    host = a_host(an_instance(function="org/pinned", memory_mb=9500, pinned=True))

    assert place(a_need(), host, IDLE, NOW) == NoRoom(
        reason="does not fit by 500 MiB: org/pinned is pinned", when=When.NEVER, short_by_mb=500
    )


def test_pinned_and_full_is_judged_on_the_devices_that_could_take_it() -> None:
    host = a_host(
        an_instance("big", function="org/pinned", memory_mb=9500, pinned=True),
        an_instance("small", function="org/other", devices=("gpu-1",)),
        devices=(a_device("gpu-0"), a_device("gpu-1", 500)),
    )

    assert place(a_need(), host, IDLE, NOW) == NoRoom(
        reason="does not fit by 500 MiB: org/pinned is pinned", when=When.NEVER, short_by_mb=500
    )


def test_full_of_busy_instances_may_change_later() -> None:
    host = a_host(
        an_instance("a", function="org/busy", memory_mb=5000),
        an_instance("b", function="org/pinned", memory_mb=4500, pinned=True),
    )

    assert place(a_need(), host, Use(in_flight={"a": 1}), NOW) == NoRoom(
        reason="does not fit by 500 MiB: org/busy is busy, org/pinned is pinned",
        when=When.LATER,
        short_by_mb=500,
    )


def test_a_refusal_names_three_functions_with_the_reason_of_each_and_counts_the_others() -> None:
    host = a_host(
        an_instance("a", function="org/a", memory_mb=2000, ready=NOW - 1),
        an_instance("b", function="org/b", memory_mb=2000),
        an_instance("b2", function="org/b", memory_mb=2000),
        an_instance("c", function="org/c", memory_mb=1000, state=State.STARTING),
        an_instance("d", function="org/d", memory_mb=1000, pinned=True),
        an_instance("e", function="org/e", memory_mb=2000, priority=1),
    )
    use = Use(in_flight={"b": 1, "b2": 1})

    placement = place(a_need(), host, use, NOW, strategy="priority")

    assert isinstance(placement, NoRoom)
    assert placement.reason.endswith(": org/a is just loaded, org/b is busy, org/c is starting and 2 more stay")


@pytest.mark.parametrize(
    ("options", "use", "why"),
    [
        ({"strategy": "priority"}, IDLE, "of a higher priority"),
        ({"unused_s": 60.0}, Use(used={"i:one": NOW - 30}), "just used"),
        ({}, Use(known=False), "maybe in use"),
    ],
)
def test_a_refusal_says_what_holds_back_the_only_instance(options: dict[str, Any], use: Use, why: str) -> None:
    host = a_host(an_instance("one", function="org/a", memory_mb=10_000, priority=1))

    placement = place(a_need(), host, use, NOW, **options)

    assert isinstance(placement, NoRoom)
    assert placement.reason.endswith(f": org/a is {why}")


def test_the_shortage_excludes_memory_that_eviction_can_free() -> None:
    host = a_host(an_instance("idle", memory_mb=4000), an_instance("busy", memory_mb=6000))

    placement = place(a_need(5000), host, Use(in_flight={"busy": 1}), NOW)

    assert isinstance(placement, NoRoom)
    assert placement.short_by_mb == 1000


def test_no_instance_is_evicted_while_the_reports_cannot_be_read() -> None:
    host = a_host(an_instance(memory_mb=10_000))

    assert isinstance(place(a_need(), host, Use(known=False), NOW), NoRoom)


def test_memory_of_foreign_processes_is_not_free() -> None:
    host = a_host(an_instance("idle", memory_mb=4000), devices=(replace(a_device(), foreign_mb=3000),))

    assert place(a_need(3000), host, IDLE, NOW) == Placement(devices=("gpu-0",), memory_mb=3000)
    assert place(a_need(3001), host, IDLE, NOW) == Placement(
        devices=("gpu-0",), memory_mb=3001, evict=("idle",), waits_for=("idle",)
    )


def test_memory_of_foreign_processes_may_become_free_later() -> None:
    pinned = an_instance(function="org/pinned", memory_mb=4000, pinned=True)
    host = a_host(pinned, devices=(replace(a_device(), foreign_mb=3000),))

    assert place(a_need(3500), host, IDLE, NOW) == NoRoom(
        reason="does not fit by 500 MiB: org/pinned is pinned and foreign processes hold 3000 MiB",
        when=When.LATER,
        short_by_mb=500,
    )
    assert place(a_need(7500), a_host(devices=host.devices), IDLE, NOW) == NoRoom(
        reason="does not fit by 500 MiB: foreign processes hold 3000 MiB", when=When.LATER, short_by_mb=500
    )


def test_foreign_processes_that_leave_too_little_for_an_empty_host_are_named_as_the_only_obstacle() -> None:
    """No wait for an instance helps: a request for it need not be held."""
    job = Held(device="gpu-0", pid=4711, command="python", memory_mb=3000)
    busy = an_instance(memory_mb=4000)
    host = a_host(busy, devices=(replace(a_device(), foreign_mb=3000),), foreign=(job,))
    in_use = Use(in_flight={busy.id: 1})
    room = a_device().budget_mb - 3000

    beside_it, after_it = (place(a_need(mb), host, in_use, NOW) for mb in (room, room + 1))

    assert isinstance(beside_it, NoRoom)
    assert isinstance(after_it, NoRoom)
    assert (beside_it.foreign_mb, after_it.foreign_mb) == (0, 3000)
    assert after_it.when is When.LATER


def test_foreign_memory_without_a_listed_process_may_be_on_its_way_out() -> None:
    host = a_host(devices=(replace(a_device(), foreign_mb=3000),))

    refused = place(a_need(a_device().budget_mb), host, IDLE, NOW)

    assert isinstance(refused, NoRoom)
    assert refused.foreign_mb == 0


def test_a_cache_that_can_shrink_fits_beside_foreign_processes() -> None:
    job = Held(device="gpu-0", pid=4711, command="python", memory_mb=3000)
    busy = an_instance(memory_mb=a_device().budget_mb - 3000)
    host = a_host(busy, devices=(replace(a_device(), foreign_mb=3000),), foreign=(job,))
    shrinkable = replace(a_need(a_device().budget_mb), least_mb=1000)

    refused = place(shrinkable, host, Use(in_flight={busy.id: 1}), NOW)

    assert isinstance(refused, NoRoom)
    assert refused.foreign_mb == 0


def test_a_busy_instance_is_evicted_only_when_it_is_closable() -> None:
    host = a_host(an_instance("busy", memory_mb=10_000))
    use = Use(in_flight={"busy": 1})

    assert isinstance(place(a_need(), host, use, NOW), NoRoom)
    assert place(a_need(), host, use, NOW, closable=frozenset(["busy"])) == Placement(
        devices=("gpu-0",), memory_mb=1000, evict=("busy",), waits_for=("busy",)
    )


def test_with_an_idle_time_set_an_instance_used_later_than_that_stays() -> None:
    host = a_host(an_instance(memory_mb=10_000))
    use = used(one=NOW - 59)

    assert isinstance(place(a_need(), host, use, NOW, unused_s=60.0), NoRoom)
    assert isinstance(place(a_need(), host, use, NOW + 1, unused_s=60.0), Placement)
