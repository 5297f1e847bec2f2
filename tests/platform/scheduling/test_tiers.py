"""Tiers: instances that are parked instead of stopped, and that return."""

from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, Park, revision
from cortex.platform.agent_messages import Accepted, PlacementPlan, Rejected, Victim
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, Tier, Use, used_instance
from cortex.platform.scheduling import effects, events
from cortex.platform.scheduling.eviction import protection
from cortex.platform.scheduling.ledger import Costs, Entry
from cortex.platform.scheduling.placement import NoRoom, Placement, When, place
from tests.support.factories import a_device, a_fleet, a_host, a_need, a_report, an_instance
from tests.support.scheduling import (
    clear_away,
    decisions,
    instance_of,
    new_effects,
    states,
)
from tests.support.tiers import (
    FREEZES,
    HERE,
    SLEEPS,
    STOPS,
    WIDE,
    F,
    G,
    H,
    a_tiered,
    bring_up,
    drained,
    evicting,
    put_to_sleep,
    rehearse,
    report,
)

# What an instance may go to.


@pytest.mark.parametrize(
    ("function", "host", "tiers"),
    [
        (F, {}, (Tier.SLEEP,)),
        (F, {"tiers": FREEZES}, (Tier.SLEEP, Tier.FREEZE)),
        (replace(F, args=()), {}, ()),
        (replace(F, args=(), park=Park.SLEEP), {}, (Tier.SLEEP,)),
        (F, {"tiers": {}}, ()),
        (F, {"tiers": {Tier.SLEEP: "switched off"}}, ()),
        (F, {"park_ram_mb": 0}, ()),
        (F, {"park_ram_mb": 2999}, ()),
        (F, {"park_ram_mb": 3000}, (Tier.SLEEP,)),
        (F, {"unparkable": {revision(F): {Tier.SLEEP: "failed"}}, "tiers": FREEZES}, (Tier.FREEZE,)),
        (replace(F, park=Park.STOP), {"tiers": FREEZES}, ()),
        (replace(F, park=Park.FREEZE), {"tiers": FREEZES}, (Tier.FREEZE,)),
        (replace(F, park=Park.SLEEP), {"tiers": FREEZES}, (Tier.SLEEP,)),
        (replace(F, engine="llamacpp"), {"tiers": FREEZES}, (Tier.FREEZE,)),
        (replace(F, pinned=True), {}, ()),
        (replace(F, engine=Engine.VLLM), {"tiers": FREEZES}, (Tier.FREEZE,)),  # its device is not one of NVML's
        (F, {"devices": (a_device("cpu", kind="cpu"),)}, ()),
    ],
)
def test_the_tiers_of_an_instance(function: Function, host: dict[str, Any], tiers: tuple[Tier, ...]) -> None:
    scheduler = a_tiered(**host)
    bring_up(scheduler, function)

    report(scheduler, 1.0)

    assert instance_of(scheduler).tiers == tiers


# Evicted into sleep.


def test_a_victim_sleeps_and_the_other_starts_when_it_does() -> None:
    scheduler = evicting()

    assert drained(scheduler, 101.0) == [effects.Park(instance_of(scheduler), F, Tier.SLEEP)]
    assert states(scheduler) == {"one": State.PARKING, "two": State.PLACING}

    scheduler.parked("one", Tier.SLEEP, 101.4, device_mb=1500, ram_mb=3000)

    assert states(scheduler) == {"one": State.SLEEPING, "two": State.STARTING}
    assert instance_of(scheduler).held_mb == 1500
    assert ("parked", "one", "to sleep: 1,500 MiB stay, 0.40 s") in decisions(scheduler)


