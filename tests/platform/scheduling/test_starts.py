"""Starts: signs of life, one at a time on a GPU, failures and their back-off."""

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform.agent_messages import Accepted, Rejected
from cortex.platform.record import FailureKind
from cortex.platform.scheduling.effects import Reclaim, Spawn, Stop
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.reconcile import STABLE_S
from tests.support.factories import a_fleet, a_function, a_process, a_report
from tests.support.scheduling import (
    HERE,
    ON_CPU,
    OTHER,
    RULES,
    SMALL,
    TWO_GPUS,
    F,
    G,
    a_scheduler,
    bring_up,
    clear_away,
    crash,
    decisions,
    instance_of,
    look,
    new_effects,
    start,
    states,
    three_crashes,
)

# Starting


def test_a_worker_that_answers_is_ready() -> None:
    scheduler = a_scheduler()
    start(scheduler, now=10.0)

    scheduler.answered("one", 12.5)

    assert (instance_of(scheduler).state, instance_of(scheduler).ready, instance_of(scheduler).phase) == (
        State.READY,
        12.5,
        "",
    )
    assert decisions(scheduler) == [("ready", "one", "after 2.500 s")]


def test_a_workers_process_and_url_are_recorded() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, HERE, "one", 10.0)

    scheduler.spawned("one", a_process(4711), "http://127.0.0.1:20001", 10.5)

    worker = instance_of(scheduler)
    assert (worker.process, worker.url) == (a_process(4711), "http://127.0.0.1:20001")
    assert (worker.started, worker.last_sign) == (10.5, 10.5)


def test_only_a_starting_instance_gets_a_process() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, None, "one", 0.0)
    before = scheduler.record()

    scheduler.spawned("one", a_process(4711), "http://127.0.0.1:20001", 1.0)

    assert scheduler.record() == before


def test_an_exit_while_starting_is_a_failure_at_once() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.exited("one", "exited with 1", ["no such file"], 3.0)

    (failure,) = scheduler.record().failures
    assert (failure.kind, failure.reason, failure.lines, failure.count) == (
        FailureKind.CRASH,
        "the worker exited with 1 while starting",
        1,
        1,
    )
    assert new_effects(scheduler) == [Reclaim(instance_of(scheduler))]
    assert states(scheduler) == {"one": State.RECLAIMING}


def test_a_worker_that_cannot_be_spawned_is_a_failure() -> None:
    scheduler = a_scheduler()
    scheduler.ensure(F, HERE, "one", 0.0)
    scheduler.take_effects()

    scheduler.spawn_failed("one", "no 'fake' on this host", 0.1)

    assert [f.reason for f in scheduler.record().failures] == ["no 'fake' on this host"]
    assert new_effects(scheduler) == [Reclaim(instance_of(scheduler))]


def test_a_worker_that_serves_another_model_is_stopped_and_is_a_failure() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.start_failed("one", "it serves 'x'", ["loaded x"], 5.0)
    stopped = new_effects(scheduler)
    clear_away(scheduler, now=6.0)

    (failure,) = scheduler.record().failures
    assert [type(effect) for effect in stopped] == [Stop]
    assert (failure.reason, failure.lines, failure.count) == ("it serves 'x'", 1, 1)
    assert states(scheduler) == {}


def test_a_start_that_falls_silent_has_failed() -> None:
    scheduler = a_scheduler()
    start(scheduler, now=0.0)
    scheduler.sign_of_life("one", "loading", 100.0)

    scheduler.reconcile(400.0)
    before = states(scheduler)
    scheduler.reconcile(400.1)

    assert before == {"one": State.STARTING}
    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert [f.reason for f in scheduler.record().failures] == ["the start showed no sign of life for 300 s"]


def test_a_start_that_never_ends_has_failed_however_alive_it_seems() -> None:
    scheduler = a_scheduler(rules=replace(RULES, start_ceiling_s=200.0))
    start(scheduler, now=0.0)
    scheduler.sign_of_life("one", "loading", 220.0)

    scheduler.reconcile(220.0)  # 1000 MiB of weights may take 20 s more
    before = states(scheduler)
    scheduler.reconcile(220.1)

    assert before == {"one": State.STARTING}
    assert new_effects(scheduler) == [Stop(instance_of(scheduler), 5.0)]
    assert [f.reason for f in scheduler.record().failures] == ["the start took longer than 220 s"]


def test_the_time_of_a_start_is_the_sum_of_the_phases_in_the_log() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.sign_of_life("one", "loading weights", 3.0)
    scheduler.sign_of_life("one", "loading weights", 8.0, 0.5)
    loading = instance_of(scheduler)
    scheduler.sign_of_life("one", "warming up", 10.0)
    warming = instance_of(scheduler)
    scheduler.answered("one", 14.0)

    assert (loading.phase, loading.progress) == ("loading weights", 0.5)
    assert (warming.phase, warming.progress) == ("warming up", None)
    ready = instance_of(scheduler)
    assert (ready.phase, ready.progress) == ("", None)
    spent = {"starting": 3.0, "loading weights": 7.0, "warming up": 4.0}
    assert {k: v for k, v in ready.phases.items() if k != "placing"} == spent


