"""What operators are shown is what the scheduler does: reap times, and the order of eviction."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Accepted
from cortex.platform.fleet import Fleet
from cortex.platform.record import used_instance
from cortex.router.overview.functions import function_views
from cortex.router.overview.hosts import host_views
from cortex.router.overview.snapshot import FleetSnapshot, Index
from tests.support.factories import a_fleet, a_function, a_process, a_report
from tests.support.scheduling import HERE, RULES, SchedulerDriver, a_scheduler, bring_up

NOW = 100.0
TOTAL_MB = 10_000


class Warm(Struct, frozen=True):
    """An instance of a function of its own, and what it does at `NOW`."""

    memory_mb: int
    ready: float
    used: float | None
    priority: int
    state: str
    """idle, busy or pinned."""


def instances(most: int) -> st.SearchStrategy[list[Warm]]:
    """Return instances that fit on one device together."""
    one = st.builds(
        Warm,
        memory_mb=st.integers(1, TOTAL_MB // most),
        ready=st.floats(0, NOW),
        used=st.none() | st.floats(0, NOW),
        priority=st.integers(0, 2),
        state=st.sampled_from(["idle", "idle", "idle", "busy", "pinned"]),
    )
    return st.lists(one, min_size=1, max_size=most)


def a_stage(warm: list[Warm], strategy: str) -> tuple[SchedulerDriver, Fleet, dict[str, Function]]:
    """Return a scheduler with these instances, `i0` of `f0` and so on, and the routers' reports at `NOW`."""
    functions = {
        f"f{n}": a_function(
            f"f{n}", vram_mb=w.memory_mb, priority=w.priority, pinned=w.state == "pinned", idle_after_s=10 * NOW
        )
        for n, w in enumerate(warm)
    }
    scheduler = a_scheduler(rules=replace(RULES, strategy=strategy))
    for n, w in sorted(enumerate(warm), key=lambda item: item[1].ready):
        bring_up(scheduler, functions[f"f{n}"], f"i{n}", w.ready)
    busy = {f"i{n}": 1 for n, w in enumerate(warm) if w.state == "busy"}
    used = {used_instance(f"i{n}"): max(w.used, w.ready) for n, w in enumerate(warm) if w.used is not None}
    return scheduler, a_fleet(a_report(in_flight=busy), used=used), functions


def a_view(scheduler: SchedulerDriver, fleet: Fleet, functions: dict[str, Function], strategy: str) -> FleetSnapshot:
    """Return what a router has of this host."""
    record = scheduler.record()
    return FleetSnapshot(
        catalogue=Catalogue(functions), fleet=replace(fleet, hosts={record.name: record}), strategy=strategy, now=NOW
    )


@given(warm=instances(6), need_mb=st.integers(1, TOTAL_MB), strategy=st.sampled_from(["lru", "priority"]))
def test_the_scheduler_evicts_in_the_order_that_is_shown(warm: list[Warm], need_mb: int, strategy: str) -> None:
    scheduler, fleet, functions = a_stage(warm, strategy)
    scheduler.reported(fleet, NOW)
    snapshot = a_view(scheduler, fleet, functions, strategy)
    (host,) = host_views(snapshot, Index(snapshot)).hosts
    evictable = [c for c in host.eviction_order if not c.protection]
    (device,) = host.devices
    room = device.free_mb + sum(c.memory_mb for c in evictable)

    answer = scheduler.ensure(a_function("new", vram_mb=need_mb, priority=3), HERE, "new", NOW)

    victims = {i.id for i in scheduler.record().instances if i.id != "new" and i.state is not State.READY}
    assert isinstance(answer, Accepted) == (need_mb <= room)
    assert victims <= {c.instance for c in evictable}
    if victims:
        last = max(c.rank for c in evictable if c.instance in victims)
        freed = device.free_mb + sum(c.memory_mb for c in evictable[: last - 1])
        assert freed < need_mb <= freed + evictable[last - 1].memory_mb
        assert host.evicted_next == evictable[0]
    else:
        assert need_mb <= device.free_mb or need_mb > room


@given(
    minimum=st.integers(0, 2),
    warm=st.lists(st.tuples(st.floats(0, 50), st.none() | st.floats(50, NOW), st.booleans()), min_size=1, max_size=3),
)
def test_the_scheduler_reaps_an_instance_when_the_view_of_its_function_has_it(
    minimum: int, warm: list[tuple[float, float | None, bool]]
) -> None:
    function = a_function("f", vram_mb=1000, min=minimum, max=3, idle_after_s=60.0)
    scheduler = a_scheduler()
    for n, ready in enumerate(sorted(ready for ready, _, _ in warm)):
        scheduler.ensure(function, HERE, f"i{n}", ready, exclude=[f"i{m}" for m in range(n)])
        scheduler.spawned(f"i{n}", a_process(), "http://127.0.0.1:1", ready)
        scheduler.answered(f"i{n}", ready)
    used = {used_instance(f"i{n}"): at for n, (_, at, _) in enumerate(warm) if at is not None}
    fleet = a_fleet(a_report(in_flight={f"i{n}": 1 for n, (_, _, busy) in enumerate(warm) if busy}), used=used)
    scheduler.reported(fleet, NOW)
    snapshot = a_view(scheduler, fleet, {"f": function}, "lru")
    (view,) = function_views(snapshot, Index(snapshot))
    shown = {i.id: i.reap_at for i in view.instances if i.state is State.READY}

    for now in sorted({at + step for at in shown.values() if at is not None for step in (-0.5, 0.5)}):
        if now > NOW:
            scheduler.reported(fleet, now)
            remaining = {i.id for i in scheduler.record().instances if i.state is State.READY}
            assert shown.keys() - remaining == {id for id, at in shown.items() if at is not None and at <= now}