def test_a_sleeper_that_keeps_too_much_is_frozen_or_stopped() -> None:
    """The room is 10,000 MiB: 9,500 do not fit beside the 1,500 of a sleeper."""
    scheduler = a_tiered(FREEZES)
    bring_up(scheduler)
    rehearse(scheduler, "one", 50.0)
    scheduler.ensure(WIDE, HERE, "two", 100.0)

    assert drained(scheduler, 101.0) == [effects.Park(replace(instance_of(scheduler), ram_mb=3000), F, Tier.FREEZE)]
    scheduler.parked("one", Tier.FREEZE, 102.0, ram_mb=4500)

    assert states(scheduler) == {"one": State.FROZEN, "two": State.STARTING}
    assert (instance_of(scheduler).held_mb, instance_of(scheduler).ram_mb) == (0, 4500)


def test_without_freezing_such_a_sleeper_stops() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)

    scheduler.ensure(WIDE, HERE, "two", 100.0)

    assert states(scheduler) == {"one": State.STOPPING, "two": State.PLACING}
    clear_away(scheduler, "one", 101.0)
    assert states(scheduler) == {"two": State.STARTING}


def test_a_return_from_a_freeze_frees_the_ram_of_what_was_moved_and_no_more() -> None:
    """Asleep it pins 3,000 MiB; the freeze moved 800 MiB more, where 2,000 were expected."""
    scheduler = a_tiered(FREEZES)
    bring_up(scheduler, replace(F, park=Park.FREEZE))
    scheduler.cool("f", 1.0, park=True)
    drained(scheduler, 1.0)
    scheduler.parked("one", Tier.FREEZE, 2.0, device_mb=800, ram_mb=3800)
    scheduler.ensure(replace(F, park=Park.FREEZE), None, "two", 100.0)
    scheduler.answered("one", 102.0)

    assert instance_of(scheduler).ram_mb == 3000


def test_the_first_park_says_that_nothing_of_it_is_in_ram_yet_and_the_record_reserves_what_it_will_hold() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    scheduler.cool("f", 1.0, park=True)

    (park,) = drained(scheduler, 1.0)

    assert isinstance(park, effects.Park)
    assert (park.instance.ram_mb, instance_of(scheduler).ram_mb) == (0, 3000)


def test_a_sleeper_needs_no_drain_to_be_frozen() -> None:
    scheduler = a_tiered(FREEZES)
    put_to_sleep(scheduler, F, "one", 0.0)

    scheduler.ensure(WIDE, HERE, "two", 100.0)

    assert new_effects(scheduler) == [effects.Park(replace(instance_of(scheduler), ram_mb=3000), F, Tier.FREEZE)]
    assert instance_of(scheduler).held_mb == 1500, "as long as it is only on its way"


def test_more_than_promised_stays_so_the_sleeper_stops() -> None:
    """6,000 MiB of `two` fit beside the 2,048 that were expected, and not beside 5,000."""
    scheduler = a_tiered()
    bring_up(scheduler)
    scheduler.cool("f", 1.0, park=True)
    drained(scheduler, 1.0)
    assert scheduler.ensure(G, HERE, "two", 2.0) == Accepted("two", State.PLACING)

    scheduler.parked("one", Tier.SLEEP, 3.0, device_mb=5000, ram_mb=3000)

    assert states(scheduler) == {"one": State.STOPPING, "two": State.PLACING}


# Idle.


def test_an_idle_instance_sleeps_and_stays_asleep() -> None:
    scheduler = a_tiered()
    bring_up(scheduler, replace(F, idle_after_s=60.0))
    rehearse(scheduler, "one", 20.0)

    drained(scheduler, 61.0)
    drained(scheduler, 61.0)
    drained(scheduler, 81.0)
    drained(scheduler, 81.0)
    scheduler.parked("one", Tier.SLEEP, 82.0, device_mb=1500, ram_mb=3000)
    report(scheduler, 1e6)

    instance = instance_of(scheduler)
    assert (instance.state, instance.reason, instance.parked) == (State.SLEEPING, DrainReason.IDLE, Tier.SLEEP)


# The return.