def test_a_sign_of_life_without_a_phase_keeps_the_phase() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.sign_of_life("one", "loading", 1.0)
    scheduler.sign_of_life("one", "", 2.0)

    assert (instance_of(scheduler).phase, instance_of(scheduler).last_sign) == ("loading", 2.0)


# Lanes


def test_two_starts_on_one_gpu_run_one_after_the_other() -> None:
    scheduler = a_scheduler()
    start(scheduler, SMALL, "one")

    answer = scheduler.ensure(OTHER, HERE, "two", 1.0)
    meanwhile = new_effects(scheduler)
    scheduler.answered("one", 5.0)

    assert answer == Accepted("two", State.PLACING)
    assert meanwhile == []
    assert [effect.instance.id for effect in new_effects(scheduler) if isinstance(effect, Spawn)] == ["two"]


def test_starts_on_different_gpus_go_in_parallel() -> None:
    scheduler = a_scheduler(TWO_GPUS)

    start(scheduler, F, "one")
    start(scheduler, G, "two")

    assert (instance_of(scheduler, "one").devices, instance_of(scheduler, "two").devices) == (("gpu-0",), ("gpu-1",))


def test_starts_on_a_cpu_go_in_parallel() -> None:
    scheduler = a_scheduler(ON_CPU)

    start(scheduler, SMALL, "one")
    start(scheduler, OTHER, "two")

    assert states(scheduler) == {"one": State.STARTING, "two": State.STARTING}


def test_a_start_over_two_gpus_waits_for_both() -> None:
    scheduler = a_scheduler(TWO_GPUS)
    start(scheduler, SMALL, "one")
    wide = a_function("wide", min_devices=2)

    answer = scheduler.ensure(wide, HERE, "two", 1.0)
    scheduler.answered("one", 5.0)

    assert answer == Accepted("two", State.PLACING)
    assert states(scheduler) == {"one": State.READY, "two": State.STARTING}


def test_a_start_waits_for_a_stop_and_its_memory_on_the_same_gpu() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL, "one")
    scheduler.cool("small", 10.0, at_once=True)

    answer = scheduler.ensure(OTHER, HERE, "two", 10.0)
    scheduler.exited("one", "exited with 0", (), 11.0)
    reclaiming = states(scheduler)
    scheduler.reclaimed("one", 12.0)

    assert answer == Accepted("two", State.PLACING)
    assert reclaiming == {"one": State.RECLAIMING, "two": State.PLACING}
    assert states(scheduler) == {"two": State.STARTING}


def test_a_drained_worker_is_not_stopped_during_a_start_on_the_same_gpu() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, SMALL, "one")
    start(scheduler, OTHER, "two", 299.0)
    scheduler.reconcile(300.0)

    scheduler.reported(a_fleet(a_report(seen=1)), 301.0)
    look(scheduler, 301.0)
    meanwhile = states(scheduler)
    scheduler.answered("two", 302.0)
    look(scheduler, 302.0)

    assert meanwhile == {"one": State.DRAINING, "two": State.STARTING}
    assert states(scheduler) == {"one": State.STOPPING, "two": State.READY}


def test_a_crash_frees_the_lane_when_the_memory_is_back() -> None:
    scheduler = a_scheduler()
    start(scheduler, SMALL, "one")
    scheduler.ensure(OTHER, HERE, "two", 1.0)

    clear_away(scheduler, "one", 2.0)

    assert states(scheduler) == {"two": State.STARTING}


# Failures in a row


def test_after_three_crashes_in_a_row_starts_back_off_one_two_and_four_minutes() -> None:
    scheduler = a_scheduler()
    for n, at in enumerate((0.0, 1.0, 2.0)):
        crash(scheduler, f"i{n}", at)

    refused = [scheduler.ensure(F, HERE, "x", 61.9)]
    crash(scheduler, "i3", 62.0)
    refused.append(scheduler.ensure(F, HERE, "x", 181.9))
    crash(scheduler, "i4", 182.0)
    refused.append(scheduler.ensure(F, HERE, "x", 421.9))
    crash(scheduler, "i5", 422.0)

    assert [r.retry_at for r in refused if isinstance(r, Rejected)] == [62.0, 182.0, 422.0]


def test_a_rejection_during_a_back_off_has_the_reason_and_the_time() -> None:
    scheduler = three_crashes()
    (failure,) = scheduler.record().failures

    assert scheduler.ensure(F, HERE, "x", 12.0) == Rejected(
        "starts keep failing (3 in a row), tried again no sooner than 50 s from now: "
        "the worker exited with 0 while starting",
        When.LATER,
        retry_at=62.0,
        failure=failure,
    )


def test_a_back_off_concerns_one_function() -> None:
    assert three_crashes().ensure(G, HERE, "x", 3.0) == Accepted("x", State.STARTING)


