"""Small functions are moved together so that one over several devices fits, and requests are served meanwhile."""

from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.platform.fleet import Fleet
from cortex.platform.record import Instance, RouterReport, Use
from cortex.platform.scheduling.admission import consolidation
from cortex.platform.scheduling.defrag import consolidate
from cortex.platform.scheduling.effects import Look, Spawn, Stop
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.state import Rules
from tests.support.factories import HOST, a_device, a_function, a_host, a_need, a_process, an_instance_on
from tests.support.scheduling import SchedulerDriver

GPUS = tuple(a_device(f"gpu-{n}", 10_000) for n in range(4))
NOW = 1000.0
HERE = LocalWeights("/w", 1)


def spread() -> tuple[Instance, ...]:
    """An idle small one on each of three devices; the fourth holds a large one that is busy."""
    return (
        an_instance_on("a", "gpu-0", 3000),
        an_instance_on("b", "gpu-1", 3000),
        an_instance_on("c", "gpu-2", 3000),
        an_instance_on("big", "gpu-3", 9000),
    )


def test_the_least_memory_is_moved_to_empty_as_many_devices_as_are_needed() -> None:
    result = consolidate(
        a_need(9000, devices=2), a_host(*spread(), devices=GPUS), Use(in_flight={"big": 1}), NOW, strategy="lru"
    )

    assert result is not None
    assert len(result.devices) == 2
    assert "gpu-3" not in result.devices
    assert {m.to for m in result.moves} == {tuple(sorted({"gpu-0", "gpu-1", "gpu-2"} - set(result.devices)))}


def test_a_busy_or_pinned_instance_or_one_that_fits_nowhere_else_is_not_moved() -> None:
    host = a_host(*spread(), devices=GPUS)
    need = a_need(9000, devices=2)

    busy = consolidate(need, host, Use(in_flight={"a": 1, "b": 1}), NOW, strategy="lru")
    full = consolidate(a_need(9000, devices=3), host, Use(), NOW, strategy="lru")

    assert busy is None
    assert full is None


def test_nothing_to_move_is_nothing_to_do() -> None:
    assert consolidate(a_need(9000, devices=2), a_host(devices=GPUS), Use(), NOW, strategy="lru") is None


def reports(scheduler: SchedulerDriver, now: float) -> Fleet:
    """A router that has seen everything and has nothing in flight."""
    return Fleet(routers={"r": RouterReport(id="r", seen={HOST: scheduler.record().epoch})}, at=now)


def up(scheduler: SchedulerDriver, function: str, now: float, vram_mb: int) -> str:
    """Bring a function up; return its instance."""
    scheduler.ensure(a_function(function, idle_after_s=1e9, vram_mb=vram_mb), HERE, function, now)
    (spawn,) = [e for e in scheduler.take_effects() if isinstance(e, Spawn)]
    scheduler.spawned(spawn.instance.id, a_process(), "http://x", now)
    scheduler.answered(spawn.instance.id, now)
    scheduler.take_effects()
    return spawn.instance.id


def scattered(rules: Rules) -> SchedulerDriver:
    """Three devices; `two` on one, `three` on another, where `one` was before."""
    scheduler = SchedulerDriver(a_host(devices=GPUS[:3]), rules)
    scheduler.reported(reports(scheduler, NOW), NOW)
    for name, size in (("one", 6000), ("two", 6000), ("three", 4000)):
        up(scheduler, name, NOW, size)
    scheduler.cool("one", NOW, at_once=True)
    scheduler.exited("one", "exited with code 0", (), NOW)
    scheduler.reclaimed("one", NOW)
    scheduler.reported(reports(scheduler, NOW + 100), NOW + 100)
    scheduler.take_effects()
    return scheduler


def test_a_move_starts_elsewhere_first_then_drains_then_makes_room() -> None:
    scheduler, later = scattered(Rules(defrag_after_cycles=1)), NOW + 100

    scheduler.ensure(a_function("both", vram_mb=18_000, min_devices=2), HERE, "both", later)
    moved = [e.instance for e in scheduler.take_effects() if isinstance(e, Spawn)]
    still = {i.id: i.state for i in scheduler.record().instances}
    (successor,) = moved
    scheduler.spawned(successor.id, a_process(), "http://y", later)
    scheduler.answered(successor.id, later)
    draining = [i.id for i in scheduler.record().instances if i.state is State.DRAINING]
    scheduler.reported(reports(scheduler, later), later)
    for look in [e.instance for e in scheduler.take_effects() if isinstance(e, Look)]:
        scheduler.looked(look.id, 0, 0, later)
    stopped = [e.instance.id for e in scheduler.take_effects() if isinstance(e, Stop)]
    for gone in stopped:
        scheduler.exited(gone, "exited with code 0", (), later)
        scheduler.reclaimed(gone, later)
    started = [e.instance.id for e in scheduler.take_effects() if isinstance(e, Spawn)]

    assert successor.id == f"{draining[0]}-m"
    assert still[draining[0]] is State.READY  # it serves on until the other is ready
    assert stopped == draining
    assert started == ["both"]


def test_a_move_ends_the_full_start_that_was_to_replace_the_instance() -> None:
    small = a_function("org/small", idle_after_s=1e9)
    fast = replace(an_instance_on("small", "gpu-0", 3000), moves_to="small-f", start_mode=StartMode.FAST)
    full = replace(an_instance_on("small-f", "gpu-2", 3000), state=State.STARTING, replaces="small")
    scheduler = SchedulerDriver(a_host(fast, full, devices=GPUS[:3]), Rules(defrag_after_cycles=1))
    state = scheduler.scheduler.state
    state.functions, state.weights = {"small": small, "small-f": small}, {"small": HERE, "small-f": HERE}
    state.cycles = 1
    state.reports.take(reports(scheduler, NOW), NOW, instances=(fast, full))

    placement = consolidation(state, a_need(9000, devices=2), NOW)

    assert placement is not None
    assert placement.devices == ("gpu-0", "gpu-1")
    assert state.instances["small"].moves_to == "small-m"
    assert state.instances["small-f"].state is State.STOPPING


def test_without_the_setting_instances_are_evicted_instead_of_moved() -> None:
    scheduler = scattered(Rules(defrag_after_cycles=0))

    scheduler.ensure(a_function("both", vram_mb=18_000, min_devices=2), HERE, "both", NOW + 100)

    assert not [i for i in scheduler.record().instances if i.id.endswith("-m")]
    assert [i.id for i in scheduler.record().instances if i.state is State.DRAINING]