def test_a_request_wakes_the_sleeper_and_starts_nothing() -> None:
    scheduler = a_tiered()
    put_to_sleep(scheduler, F, "one", 0.0)

    assert scheduler.ensure(F, None, "two", 100.0) == Accepted("one", State.STARTING)

    assert new_effects(scheduler) == [effects.Wake(instance_of(scheduler), F, Tier.SLEEP)]
    assert (instance_of(scheduler).held_mb, instance_of(scheduler).phase) == (6000, "waking")
    scheduler.answered("one", 100.404)
    instance = instance_of(scheduler)
    assert (instance.state, instance.ready, instance.parks_to, instance.path) == (State.READY, 100.404, None, "sleep")
    assert instance.ram_mb == 3000, "what its engine pinned stays pinned"
    assert decisions(scheduler) == [("ready", "one", "after 0.404 s, from sleep")]
    assert instance.phases == {"placing": 0.0, "waking": 0.404}


def test_two_that_do_not_fit_together_swap_by_sleeping() -> None:
    scheduler = evicting()
    drained(scheduler, 101.0)
    scheduler.parked("one", Tier.SLEEP, 101.4, device_mb=1500, ram_mb=3000)
    scheduler.answered("two", 110.0)
    rehearse(scheduler, "two", 150.0)

    assert scheduler.ensure(F, None, "three", 200.0) == Accepted("one", State.PLACING)
    assert instance_of(scheduler, "two").state is State.DRAINING
    drained(scheduler, 201.0)
    scheduler.parked("two", Tier.SLEEP, 201.4, device_mb=1500, ram_mb=3000)

    assert states(scheduler) == {"one": State.STARTING, "two": State.SLEEPING}


def test_a_request_during_parking_is_served_by_the_same_instance() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    scheduler.cool("f", 1.0, park=True)
    drained(scheduler, 1.0)

    assert scheduler.ensure(F, HERE, "two", 2.0) == Accepted("one", State.PARKING)
    scheduler.parked("one", Tier.SLEEP, 3.0, device_mb=1500, ram_mb=3000)

    assert states(scheduler) == {"one": State.STARTING}


def test_a_return_that_finds_no_room_is_tried_again_by_its_request() -> None:
    """`one` is parked for `two`; a request for it meanwhile learns that there is no room."""
    scheduler = evicting()
    drained(scheduler, 101.0)

    answer = scheduler.ensure(F, HERE, "three", 101.1)

    assert isinstance(answer, Rejected)
    scheduler.parked("one", Tier.SLEEP, 102.0, device_mb=1500, ram_mb=3000)
    assert states(scheduler) == {"one": State.SLEEPING, "two": State.STARTING}


def test_the_plan_of_a_return_names_the_instance_and_where_its_victims_go() -> None:
    scheduler = evicting()
    drained(scheduler, 101.0)
    scheduler.parked("one", Tier.SLEEP, 101.4, device_mb=1500, ram_mb=3000)
    scheduler.answered("two", 110.0)
    rehearse(scheduler, "two", 150.0)

    plan = scheduler.plan(F, None, 200.0)

    assert isinstance(plan, PlacementPlan)
    assert (plan.returns, plan.tier, plan.devices) == ("one", Tier.SLEEP, ("gpu-0",))
    assert plan.evict == (Victim("two", "g", 50.0, Tier.SLEEP),)


def test_a_sleeper_on_a_busy_device_is_replaced_where_there_is_room() -> None:
    two_gpus = (a_device("gpu-0"), a_device("gpu-1"))
    scheduler = a_tiered(devices=two_gpus)
    put_to_sleep(scheduler, F, "one", 0.0)
    bring_up(scheduler, replace(G, vram_mb=8000), "two", 10.0)
    assert instance_of(scheduler, "two").devices == instance_of(scheduler).devices, "it fills the device most tightly"

    assert scheduler.ensure(F, HERE, "three", 15.0) == Accepted("three", State.STARTING)

    assert states(scheduler)["one"] is State.STOPPING


