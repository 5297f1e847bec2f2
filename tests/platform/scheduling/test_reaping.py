"""When an idle instance is reaped: what routers show is what the scheduler does."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function
from cortex.platform.fleet import use
from cortex.platform.record import KeepAlive, Use, used_instance
from cortex.platform.scheduling.reaping import reap_at
from tests.support.factories import a_fleet, a_function, a_process, a_report, an_instance
from tests.support.scheduling import HERE, a_scheduler

F = Function(id="org/model", engine=Engine.FAKE, idle_after_s=60)


def test_an_idle_instance_is_reaped_after_its_idle_time() -> None:
    one = an_instance("one", ready=100.0)

    assert reap_at(one, F, Use(), [one]) == 160.0
    assert reap_at(one, F, Use(used={used_instance("one"): 130.0}), [one]) == 190.0


def test_an_instance_whose_drain_was_cancelled_starts_its_idle_time_again() -> None:
    one = replace(an_instance("one", ready=10.0), since=95.0)

    assert reap_at(one, F, Use(), [one]) == 155.0


def test_of_two_idle_instances_the_minimum_keeps_the_one_of_lowest_id() -> None:
    instances = [an_instance(i, ready=10.0) for i in ("one", "two")]
    function = Function(id="org/model", engine=Engine.FAKE, idle_after_s=60, min=1, max=2)

    assert [reap_at(i, function, Use(), instances) for i in instances] == [None, 70.0]


def test_the_instance_of_a_baseline_is_never_reaped_as_idle() -> None:
    instances = [an_instance(i, ready=10.0) for i in ("one", "two")]
    function = Function(id="org/model", engine=Engine.FAKE, idle_after_s=60, max=2, baseline=True)

    assert [reap_at(i, function, Use(), instances) for i in instances] == [None, 70.0]


def test_an_instance_beyond_the_maximum_is_reaped_soon() -> None:
    """Found by the simulation: after a partition two instances of a function with `max` 1 stayed for `idle_after_s`."""
    instances = [an_instance(i, ready=10.0) for i in ("one", "two")]

    assert [reap_at(i, F, Use(), instances) for i in instances] == [70.0, 20.0]
    assert reap_at(instances[1], F, Use(in_flight={"two": 1}), instances) is None
    assert reap_at(instances[1], Function(id="org/model", engine=Engine.FAKE, max=2), Use(), instances) == 310.0


def test_an_instance_in_use_or_awaited_or_pinned_is_not_reaped() -> None:
    one, pinned = an_instance("one"), an_instance("one", pinned=True)

    assert reap_at(one, F, Use(in_flight={"one": 1}), [one]) is None
    assert reap_at(one, F, Use(waiting={"org/model": 1}), [one]) is None
    assert reap_at(pinned, F, Use(), [pinned]) is None


@given(
    minimum=st.integers(0, 2),
    idle_after_s=st.sampled_from([1.0, 30.0, 60.0]),
    ready=st.lists(st.floats(0, 50), min_size=1, max_size=3),
    uses=st.lists(st.floats(50, 100), max_size=3),
    busy=st.sets(st.integers(0, 2)),
)
def test_the_scheduler_reaps_an_instance_when_it_is_shown_to(
    minimum: int, idle_after_s: float, ready: list[float], uses: list[float], busy: set[int]
) -> None:
    function = a_function("f", vram_mb=1000, min=minimum, idle_after_s=idle_after_s)
    scheduler = a_scheduler()
    for number, at in enumerate(sorted(ready)):
        scheduler.ensure(function, HERE, f"i{number}", at, exclude=[f"i{n}" for n in range(number)])
        scheduler.spawned(f"i{number}", a_process(100 + number), "http://127.0.0.1:1", at)
        scheduler.answered(f"i{number}", at)
    report = a_report(in_flight={f"i{n}": 1 for n in busy if n < len(ready)})
    fleet = a_fleet(report, used={used_instance(f"i{n}"): at for n, at in enumerate(uses)})
    scheduler.reported(fleet, 100.0)
    instances = scheduler.record().instances
    idle = [i for i in instances if i.state is State.READY]
    shown = {i.id: reap_at(i, function, use(fleet), instances) for i in idle}

    for now in sorted(
        {at + step for at in shown.values() if at is not None for step in (-0.5, 0.5) if at + step > 100}
    ):
        scheduler.reported(fleet, now)

        reaped = {i.id for i in scheduler.record().instances if i.why == "idle"}
        assert {i for i, at in shown.items() if at is not None and at <= now} == reaped & shown.keys()


def test_an_instance_stays_as_long_as_its_last_request_says_within_the_bound_of_its_function() -> None:
    one, bounded = an_instance("one", ready=10.0), replace(F, keep_alive_max_s=600)
    used = {used_instance("one"): 100.0}

    def at(function: Function, keep_s: float, ago_s: float) -> float | None:
        keep = {"one": KeepAlive(keep_s, ago_s)}
        return reap_at(one, function, Use(used=used, keep=keep, at=150.0), [one])

    assert at(bounded, 300.0, 50.0) == 400.0
    assert at(bounded, 9000.0, 50.0) == 700.0
    assert at(F, 300.0, 50.0) == 160.0
    assert at(F, 5.0, 50.0) == 105.0
    assert at(F, 0.0, 50.0) == 102.0
    assert at(bounded, 300.0, 90.0) == 160.0  # another router's request came later, and says nothing


def test_of_several_routers_the_last_request_decides_how_long_an_instance_stays() -> None:
    reports = [a_report(str(n), keep={"one": KeepAlive(10.0 * n, 30.0 - n)}) for n in (1, 2, 3)]

    assert use(a_fleet(*reports)).keep["one"].for_s == 30.0
