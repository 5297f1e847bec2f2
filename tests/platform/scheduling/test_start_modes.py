"""Start modes: which start is fast, and what follows when a trick fails."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import tests.support  # noqa: F401
from cortex.functions.launch import StartMode, Trick
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Start, revision
from cortex.platform.agent_messages import Accepted
from cortex.platform.record import DrainReason, FailureKind
from cortex.platform.scheduling.effects import Spawn
from cortex.platform.scheduling.ledger import Entry, Reading, StartTimes
from cortex.platform.scheduling.start_modes import WORTH_S, WORTH_SHARE, choose
from tests.support.factories import a_device, a_fleet, a_function, a_host, a_process, a_report
from tests.support.replay import differences
from tests.support.scheduling import (
    HERE,
    RULES,
    SchedulerDriver,
    a_scheduler,
    decisions,
    instance_of,
    new_effects,
    states,
)

F = a_function("f", vram_mb=4000, args=("--full-load-s=34",))
PLAIN = a_function("plain", vram_mb=4000)
FAST, FULL = StartMode.FAST, StartMode.FULL
EAGER = (str(Trick.EAGER),)
KNOWN: dict[str, Any] = {
    "has_modes": True,
    "fast_left": True,
    "full_failed": False,
    "waits": True,
    "fast_s": 0.0,
    "full_s": 0.0,
}


@pytest.mark.parametrize(
    ("start", "changes", "mode"),
    [
        (Start.AUTO, {"has_modes": False}, None),  # (1)
        (Start.FAST, {"has_modes": False}, None),
        (Start.FULL, {}, FULL),  # (2)
        (Start.FAST, {"waits": False}, FAST),
        (Start.FAST, {"fast_s": 9.0, "full_s": 9.0}, FAST),
        (Start.FAST, {"fast_left": False}, FULL),  # (3)
        (Start.AUTO, {"fast_left": False, "full_failed": True}, FULL),
        (Start.AUTO, {"full_failed": True, "waits": False}, FAST),  # (4)
        (Start.FULL, {"full_failed": True}, FULL),
        (Start.AUTO, {"waits": False}, FULL),  # (5)
        (Start.AUTO, {"fast_s": 9.0, "full_s": 10.9}, FULL),  # (6)
        (Start.AUTO, {"fast_s": 40.0, "full_s": 49.0}, FULL),
        (Start.AUTO, {"fast_s": 40.0, "full_s": 50.0}, FAST),  # (7)
        (Start.AUTO, {"fast_s": 9.0, "full_s": 34.0}, FAST),
        (Start.AUTO, {"full_s": 34.0}, FAST),
        (Start.AUTO, {}, FAST),
    ],
)
def test_the_mode_of_a_start(start: Start, changes: dict[str, Any], mode: StartMode | None) -> None:
    assert choose(start, **{**KNOWN, **changes}) is mode


@given(
    start=st.sampled_from(Start),
    flags=st.tuples(*[st.booleans()] * 4),
    fast_s=st.floats(0, 1000),
    full_s=st.floats(0, 1000),
)
def test_a_start_is_fast_only_where_that_may_help(
    start: Start, flags: tuple[bool, bool, bool, bool], fast_s: float, full_s: float
) -> None:
    has_modes, fast_left, full_failed, waits = flags

    mode = choose(
        start,
        has_modes=has_modes,
        fast_left=fast_left,
        full_failed=full_failed,
        waits=waits,
        fast_s=fast_s,
        full_s=full_s,
    )

    assert (mode is None) == (not has_modes)
    if mode is FAST:
        assert fast_left
        assert start is not Start.FULL
        saves = not full_s or (full_s - fast_s >= WORTH_S and full_s >= WORTH_SHARE * fast_s)
        assert start is Start.FAST or full_failed or (waits and saves)
    if mode is FULL and start is Start.AUTO and fast_left:
        assert not full_failed


def begin(scheduler: SchedulerDriver, function: Any = F, now: float = 0.0, **request: Any) -> StartMode | None:
    """Begin the start of `one`; return its mode."""
    answer = scheduler.ensure(function, HERE, "one", now, **{"waited_s": 0.1, **request})
    assert answer == Accepted("one", State.STARTING)
    (spawn,) = (e for e in new_effects(scheduler) if isinstance(e, Spawn))
    assert spawn.instance.start_mode is instance_of(scheduler).start_mode
    return instance_of(scheduler).start_mode


def start_fast(scheduler: SchedulerDriver, now: float = 0.0) -> None:
    """Bring a fast start as far as `starting`, its process spawned."""
    assert begin(scheduler, now=now) is FAST
    scheduler.spawned("one", a_process(), "http://127.0.0.1:20000", now, tricks=EAGER)


def measured(fast_s: float, full_s: float, version: str = "1") -> dict[str, Entry]:
    times = {
        mode: StartTimes(version=version, seconds=(seconds,)) for mode, seconds in ((FAST, fast_s), (FULL, full_s))
    }
    return {revision(F): Entry(modes=times)}


@pytest.mark.parametrize(
    ("function", "request_", "mode"),
    [
        (F, {}, FAST),
        (F, {"waited_s": 0.0}, FULL),  # `cortex fn warm`
        (F, {"waited_s": 0.0, "minimum": True}, FULL),
        (replace(F, start=Start.FULL), {}, FULL),
        (replace(F, start=Start.FAST), {"waited_s": 0.0}, FAST),
        (PLAIN, {}, None),
    ],
)
def test_a_start_is_fast_when_a_request_waits_for_it(
    function: Any, request_: dict[str, Any], mode: StartMode | None
) -> None:
    assert begin(a_scheduler(), function, **request_) is mode


def test_a_start_for_which_a_request_has_come_meanwhile_is_fast() -> None:
    scheduler = a_scheduler(fleet=a_fleet(a_report(waiting={"f": 1})))

    assert begin(scheduler, waited_s=0.0) is FAST


def test_on_a_cpu_all_starts_are_alike() -> None:
    scheduler = a_scheduler(a_host(devices=(a_device("cpu", kind="cpu"),)))

    assert begin(scheduler) is None


@pytest.mark.parametrize("arg", ["-O3", "-O", "-cc.mode=3", "--compilation-config.mode=3", "--enforce_eager", "-x"])
def test_a_replay_chooses_the_same_mode_though_arguments_are_masked(arg: str) -> None:
    host = a_host(engines={"vllm": "0.26.0"})
    scheduler = SchedulerDriver(host, RULES, segment_events=20)
    scheduler.reported(a_fleet(a_report()), 0.0)
    begin(scheduler, a_function("v", engine=Engine.VLLM, vram_mb=4000, args=(arg, "a secret")))

    assert differences(b"".join(scheduler.log.export()).splitlines()) == []
    assert instance_of(scheduler).start_mode is (FAST if arg == "-x" else None)


@pytest.mark.parametrize(
    ("entries", "mode"),
    [(measured(9.0, 10.0), FULL), (measured(9.0, 34.0), FAST), (measured(9.0, 10.0, version="0"), FAST)],
)
def test_times_of_this_version_of_the_engine_decide(entries: dict[str, Entry], mode: StartMode) -> None:
    scheduler = a_scheduler()
    scheduler.set_ledger(entries)

    assert begin(scheduler) is mode


def test_the_decision_names_the_mode_its_tricks_and_what_a_full_start_takes() -> None:
    scheduler = a_scheduler()
    scheduler.set_ledger(measured(9.0, 34.0))
    start_fast(scheduler)

    scheduler.answered("one", 9.1)

    assert decisions(scheduler) == [("ready", "one", "after 9.100 s, fast (eager) instead of about 34 s")]


def test_a_full_start_does_not_take_the_cache_that_fits_beside_a_fast_one() -> None:
    reading = Reading(start=1.0, memory_mb=4000, cache_mb=1000)
    scheduler = a_scheduler()

    def beside_mb(readings: tuple[Reading, ...], waited_s: float) -> int:
        scheduler.set_ledger({revision(F): Entry(memory_mb=4000, readings=readings)})
        scheduler.ensure(F, HERE, "one", 0.0, waited_s=waited_s)
        (spawn,) = (e for e in new_effects(scheduler) if isinstance(e, Spawn))
        scheduler.exited("one", "was stopped", ["No space left on device"], 0.0)
        scheduler.reclaimed("one", 0.0)
        scheduler.clear_failures("f")
        return spawn.beside_cache_mb

    assert beside_mb((replace(reading, fast=True),), 0.1) == 3000
    assert beside_mb((replace(reading, fast=True),), 0.0) == 0
    assert beside_mb((reading,), 0.0) == 3000


# A trick that fails.


def test_a_fast_start_that_crashes_is_begun_again_without_its_tricks_and_is_no_failed_start() -> None:
    scheduler = a_scheduler()
    start_fast(scheduler)

    scheduler.exited("one", "exited with 1", (), 3.0)
    receipt = decisions(scheduler)
    scheduler.reclaimed("one", 4.0)

    assert receipt[0] == ("trick_failed", "one", "eager: the worker exited with 1 while starting")
    assert (scheduler.record().failures, states(scheduler)) == ((), {"one-2": State.STARTING})
    assert instance_of(scheduler, "one-2").start_mode is FULL
    assert scheduler.record().tricks_off == {revision(F): {"eager": "the worker exited with 1 while starting"}}


def test_a_full_start_that_crashes_is_begun_again_fast_and_is_no_failed_start() -> None:
    scheduler = a_scheduler()
    assert begin(scheduler, waited_s=0.0) is FULL
    scheduler.spawned("one", a_process(), "http://127.0.0.1:20000", 0.0)

    scheduler.exited("one", "exited with 1", (), 3.0)
    scheduler.reclaimed("one", 4.0)

    assert (scheduler.record().failures, states(scheduler)) == ((), {"one-2": State.STARTING})
    assert instance_of(scheduler, "one-2").start_mode is FAST
    assert scheduler.record().tricks_off == {revision(F): {"full": "the worker exited with 1 while starting"}}


def test_a_worker_that_crashes_in_both_modes_is_a_failed_start_the_next_time() -> None:
    scheduler = a_scheduler()
    assert begin(scheduler, waited_s=0.0) is FULL

    for instance, at, tricks in (("one", 3.0, ()), ("one-2", 6.0, EAGER)):
        scheduler.spawned(instance, a_process(), "http://127.0.0.1:20000", at, tricks=tricks)
        scheduler.exited(instance, "exited with 1", (), at)
        scheduler.reclaimed(instance, at + 1)
    last = next(iter(states(scheduler)))
    mode = instance_of(scheduler, last).start_mode
    scheduler.spawned(last, a_process(), "http://127.0.0.1:20000", 8.0)
    scheduler.exited(last, "exited with 1", (), 9.0)

    assert mode is FULL
    assert [f.kind for f in scheduler.record().failures] == [FailureKind.CRASH]


def test_without_tricks_a_crash_is_a_failed_start() -> None:
    scheduler = a_scheduler()
    assert begin(scheduler, replace(F, start=Start.FULL), waited_s=0.0) is FULL

    scheduler.exited("one", "exited with 1", (), 3.0)

    assert [f.kind for f in scheduler.record().failures] == [FailureKind.CRASH]
    assert scheduler.record().tricks_off == {}
    assert states(scheduler) == {"one": State.RECLAIMING}


@pytest.mark.parametrize(
    "line",
    [
        "OSError: No space left on device",
        "ModuleNotFoundError: no module named x",
        "HeaderTooLarge",
        "FileNotFoundError: config.json",
    ],
)
def test_a_crash_with_another_cause_says_nothing_of_the_tricks(line: str) -> None:
    scheduler = a_scheduler()
    start_fast(scheduler)

    scheduler.exited("one", "exited with 1", [line], 3.0)

    assert scheduler.record().tricks_off == {}
    assert len(scheduler.record().failures) == 1


def test_a_fast_start_that_runs_out_of_memory_is_begun_again_with_more_and_stays_fast() -> None:
    scheduler = a_scheduler()
    start_fast(scheduler)

    scheduler.exited("one", "exited with 1", ["CUDA out of memory"], 3.0)
    scheduler.reclaimed("one", 4.0)

    again = instance_of(scheduler, "one-2")
    assert (again.start_mode, again.memory_mb, scheduler.record().tricks_off) == (FAST, 6000, {})


def test_a_fast_start_without_a_sign_of_life_is_begun_again_without_its_tricks() -> None:
    scheduler = a_scheduler()
    start_fast(scheduler)

    scheduler.reconcile(301.0)
    scheduler.exited("one", "ended by SIGTERM", (), 302.0)
    scheduler.reclaimed("one", 302.0)

    assert states(scheduler) == {"one-2": State.STARTING}
    assert scheduler.record().tricks_off[revision(F)].keys() == {"eager"}
    assert scheduler.record().failures == ()


def test_a_fast_start_that_serves_another_model_is_a_failed_start() -> None:
    scheduler = a_scheduler()
    start_fast(scheduler)

    scheduler.start_failed("one", "it serves 'x'", (), 5.0)

    assert (len(scheduler.record().failures), scheduler.record().tricks_off) == (1, {})
    assert instance_of(scheduler).reason is DrainReason.FAILED


def test_a_cache_size_that_failed_is_not_given_again() -> None:
    reading = Reading(start=1.0, memory_mb=4000, cache_mb=1000)
    scheduler = a_scheduler()
    scheduler.set_ledger({revision(F): Entry(memory_mb=4000, readings=(reading,))})
    begin(scheduler, waited_s=0.0)
    scheduler.spawned("one", a_process(), "http://127.0.0.1:20000", 0.0, tricks=(str(Trick.KNOWN_CACHE),))

    scheduler.exited("one", "exited with 1", ["is larger than the maximum model length"], 3.0)
    scheduler.reclaimed("one", 3.0)

    (spawn,) = (e for e in new_effects(scheduler) if isinstance(e, Spawn))
    assert (spawn.instance.id, spawn.instance.start_mode, spawn.beside_cache_mb) == ("one-2", FULL, 0)


def test_tricks_that_failed_are_tried_again_when_the_operator_says_so_or_the_function_changes() -> None:
    def failing() -> SchedulerDriver:
        scheduler = a_scheduler()
        start_fast(scheduler)
        scheduler.exited("one", "exited with 1", (), 3.0)
        assert scheduler.record().tricks_off
        return scheduler

    forgotten, changed = failing(), failing()
    forgotten.clear_failures("f")
    changed.apply_catalogue({"f": replace(F, context=4096)}, "digest", 4.0)

    assert forgotten.record().tricks_off == {}
    assert changed.record().tricks_off == {}