def test_a_sleeper_whose_device_is_pinned_away_waits_for_a_turn_elsewhere() -> None:
    scheduler = a_tiered(devices=(a_device("gpu-0"), a_device("gpu-1")))
    put_to_sleep(scheduler, F, "one", 0.0)
    bring_up(scheduler, replace(G, vram_mb=8000, pinned=True), "two", 10.0)
    assert instance_of(scheduler, "two").devices == instance_of(scheduler).devices
    bring_up(scheduler, H, "three", 11.0)
    report(scheduler, 20.0, in_flight={"three": 1})

    answer = scheduler.ensure(F, HERE, "four", 20.0)

    assert isinstance(answer, Rejected)
    assert answer.when is When.LATER


def test_a_second_request_during_parking_is_served_by_the_same_instance() -> None:
    """Another takes the room that `one` leaves; then there is room on the other device."""
    scheduler = a_tiered(devices=(a_device("gpu-0"), a_device("gpu-1")))
    bring_up(scheduler, replace(H, vram_mb=7500), "other")
    bring_up(scheduler)
    scheduler.cool("f", 1.0, park=True)
    drained(scheduler, 1.0)
    assert scheduler.ensure(F, HERE, "two", 2.0) == Accepted("one", State.PARKING)
    scheduler.ensure(replace(G, vram_mb=7500), HERE, "three", 2.5)
    assert instance_of(scheduler, "three").devices == instance_of(scheduler).devices
    scheduler.cool("h", 2.6, at_once=True)

    assert scheduler.ensure(F, HERE, "four", 3.0) == Accepted("one", State.PARKING)


def test_one_more_instance_is_the_parked_one() -> None:
    scheduler = a_tiered(devices=(a_device("gpu-0", 20_000),))
    put_to_sleep(scheduler, F, "one", 0.0)

    assert scheduler.ensure(F, HERE, "two", 20.0, exclude=["elsewhere"], evict=False) == Accepted("one", State.STARTING)
    assert scheduler.ensure(F, HERE, "two", 20.0, exclude=["one"], evict=False) == Accepted("two", State.PLACING)


# Rehearsal.


def test_the_first_sleep_is_rehearsed_while_nobody_waits() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)

    rehearse(scheduler, "one", 20.0)

    instance = instance_of(scheduler)
    assert (instance.ram_mb, instance.parked_mb, instance.reason) == (3000, 1500, None)
    assert protection(instance, Use(), 20.0) is None, "it waits for no first request"
    drained(scheduler, 100.0)
    assert states(scheduler) == {"one": State.READY}, "once is enough"


@pytest.mark.parametrize(
    "fleet",
    [
        a_fleet(a_report(in_flight={"one": 1})),
        a_fleet(a_report(waiting={"g": 1})),
        a_fleet(a_report(), used={used_instance("one"): 15.0}),
        a_fleet(a_report(), cordoned=True),
    ],
)
def test_no_rehearsal_for_one_in_use_or_while_a_request_waits(fleet: Fleet) -> None:
    scheduler = a_tiered()
    bring_up(scheduler)

    scheduler.reported(fleet, 20.0)

    assert states(scheduler) == {"one": State.READY}


def test_no_rehearsal_costs_another_its_ram() -> None:
    scheduler = a_tiered(ram_mb=5000, devices=(a_device("gpu-0", 20_000),))
    put_to_sleep(scheduler, F, "one", 0.0)
    bring_up(scheduler, G, "two", 10.0)

    drained(scheduler, 100.0)

    assert states(scheduler) == {"one": State.SLEEPING, "two": State.READY}


