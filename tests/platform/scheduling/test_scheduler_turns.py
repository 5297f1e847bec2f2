"""Turns as the scheduler carries them out: closing, waiting for what is in flight, and the order of the line."""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted, Rejected
from cortex.platform.record import HostRecord, Instance
from cortex.platform.scheduling.effects import Decision, Look, Stop
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.placement import MINIMUM_YIELDS_S
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.state import Rules
from cortex.platform.scheduling.turns import FORGET_S, REPORTED_S
from tests.support.factories import a_device, a_fleet, a_function, a_host, a_process, a_report
from tests.support.scheduling import SchedulerDriver

HERE = LocalWeights("/cache/weights.gguf", 1000)
RULES = Rules(drain_grace_s=20.0)
F = a_function("f", vram_mb=6000, request_timeout_s=300.0)
G = a_function("g", vram_mb=6000)
H = a_function("h", vram_mb=6000)
TWO_GPUS = a_host(devices=(a_device("gpu-0"), a_device("gpu-1")))
BOTH = a_function("both", vram_mb=12_000, min_devices=2)


class Stage:
    """A scheduler, what one router reports to it, and a clock."""

    def __init__(self, host: HostRecord | None = None) -> None:
        self.scheduler = SchedulerDriver(host or a_host(), RULES)
        self.now = 1000.0
        self.in_flight: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.used: dict[str, float] = {}
        self.others: dict[str, HostRecord] = {}
        self.report()

    def report(self, **more: Any) -> None:
        """Have the router report what is in flight and waiting, and acknowledge every drain."""
        epoch = self.scheduler.record().epoch
        self.used |= {f"i:{i}": self.now for i, n in self.in_flight.items() if n}
        fleet = a_fleet(a_report(in_flight=self.in_flight, waiting=self.waiting, seen=epoch), used=self.used)
        self.scheduler.reported(replace(fleet, hosts=self.others), self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.report()

    def bring_up(self, function: Function, instance: str, *, busy: int = 1) -> None:
        """Have an instance ready and in use."""
        assert self.scheduler.ensure(function, HERE, instance, self.now) == Accepted(instance, State.STARTING)
        self.scheduler.spawned(instance, a_process(), "http://127.0.0.1:20000", self.now)
        self.scheduler.answered(instance, self.now)
        self.in_flight[instance] = busy
        self.report()
        self.scheduler.take_effects()

    def wait(self, function: Function, instance: str = "new", *, waited_s: float = 0.0) -> Accepted | Rejected:
        """Have a router with a waiting request propose a start, in its turn."""
        self.waiting[function.id] = 1
        self.report()
        return self.scheduler.ensure(function, HERE, instance, self.now, waited_s=waited_s, turn=True)

    def finish(self, instance: str) -> None:
        """Let an instance's requests end, and its worker go when it is stopped."""
        self.in_flight.pop(instance, None)
        self.report()
        for effect in self.scheduler.take_effects():
            if isinstance(effect, Look):
                self.scheduler.looked(instance, 0, 0, self.now)
        if any(isinstance(e, Stop) for e in self.scheduler.take_effects()):
            self.scheduler.exited(instance, "exited with 0", (), self.now)
            self.scheduler.reclaimed(instance, self.now)

    def states(self) -> dict[str, State]:
        return {i.id: i.state for i in self.scheduler.record().instances}

    def one(self, instance: str) -> Instance:
        return next(i for i in self.scheduler.record().instances if i.id == instance)

    def line(self) -> list[str]:
        return [w.function for w in self.scheduler.record().line]

    def decisions(self) -> list[tuple[str, str, str]]:
        return [(e.what, e.function, e.why) for e in self.scheduler.take_effects() if isinstance(e, Decision)]


def test_within_the_tenure_of_a_busy_instance_the_waiter_joins_the_line() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(5)

    answer = stage.wait(G)

    assert isinstance(answer, Rejected)
    assert answer.turn_in_s == 10.0
    assert stage.states() == {"f1": State.READY}
    (waiter,) = stage.scheduler.record().line
    assert (waiter.function, waiter.since, waiter.turn_at, waiter.closes) == ("g", 1005.0, 1015.0, ("f1",))


def test_after_the_tenure_a_busy_instance_is_closed_and_the_waiter_starts_when_its_requests_have_ended() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.wait(G)
    stage.pass_time(15)

    assert stage.wait(G) == Accepted("new", State.PLACING)
    assert (stage.one("f1").state, stage.one("f1").yields_to) == (State.DRAINING, "g")
    assert ("closed", "f", "for the turn of g") in stage.decisions()
    stage.pass_time(100)
    assert stage.states() == {"f1": State.DRAINING, "new": State.PLACING}

    stage.finish("f1")

    assert stage.states() == {"new": State.STARTING}
    assert stage.line() == []


def test_without_a_turn_a_busy_instance_stays_however_long_others_wait() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(1000)

    answer = stage.scheduler.ensure(G, HERE, "new", stage.now, waited_s=500.0)

    assert isinstance(answer, Rejected)
    assert answer.turn_in_s == 0.0
    assert stage.states() == {"f1": State.READY}
    assert stage.line() == []


def test_a_plan_says_when_a_request_would_have_its_turn_and_puts_nothing_in_line() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(5)

    planned = stage.scheduler.plan(G, HERE, stage.now)

    assert isinstance(planned, Rejected)
    assert planned.turn_in_s == 10.0
    assert stage.line() == []


def test_a_function_that_closes_nothing_waits_in_line_without_an_estimate() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(1000)

    answer = stage.wait(replace(G, turn_wait_s=0.0), waited_s=500.0)

    assert isinstance(answer, Rejected)
    assert answer.turn_in_s is None
    assert [w.turn_at for w in stage.scheduler.record().line] == [0.0]


def test_requests_that_outlast_the_grace_are_waited_for_and_that_is_reported_once() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(15)
    stage.wait(G)
    stage.decisions()

    stage.pass_time(F.turn_grace_s)
    stage.pass_time(1)

    assert stage.one("f1").state is State.DRAINING
    assert stage.one("f1").deadline == 1015.0 + 300.0
    why = (
        "its requests in flight (1) take longer than `turn_grace_s`; g waits for them, at most 300 s from when it was"
        " closed"
    )
    assert [r for r in stage.decisions() if r[0] == "overdue"] == [("overdue", "f", why)]


def test_requests_in_flight_after_the_request_timeout_cancel_the_closing() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(15)
    stage.wait(G)

    stage.pass_time(F.request_timeout_s)

    assert stage.one("f1").state is State.READY
    assert stage.one("f1").yields_to == ""


def test_the_closing_is_cancelled_when_the_waiting_requests_leave() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(15)
    stage.wait(G)

    stage.waiting = {}
    stage.pass_time(REPORTED_S + 0.5)
    stage.pass_time(0.5)

    assert stage.states() == {"f1": State.READY}


def test_the_displaced_function_is_next_and_has_its_turn_after_the_others_tenure() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(15)
    stage.wait(G, "g1")
    stage.finish("f1")
    del stage.waiting["g"]
    stage.scheduler.spawned("g1", a_process(), "http://127.0.0.1:20001", stage.now)
    stage.scheduler.answered("g1", stage.now)
    stage.in_flight["g1"] = 1

    answer = stage.wait(F, "f2", waited_s=2.0)
    assert isinstance(answer, Rejected)
    assert answer.turn_in_s == 15.0
    stage.pass_time(15)
    assert stage.wait(F, "f2", waited_s=17.0) == Accepted("f2", State.PLACING)
    assert stage.one("g1").yields_to == "f"


def test_the_longest_waiter_is_served_first_though_the_other_asks_first() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(12)
    stage.wait(G, waited_s=30.0)
    stage.wait(H, waited_s=5.0)
    stage.pass_time(3)

    assert isinstance(stage.wait(H, "h1", waited_s=8.0), Rejected)
    assert stage.line() == ["g", "h"]
    assert stage.states() == {"f1": State.READY}
    assert stage.wait(G, "g1", waited_s=33.0) == Accepted("g1", State.PLACING)
    assert stage.line() == ["h"]


def test_a_waiter_of_higher_priority_goes_before_one_that_waits_longer() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(12)
    stage.wait(G, waited_s=30.0)
    stage.pass_time(3)

    assert stage.wait(replace(H, priority=1), "h1") == Accepted("h1", State.PLACING)


def test_free_room_that_a_function_of_two_devices_waits_for_is_not_given_to_those_behind_it() -> None:
    stage = Stage(TWO_GPUS)
    stage.bring_up(F, "f1")
    stage.bring_up(G, "g1")
    stage.wait(BOTH, waited_s=10.0)
    stage.scheduler.exited("g1", "exited with 0", (), stage.now)
    stage.scheduler.reclaimed("g1", stage.now)
    stage.in_flight.pop("g1")

    assert isinstance(stage.wait(H, "h1"), Rejected)
    stage.pass_time(5)
    stage.wait(BOTH, waited_s=15.0)
    stage.pass_time(5)
    stage.wait(BOTH, waited_s=20.0)
    stage.pass_time(5)
    assert stage.wait(BOTH, "b1", waited_s=25.0) == Accepted("b1", State.PLACING)
    assert stage.one("b1").devices == ("gpu-0", "gpu-1")


def test_a_reservation_ends_when_no_router_renews_it() -> None:
    stage = Stage(TWO_GPUS)
    stage.bring_up(F, "f1")
    stage.wait(BOTH)
    assert isinstance(stage.wait(H, "h1"), Rejected)

    stage.pass_time(FORGET_S + 1)

    assert stage.wait(H, "h1") == Accepted("h1", State.STARTING)


def test_a_function_that_comes_up_on_another_host_leaves_the_line() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.wait(G)
    elsewhere = Instance(
        id="g9", function="g", revision=revision(G), state=State.STARTING, since=stage.now, created=stage.now
    )

    stage.others = {"host-b": HostRecord(name="host-b", address="http://host-b:13131", instances=(elsewhere,))}
    stage.report()

    assert stage.line() == []


def test_missing_weights_are_fetched_before_the_turn() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")

    assert stage.scheduler.ensure(G, None, "g1", stage.now, turn=True) == Accepted("g1", State.FETCHING)
    assert stage.states() == {"f1": State.READY, "g1": State.FETCHING}


def test_a_function_that_waits_for_a_long_answer_is_no_problem_of_its_host() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(15)
    stage.wait(G)

    stage.pass_time(250)

    assert stage.states() == {"f1": State.DRAINING, "new": State.PLACING}
    assert [i.problem for i in stage.scheduler.record().instances] == ["", ""]


@settings(max_examples=8)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=2, max_size=4),
    st.randoms(use_true_random=False),
)
def test_no_function_waits_longer_than_one_turn_of_each_other(costs: list[tuple[int, int]], random: Random) -> None:
    """Every function always has requests; `costs` are the seconds of an answer and of a start of each."""
    functions = [a_function(f"f{n}", vram_mb=6000, turn_min_s=15.0, turn_wait_s=20.0) for n in range(len(costs))]
    answers = {f.id: answer_s for f, (answer_s, _) in zip(functions, costs, strict=True)}
    starts = {f.id: start_s for f, (_, start_s) in zip(functions, costs, strict=True)}
    most = sum(max(15.0, 3 * starts[f]) + answers[f] + starts[f] + 3.0 for f in answers)
    stage, waited = Stage(), dict.fromkeys(answers, 0.0)
    ends: dict[str, float] = {}
    ready_at: dict[str, float] = {}
    for second in range(round(3 * most)):
        for instance in stage.scheduler.record().instances:
            f = instance.function
            match instance.state:
                case State.STARTING if not instance.pid:
                    stage.scheduler.spawned(instance.id, a_process(), "http://127.0.0.1:1", stage.now)
                    ready_at[instance.id] = stage.now + starts[f]
                case State.STARTING if stage.now >= ready_at[instance.id]:
                    stage.scheduler.answered(instance.id, stage.now)
                case State.READY if stage.now >= ends.get(instance.id, 0.0):
                    ends[instance.id] = stage.now + answers[f]
                    stage.in_flight[instance.id] = 1
                    waited[f] = 0.0
                case State.DRAINING if stage.now >= ends.get(instance.id, 0.0):
                    stage.finish(instance.id)
        up = {i.function for i in stage.scheduler.record().instances if i.state is State.READY}
        stage.waiting = {f: 1 for f in answers if f not in up}
        stage.report()
        for function in random.sample(functions, len(functions)):
            if function.id in stage.waiting:
                waited_s = waited[function.id]
                stage.scheduler.ensure(
                    function, HERE, f"{function.id}-{second}", stage.now, waited_s=waited_s, turn=True
                )
                waited[function.id] += 1.0
        assert max(waited.values()) <= most
        stage.scheduler.take_effects()
        stage.now += 1.0