def test_a_forced_start_does_not_wait_for_the_back_off() -> None:
    assert three_crashes().ensure(F, HERE, "x", 3.0, force=True) == Accepted("x", State.STARTING)


def test_after_failures_are_cleared_a_start_is_possible_at_once() -> None:
    scheduler = three_crashes()

    scheduler.clear_failures("f")

    assert scheduler.ensure(F, HERE, "x", 3.0) == Accepted("x", State.STARTING)


def test_a_new_revision_is_tried_at_once() -> None:
    assert three_crashes().ensure(replace(F, args=("--mended",)), HERE, "x", 3.0) == Accepted("x", State.STARTING)


def test_an_instance_that_proves_stable_ends_the_row() -> None:
    scheduler = three_crashes()
    bring_up(scheduler, F, "x", 62.0)

    scheduler.reconcile(62.0 + STABLE_S)
    before = len(scheduler.record().failures)
    scheduler.reconcile(62.1 + STABLE_S)

    assert before == 1
    assert scheduler.record().failures == ()


def test_a_worker_that_dies_before_it_is_stable_does_not_add_to_the_row_of_failed_starts() -> None:
    scheduler = three_crashes()
    bring_up(scheduler, F, "x", 62.0)

    clear_away(scheduler, "x", 70.0)

    assert [(f.count, f.early, f.retry_at) for f in scheduler.record().failures] == [(3, 1, 62.0)]


def test_a_function_whose_workers_die_while_they_serve_is_started_at_once() -> None:
    scheduler = a_scheduler()
    for n in range(20):
        bring_up(scheduler, F, f"i{n}", 100.0 * n)
        clear_away(scheduler, f"i{n}", 100.0 * n + 30.0)

    answer = scheduler.ensure(F, HERE, "next", 1931.0)

    assert answer == Accepted("next", State.STARTING)


def test_a_function_whose_workers_die_right_after_ready_backs_off_with_the_reason() -> None:
    scheduler = a_scheduler()
    for n in range(6):
        bring_up(scheduler, F, f"i{n}", float(n))
        clear_away(scheduler, f"i{n}", n + 0.5)

    answer = scheduler.ensure(F, HERE, "next", 6.0)

    assert isinstance(answer, Rejected)
    assert answer.reason.startswith("starts keep failing (6 in a row), tried again no sooner than 60 s from now")


def test_failures_survive_the_agent() -> None:
    record = three_crashes().record()

    scheduler = a_scheduler(record)

    assert isinstance(scheduler.ensure(F, HERE, "x", 3.0), Rejected)


# Out of memory


OOM = ["torch.OutOfMemoryError: CUDA out of memory."]


def test_a_start_that_ran_out_of_memory_is_tried_once_more_with_more_of_it() -> None:
    scheduler = a_scheduler()
    start(scheduler)

    scheduler.exited("one", "exited with 1", OOM, 5.0)
    scheduler.reclaimed("one", 6.0)

    (again,) = scheduler.record().instances
    assert (again.id, again.state, again.memory_mb) == ("one-2", State.STARTING, 9000)
    assert [(f.kind, f.count) for f in scheduler.record().failures] == [(FailureKind.OUT_OF_MEMORY, 1)]


def test_others_are_evicted_for_a_start_that_ran_out_of_memory() -> None:
    scheduler = a_scheduler()
    bring_up(scheduler, a_function("idle", vram_mb=2000), "idle")
    start(scheduler, now=100.0)

    scheduler.exited("one", "exited with 1", OOM, 105.0)

    assert states(scheduler) == {
        "idle": State.DRAINING,
        "one": State.RECLAIMING,
        "one-2": State.PLACING,
    }


def test_a_start_that_runs_out_of_memory_again_has_crashed() -> None:
    scheduler = a_scheduler()
    start(scheduler)
    scheduler.exited("one", "exited with 1", OOM, 5.0)
    scheduler.reclaimed("one", 6.0)

    scheduler.exited("one-2", "exited with 1", OOM, 10.0)
    scheduler.reclaimed("one-2", 11.0)

    assert states(scheduler) == {}
    assert [(f.kind, f.count) for f in scheduler.record().failures] == [(FailureKind.CRASH, 2)]


def test_a_function_for_which_there_never_is_enough_memory_backs_off_as_well() -> None:
    scheduler = a_scheduler()
    needy = a_function("needy", vram_mb=8000)  # half as much again is more than the device has: it gets all of it

    for n, at in enumerate((0.0, 10.0)):
        start(scheduler, needy, f"i{n}", at)
        for instance in (f"i{n}", f"i{n}-2"):
            scheduler.exited(instance, "exited with 1", OOM, at)
            scheduler.reclaimed(instance, at)

    answer = scheduler.ensure(needy, HERE, "x", 30.0)
    assert isinstance(answer, Rejected)
    assert answer.retry_at == 10.0 + 120.0  # four in a row