def test_one_whose_room_was_taken_stays_asleep_after_its_rehearsal() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    drained(scheduler, 20.0)
    drained(scheduler, 20.0)
    assert scheduler.ensure(G, HERE, "two", 21.0) == Accepted("two", State.PLACING)

    scheduler.parked("one", Tier.SLEEP, 35.0, device_mb=1500, ram_mb=3000)

    assert states(scheduler) == {"one": State.SLEEPING, "two": State.STARTING}


def test_a_rehearsal_whose_ram_was_taken_is_cancelled() -> None:
    scheduler = a_tiered(devices=(a_device("gpu-0", 20_000),))
    put_to_sleep(scheduler, G, "asleep", 0.0)
    bring_up(scheduler, F, "one", 10.0)
    report(scheduler, 30.0)
    assert states(scheduler)["one"] is State.DRAINING

    scheduler.handle(events.HostRead(park_ram_mb=5000), 31.0)
    drained(scheduler, 31.0)

    assert states(scheduler) == {"asleep": State.SLEEPING, "one": State.READY}


def test_a_rehearsal_that_is_not_acknowledged_is_tried_again_later_each_time() -> None:
    scheduler = a_tiered()
    bring_up(scheduler)
    began: list[float] = []
    for now in map(float, range(10, 400, 5)):
        before = states(scheduler)["one"]
        scheduler.reported(replace(a_fleet(a_report(seen=-1)), at=now), now)
        if before is State.READY and states(scheduler)["one"] is State.DRAINING:
            began.append(now)

    assert began == [10.0, 90.0, 190.0, 330.0], "60 s of grace, then 20, 40 and 80 s"


# RAM.


def test_a_sleeper_that_is_to_be_frozen_waits_for_ram_from_when_it_leaves() -> None:
    """RAM for two sleepers: to freeze one, the other has to end."""
    scheduler = a_tiered(FREEZES, ram_mb=7000, devices=(a_device("gpu-0", 12_000),))
    for n, function in enumerate((F, G)):
        put_to_sleep(scheduler, function, f"{function.id}1", 10.0 * n)

    scheduler.ensure(replace(H, vram_mb=10_000), HERE, "h1", 1000.0)
    report(scheduler, 1001.0)

    assert states(scheduler) == {"f1": State.SLEEPING, "g1": State.STOPPING, "h1": State.PLACING}
    clear_away(scheduler, "g1", 1002.0)
    assert states(scheduler) == {"f1": State.PARKING, "h1": State.PLACING}


def test_the_one_used_longest_ago_stops_when_its_ram_is_needed() -> None:
    """RAM for two: the third waits until the first has ended."""
    scheduler = a_tiered(ram_mb=7000, devices=(a_device("gpu-0", 30_000),))
    for n, function in enumerate((F, G)):
        put_to_sleep(scheduler, function, f"{function.id}1", 10.0 * n)
    bring_up(scheduler, H, "h1", 30.0)
    scheduler.cool("h", 31.0, park=True)
    drained(scheduler, 31.0)
    drained(scheduler, 31.5)

    assert states(scheduler) == {"f1": State.STOPPING, "g1": State.SLEEPING, "h1": State.DRAINING}
    clear_away(scheduler, "f1", 32.0)
    drained(scheduler, 32.0)
    assert states(scheduler) == {"g1": State.SLEEPING, "h1": State.PARKING}


def test_an_instance_stops_when_no_parked_one_can_make_room_for_it() -> None:
    """`one` has pinned 3,000 MiB and serves: there is no RAM for `two`."""
    scheduler = a_tiered(ram_mb=5000, devices=(a_device("gpu-0", 20_000),))
    bring_up(scheduler)
    rehearse(scheduler, "one", 20.0)
    bring_up(scheduler, G, "two", 30.0)
    scheduler.cool("g", 31.0, park=True)

    drained(scheduler, 31.0)

    assert states(scheduler) == {"one": State.READY, "two": State.STOPPING}