def test_a_start_for_a_minimum_does_not_evict_a_recently_used_instance() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.in_flight = {}
    stage.pass_time(MINIMUM_YIELDS_S - 1)

    assert isinstance(stage.scheduler.ensure(G, HERE, "g1", stage.now, minimum=True), Rejected)
    stage.pass_time(1)
    assert stage.scheduler.ensure(G, HERE, "g1", stage.now, minimum=True) == Accepted("g1", State.PLACING)


def test_an_unused_minimum_gives_way_to_the_first_request_for_another() -> None:
    stage = Stage()
    assert stage.scheduler.ensure(F, HERE, "f1", stage.now, minimum=True) == Accepted("f1", State.STARTING)
    stage.scheduler.spawned("f1", a_process(), "http://127.0.0.1:20000", stage.now)
    stage.scheduler.answered("f1", stage.now)
    stage.pass_time(1)

    assert stage.wait(G, "g1") == Accepted("g1", State.PLACING)


def test_the_line_has_the_duration_of_earlier_starts() -> None:
    stage = Stage()
    stage.scheduler.set_ledger({revision(G): Entry(start_s=42.0, starts=3)})
    stage.bring_up(F, "f1")

    stage.wait(G)

    assert [w.start_s for w in stage.scheduler.record().line] == [42.0]


def test_a_restarted_agent_cancels_a_closing() -> None:
    stage = Stage()
    stage.bring_up(F, "f1")
    stage.pass_time(15)
    stage.wait(G)
    (worker,) = stage.scheduler.saved_state().workers
    later = SchedulerDriver(a_host(), RULES)

    later.adopt(worker, stage.now, alive=True, healthy=True)

    (instance,) = later.record().instances
    assert (instance.state, instance.yields_to, instance.deadline) == (State.READY, "", 0.0)