def test_ram_that_was_measured_beats_the_estimate_from_the_weights() -> None:
    """The weights make 3,000 MiB; an earlier instance took 4,000."""
    scheduler = a_tiered(ram_mb=3500)
    scheduler.set_ledger({revision(F): Entry(tiers={Tier.SLEEP: Costs(ram_mb=4000)})})
    bring_up(scheduler)

    report(scheduler, 1.0)

    assert instance_of(scheduler).tiers == ()


def test_parked_instances_stop_when_their_ram_is_taken_away() -> None:
    scheduler = a_tiered(devices=(a_device("gpu-0", 30_000),))
    for n, function in enumerate((F, G)):
        put_to_sleep(scheduler, function, f"{function.id}1", 10.0 * n)

    scheduler.handle(events.HostRead(park_ram_mb=4000), 30.0)
    report(scheduler, 31.0)
    report(scheduler, 31.5)

    assert states(scheduler) == {"f1": State.STOPPING, "g1": State.SLEEPING}


# Worth.


@pytest.mark.parametrize("park_ram_mb", [0, 20_000])
def test_the_seconds_of_a_start_count_only_on_a_host_that_parks(park_ram_mb: int) -> None:
    none = {Tier.SLEEP: "`[agent] park_ram_mb` is 0", Tier.FREEZE: "no driver"}
    scheduler = a_tiered(SLEEPS if park_ram_mb else none, park_ram_mb)
    scheduler.set_ledger({revision(STOPS): Entry(start_s=60.0)})
    bring_up(scheduler, STOPS)

    report(scheduler, 1.0)

    assert instance_of(scheduler).return_s == ({Tier.STOP: 60.0} if park_ram_mb else {})


@pytest.mark.parametrize("measured", [True, False])
def test_the_victim_is_the_one_whose_return_costs_least_for_its_idle_time_where_both_were_measured(
    measured: bool,
) -> None:
    """`h` cannot sleep: its return takes 60 s instead of 0.4, so `f` leaves although it was used later."""
    scheduler = a_tiered(devices=(a_device("gpu-0", 12_000),))
    back = Entry(start_s=60.0, tiers={Tier.SLEEP: Costs(return_s=0.4, device_mb=1500)})
    scheduler.set_ledger({revision(F): back} | ({revision(STOPS): Entry(start_s=60.0)} if measured else {}))
    bring_up(scheduler, STOPS, "h1", 0.0)
    bring_up(scheduler, F, "f1", 100.0)
    fleet = a_fleet(a_report(seen=99, waiting={"g": 1}))
    scheduler.reported(replace(fleet, at=200.0), 200.0)

    scheduler.ensure(replace(G, vram_mb=4000), HERE, "g1", 200.0)

    leaving = {i for i, state in states(scheduler).items() if state is State.DRAINING}
    assert leaving == ({"f1"} if measured else {"h1"})


@pytest.mark.parametrize(
    ("return_s", "memory_mb", "after_s"),
    [({}, 6000, 10.0), ({Tier.SLEEP: 0.4}, 6000, 2.0), ({Tier.SLEEP: 1.2}, 6000, 6.0), ({Tier.SLEEP: 9.0}, 6000, 10.0),
     ({Tier.SLEEP: 0.4}, 9500, 10.0)],
    ids=["not measured", "fast", "slower", "slow", "it has to stop"],
)  # fmt: skip
def test_an_instance_that_returns_fast_is_protected_for_less_after_its_use(
    return_s: dict[Tier, float], memory_mb: int, after_s: float
) -> None:
    instance = an_instance(
        ready=0.0, memory_mb=6000, tiers=(Tier.SLEEP,), parked_mb=1500, return_s=return_s, function="f"
    )
    use = Use(used={used_instance("one"): 100.0})

    early, late = (place(a_need(memory_mb), a_host(instance), use, 100.0 + after) for after in (after_s - 0.1, after_s))

    assert isinstance(early, NoRoom)
    assert isinstance(late, Placement)
    assert late.evict == ("one",)
