"""The scheduler holds its invariants under any order of events, including late, repeated and unknown ones.

Hypothesis plays callers, routers, operators and a supervisor that answers, answers late, or sends made-up events.
After every step the invariants are checked; at the end everybody behaves, and everything must come to rest.
"""

from itertools import combinations
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

import tests.support  # noqa: F401
from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import LIVE, PARKED, State
from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted, PlacementPlan, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, HostRecord, Instance, Tier, used_instance
from cortex.platform.scheduling.effects import Decision, Effect, Look, Park, Spawn, Stop, Wake
from cortex.platform.scheduling.eviction import FIRST_SERVE_S
from cortex.platform.scheduling.ledger import Entry, StartTimes
from cortex.platform.scheduling.parking import is_leaving
from cortex.platform.scheduling.saved_state import LocalWeights, SavedWorker
from cortex.platform.scheduling.scheduler import REPORTS_BACK_S
from cortex.platform.scheduling.state import Rules
from tests.support.factories import HOST, a_device, a_fleet, a_function, a_host, a_process, a_report, an_instance
from tests.support.replay import differences
from tests.support.scheduling import SchedulerDriver

HERE = LocalWeights("/cache/weights", 1)
DEVICES = (a_device("gpu-0", 10), a_device("gpu-1", 8), a_device("cpu", 5, kind="cpu"))
MOVING = (State.STARTING, State.PARKING, State.STOPPING, State.RECLAIMING)
TIERS: list[dict[Tier, str]] = [
    {},
    {Tier.SLEEP: "", Tier.FREEZE: "the driver is too old"},
    {Tier.SLEEP: "", Tier.FREEZE: ""},
]
RULES = Rules(drain_grace_s=20.0, start_silence_s=60.0, start_ceiling_s=200.0)

SECRET = "a-secret-of-a-function"
FUNCTIONS = {
    f.id: replace(f, args=("--asleep-mb", "1", *(("--full-load-s", "9") if f.id in ("mid", "kept", "warm") else ())))
    for f in (
        a_function("tiny", vram_mb=2, idle_after_s=5.0, env={"TOKEN": SECRET}),
        a_function("mid", vram_mb=5, priority=1, idle_after_s=100.0),
        a_function("big", vram_mb=9, idle_after_s=40.0),
        a_function("brief", vram_mb=8, idle_after_s=0.0),
        a_function("wide", vram_mb=14, min_devices=2, idle_after_s=100.0),
        a_function("kept", vram_mb=4, pinned_on=(HOST,), idle_after_s=10.0),
        a_function("warm", vram_mb=3, min=1, idle_after_s=10.0),
    )
}
CHANGED = {name: replace(f, args=(*f.args, f"--token={SECRET}", "-np", "2")) for name, f in FUNCTIONS.items()}
OTHER = replace(
    a_host(
        an_instance("a-warm", function="warm", revision=revision(FUNCTIONS["warm"])),
        an_instance("a-tiny", function="tiny", revision=revision(FUNCTIONS["tiny"]), state=State.STARTING),
    ),
    name="other",
)
CATALOGUES = [
    *[FUNCTIONS] * 4,
    {**FUNCTIONS, "tiny": CHANGED["tiny"]},
    {**FUNCTIONS, "mid": CHANGED["mid"]},
    CHANGED,
    {},
]

TWO_MODES = [FUNCTIONS[name] for name in ("mid", "kept", "warm")]
"""Functions that start fast or in full, which takes 3 s."""
LEDGER = {revision(f): Entry(modes={StartMode.FULL: StartTimes(version="1", seconds=(3.0,))}) for f in TWO_MODES}

NAMES = st.sampled_from(list(FUNCTIONS))
SPECS = st.sampled_from([*list(FUNCTIONS.values()) * 4, *CHANGED.values()])
PICKS = st.integers(0, 30)
BUSY = st.lists(st.sampled_from([0, 0, 2]), max_size=6)


def present_mb(instance: Instance) -> int:
    """The memory that a process holds on each device now."""
    if instance.state is State.PLACING:
        return instance.parked_mb if instance.parked is Tier.SLEEP else 0
    return 0 if instance.state is State.FETCHING else instance.held_mb


def is_asleep(worker: SavedWorker, n: int) -> bool | None:
    """What the engine of a worker says after a restart of the agent: half-way, either."""
    instance = worker.instance
    if instance.state in PARKED or instance.state is State.PLACING:
        return True
    half_way = instance.state is State.PARKING or (instance.state is State.STARTING and instance.parks_to is not None)
    return n % 2 == 0 or instance.parked is not None if half_way else None


class Agent(RuleBasedStateMachine):
    """A scheduler, the world around it, and the pending effects."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = SchedulerDriver(a_host(devices=DEVICES), RULES, segment_events=20)
        self.now = 0.0
        self.starts = 0
        self.fleet: Fleet | None = None
        self.last_read: Fleet | None = None
        self.read_since = 0.0
        self.forced = False
        self.pending: dict[tuple[str, str], Effect] = {}
        self.before: HostRecord = self.scheduler.record()

    @initialize(
        strategy=st.sampled_from(["lru", "priority"]), tiers=st.sampled_from(TIERS), ram_mb=st.sampled_from([6, 12, 60])
    )
    def begin(self, strategy: str, tiers: dict[Tier, str], ram_mb: int) -> None:
        host = a_host(devices=DEVICES, tiers=tiers, park_ram_mb=ram_mb if tiers else 0)
        self.scheduler = SchedulerDriver(host, replace(RULES, strategy=strategy), segment_events=20)
        self.scheduler.set_ledger(LEDGER)
        self.report(0, 0, [], [])

    # The world.

    @rule(function=SPECS, here=st.booleans(), force=st.booleans(), waits=st.booleans())
    def ensure(self, function: Function, here: bool, force: bool, waits: bool = False) -> None:
        """A plan says beforehand what will come of it, except that it does not mind a back-off."""
        self.starts += 1
        plan = self.scheduler.plan(function, HERE if here else None, self.now)
        weights, waited_s = HERE if here else None, 0.1 if waits else 0.0
        answer = self.scheduler.ensure(function, weights, f"i{self.starts}", self.now, force=force, waited_s=waited_s)

        assert isinstance(answer, Rejected) or answer.instance in [i.id for i in self.instances()]
        match plan, answer:
            case PlacementPlan(there=running, returns=parked), Accepted(instance=instance):
                assert instance == (running or parked or f"i{self.starts}")
            case PlacementPlan(retry_at=retry_at), Rejected():
                assert retry_at > self.now
            case Rejected(reason=reason), Rejected(reason=other_reason, failure=None):
                assert reason == other_reason
            case Rejected(), Accepted():
                raise AssertionError(f"planned not to be, yet it is: {plan}")
        self.check()

    @rule(holder=SPECS, function=SPECS, waited_s=st.sampled_from([0.0, 61.0]), later=st.sampled_from([1.0, 16.0]))
    def take_turn(self, holder: Function, function: Function, waited_s: float, later: float) -> None:
        """Ensure it for requests that wait, in its turn, while everything that is up is in use."""
        self.bring_up(holder, [])
        self.now += later
        up = [i.id for i in self.instances() if i.state in (State.READY, State.DRAINING)]
        epoch = self.scheduler.record().epoch
        self.receive_fleet(a_fleet(a_report(seen=epoch, in_flight=dict.fromkeys(up, 1), waiting={function.id: 1})))
        self.starts += 1
        answer = self.scheduler.ensure(function, HERE, f"i{self.starts}", self.now, waited_s=waited_s, turn=True)

        assert isinstance(answer, Rejected) or answer.instance in [i.id for i in self.instances()]
        self.check()

    @rule(function=SPECS, busy=BUSY)
    def bring_up(self, function: Function, busy: list[int]) -> None:
        """Ensure it when all that is idle may be evicted, and let everybody answer as they should."""
        self.now += FIRST_SERVE_S
        self.report(0, 1, busy, [])
        self.ensure(function, True, False, True)
        self.report(0, 1, [], [])
        self.answer_everything()
        self.answer_everything()

    @rule(function=st.sampled_from(TWO_MODES), seconds=st.sampled_from([61.0, 121.0]), busy=st.sampled_from([[], [2]]))
    def be_quiet(self, function: Function, seconds: float, busy: list[int]) -> None:
        """Start an instance fast; then nothing else happens for a while, so a full start begins."""
        self.bring_up(function, [])
        for after in (seconds, 0.0, 0.0):
            self.now += after
            self.report(0, 1, busy, [])

    @rule(
        seen=st.sampled_from([0, 0, 0, 1, 3]),
        routers=st.sampled_from([1, 1, 2, 0]),
        busy=BUSY,
        used=st.lists(st.sampled_from([0.0, 3.0, 40.0]), max_size=6),
        cordoned=st.sampled_from([False] * 7 + [True]),
        elsewhere=st.booleans(),
    )
    def report(
        self,
        seen: int,
        routers: int,
        busy: list[int],
        used: list[float],
        cordoned: bool = False,
        elsewhere: bool = False,
    ) -> None:
        """Routers may be behind by some epochs; only what is up can be in use. Another host may have instances, too."""
        up = [i.id for i in self.instances() if i.state in (State.READY, State.DRAINING)]
        reports = [
            a_report(
                f"router-{n}",
                seen=max(0, self.scheduler.record().epoch - seen),
                in_flight=dict(zip(up, busy, strict=False)),
            )
            for n in range(routers)
        ]
        at = {used_instance(i): self.now - ago for i, ago in zip(up, used, strict=False)}
        fleet = a_fleet(*reports, used=at, cordoned=cordoned)
        self.receive_fleet(replace(fleet, hosts={OTHER.name: OTHER} if elsewhere else {}))

    def receive_fleet(self, fleet: Fleet | None) -> None:
        self.last_read = fleet
        if fleet is None:
            self.read_since = self.now + REPORTS_BACK_S
        self.fleet = fleet if self.now >= self.read_since else None
        self.scheduler.reported(fleet, self.now)
        self.check()

    @rule(seconds=st.sampled_from([0.1, 5.0, 21.0, 31.0, 31.0, 61.0, 201.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.receive_fleet(self.last_read)

    @rule(name=NAMES, at_once=st.booleans(), park=st.booleans())
    def cool(self, name: str, at_once: bool, park: bool) -> None:
        self.forced = at_once
        self.scheduler.cool(name, self.now, at_once=at_once, park=park)
        self.check()

    @rule(catalogue=st.sampled_from(CATALOGUES))
    def apply_catalogue(self, catalogue: dict[str, Function]) -> None:
        self.scheduler.apply_catalogue(catalogue, "digest", self.now)
        self.check()

    @rule(what=st.sampled_from(["nothing", "nothing", "lose", "lose", "shut", "drain", "restart", "forgive"]))
    def upset(self, what: str) -> None:
        """What seldom happens: one rule, so that it stays seldom."""
        match what:
            case "lose":
                self.receive_fleet(None)
            case "shut":
                self.forced = True
                self.scheduler.shut_down(self.now)
            case "drain":
                self.scheduler.drain(self.now)
            case "restart":
                self.restart()
            case "forgive":
                self.scheduler.clear_failures("mid")
        self.check()

    def restart(self) -> None:
        """The agent is started anew: it takes its workers over, some dead, some that do not answer."""
        self.replay()
        record, state = self.scheduler.record(), self.scheduler.saved_state()
        self.scheduler = SchedulerDriver(
            replace(record, instances=(), failures=state.failures), RULES, segment_events=20
        )
        self.pending = {task: effect for task, effect in self.pending.items() if task[0] == "Spawn"}
        for n, worker in enumerate(state.workers):
            healthy, asleep = n % 4 != 2, None if n % 4 == 2 else is_asleep(worker, n)
            self.scheduler.adopt(worker, self.now, alive=n % 4 != 1, healthy=healthy and not asleep, asleep=asleep)
        self.forced = True
        self.before = replace(self.before, instances=())
        self.receive_fleet(self.fleet)

    # The supervisor.

    @rule(pick=PICKS, well=st.sampled_from([True, True, True, False]))
    def answer_one(self, pick: int, well: bool) -> None:
        """Answer a pending effect, perhaps for the second time."""
        if self.pending:
            self.answer(list(self.pending)[pick % len(self.pending)], well)

    @rule()
    def answer_everything(self) -> None:
        for task in list(self.pending):
            self.answer(task, True)

    @rule(
        event=st.sampled_from(
            ["fetching", "fetched", "fetch_failed", "spawned", "sign", "answered", "exited", "out_of_memory",
             "spawn_failed", "start_failed", "reclaimed", "health_check_failed", "end_delayed", "fell_back_to_cpu",
             "used", "looked", "parked", "park_failed"]
        ),
        pick=PICKS,
    )  # fmt: skip
    def tell_something(self, event: str, pick: int) -> None:
        """Tell of an event that may be late, early, a repetition, or of an instance that never was."""
        ids = [*(i.id for i in self.instances()), f"i{pick}", "unknown"]
        self.tell(event, ids[pick % len(ids)])

    def answer(self, task: tuple[str, str], well: bool) -> None:
        kind, instance = task
        match kind:
            case "Fetch":
                self.tell("fetched" if well else "fetch_failed", instance)
            case "Spawn":
                self.tell("spawned", instance)
                self.tell("answered" if well else "exited", instance)
            case "Wake":
                self.tell("answered" if well else "start_failed", instance)
            case "Park":
                self.tell("parked" if well else "park_failed", instance)
            case "Look":
                self.tell("looked" if well else "not looked", instance)
            case "Stop":
                self.tell("exited", instance)
            case "Reclaim":
                self.tell("reclaimed", instance)

    def tell(self, event: str, instance: str) -> None:
        scheduler, now = self.scheduler, self.now
        match event:
            case "fetching":
                scheduler.fetching(instance, "downloading", 0.5, now)
            case "fetched":
                scheduler.fetched(instance, HERE, now)
            case "fetch_failed":
                scheduler.fetch_failed(instance, "404", now)
            case "spawned":
                modes = {i.id: i.start_mode for i in self.instances()}
                tricks = ("eager",) if modes.get(instance) is StartMode.FAST else ()
                scheduler.spawned(instance, a_process(), "http://127.0.0.1:1", now, tricks=tricks)
            case "sign":
                scheduler.sign_of_life(instance, "loading", now)
            case "answered":
                scheduler.answered(instance, now)
            case "exited":
                scheduler.exited(instance, "exited with 1", (), now)
            case "out_of_memory":
                scheduler.exited(instance, "exited with 1", ["CUDA out of memory"], now)
            case "health_check_failed":
                scheduler.health_check_failed(instance, 3, now, stuck=False)
            case "end_delayed":
                scheduler.health_check_failed(instance, 3, now, stuck=True)
            case "fell_back_to_cpu":
                scheduler.fell_back_to_cpu(instance, now)
            case "used":
                scheduler.used(instance, 3)
            case "looked":
                scheduler.looked(instance, self.in_flight(instance), 1, now)
            case "not looked":
                scheduler.looked(instance, None, 0, now)
            case "spawn_failed":
                scheduler.spawn_failed(instance, "no port", now)
            case "start_failed":
                scheduler.start_failed(instance, "another model", (), now)
            case "reclaimed":
                scheduler.reclaimed(instance, now)
            case "parked" | "park_failed":
                self.tell_of_parking(event, instance)
        self.check()

    def tell_of_parking(self, event: str, instance: str) -> None:
        """A sleeper keeps more or less than was expected on its devices, and no more RAM."""
        parking = next((i for i in self.instances() if i.id == instance), None)
        tier = parking.parks_to if parking and parking.parks_to else Tier.SLEEP
        if parking is None or event == "park_failed":
            self.scheduler.park_failed(instance, tier, "HTTP 500", self.now)
            return
        device_mb = (parking.memory_mb + 1) // (2 + self.starts % 3)
        self.scheduler.parked(instance, tier, self.now, device_mb=device_mb, ram_mb=max(1, parking.ram_mb - 1))

    # What must hold of each step.

    def instances(self) -> tuple[Instance, ...]:
        return self.scheduler.record().instances

    def in_flight(self, instance: str) -> int:
        reports = self.fleet.routers.values() if self.fleet else ()
        return sum(r.in_flight.get(instance, 0) for r in reports)

    def check(self) -> None:
        """Look at what the step asked for and whom it moved; then forget that it may have been forced."""
        effects = [e for e in self.scheduler.take_effects() if not isinstance(e, Decision)]
        for effect in effects:
            self.check_effect(effect)
        for was in self.before.instances:
            for instance in self.instances():
                if instance.id == was.id and (was.state, instance.state) == (State.READY, State.DRAINING):
                    self.check_drain(instance)
        present = {i.id for i in self.instances()}
        for was in self.before.instances:
            gone = was.pid and was.id not in present
            assert not gone or was.state is State.RECLAIMING, "a process is lost"
        assert self.scheduler.record().epoch >= self.before.epoch
        self.before, self.forced = self.scheduler.record(), False

    def check_effect(self, effect: Any) -> None:
        task = (type(effect).__name__, effect.instance.id)
        if isinstance(effect, Park | Wake):
            for other in [("Park", task[1]), ("Wake", task[1]), ("Spawn", task[1])]:
                self.pending.pop(other, None)
        overdue = isinstance(effect, Look) or any(i.id == task[1] and i.problem for i in self.instances())
        again, self.pending[task] = task in self.pending, effect
        if again:
            assert overdue, "only an overdue effect is repeated"
            return
        match effect:
            case Spawn(instance=instance) | Wake(instance=instance):
                assert not instance.waits_for
                assert instance.devices
                others = [i for i in self.instances() if i.id != instance.id]
                moving = [i for i in others if i.state in MOVING]
                lanes = {d for i in moving for d in i.devices if d != "cpu"}
                assert not lanes.intersection(instance.devices), "one at a time on each GPU"
            case Park(instance=instance):
                assert not self.in_flight(instance.id), "a busy instance is never parked"
            case Stop(instance=instance) if instance.parked is None:
                given_up = self.forced or instance.why == "failed" or not instance.ready
                assert given_up or self.fleet is not None, "usage is unknown, so no instance is idle"
                assert given_up or not self.in_flight(instance.id), "a busy instance is never stopped"

    def check_drain(self, instance: Instance) -> None:
        if instance.why in ("cool", "superseded", "host drain"):
            return
        if instance.reason is DrainReason.UPGRADED:
            successors = [i for i in self.instances() if i.replaces == instance.id and i.state is State.READY]
            assert successors or not self.in_flight(instance.id), "a request is cut for a full start"
            return
        assert self.fleet is not None
        assert not instance.pinned
        if instance.yields_to:
            priorities = [i.priority for i in self.instances() if i.function == instance.yields_to]
            assert max(priorities) >= instance.priority, "none of a higher priority is closed"
            assert self.now - instance.ready >= FUNCTIONS[instance.function].turn_min_s, "each has its tenure"
            return
        assert not self.in_flight(instance.id)

    # What must hold after each step.

    @invariant()
    def no_device_holds_more_than_its_budget(self) -> None:
        for device in DEVICES:
            occupants = [i for i in self.instances() if device.id in i.devices]
            assert sum(map(present_mb, occupants)) <= device.budget_mb

    @invariant()
    def parked_instances_hold_no_more_ram_than_there_is_for_them(self) -> None:
        assert sum(i.ram_mb for i in self.instances()) <= self.scheduler.record().park_ram_mb

    @invariant()
    def at_most_one_instance_of_a_revision_is_live(self) -> None:
        live = [(i.function, i.revision) for i in self.instances() if i.state in LIVE and not self.is_spare(i)]
        assert len(live) == len(set(live))

    def is_spare(self, instance: Instance) -> bool:
        """Whether it is a full start beside the one that it is to replace."""
        coming = instance.state in LIVE and instance.state is not State.READY
        return coming and any(i.moves_to == instance.id and i.id == instance.replaces for i in self.instances())

    @invariant()
    def at_most_one_instance_is_replaced_at_a_time_and_none_leaves_for_that(self) -> None:
        spares = [i for i in self.instances() if self.is_spare(i)]
        assert len(spares) <= 1
        assert not [i for i in spares if i.waits_for or i.start_mode is StartMode.FAST]

    @invariant()
    def starts_on_one_gpu_never_overlap(self) -> None:
        starting = [set(i.devices) - {"cpu"} for i in self.instances() if i.state is State.STARTING]
        assert not [pair for pair in combinations(starting, 2) if pair[0] & pair[1]]

    @invariant()
    def whoever_must_act_was_asked_to(self) -> None:
        tasks = {
            State.FETCHING: ("Fetch",),
            State.STARTING: ("Spawn", "Wake"),
            State.PARKING: ("Park",),
            State.STOPPING: ("Stop",),
            State.RECLAIMING: ("Reclaim",),
        }
        for instance in self.instances():
            possible = tasks.get(instance.state, ())
            assert not possible or any((task, instance.id) in self.pending for task in possible)

    @invariant()
    def whoever_waits_waits_for_one_that_leaves(self) -> None:
        present = {i.id: i for i in self.instances()}
        waited = {w for i in self.instances() for w in i.waits_for if w in present}
        assert all(present[w].state is State.READY or is_leaving(present[w]) for w in waited)

    @invariant()
    def the_record_can_be_written(self) -> None:
        record = self.scheduler.record()
        assert msgspec.json.decode(msgspec.json.encode(record), type=HostRecord) == record
        assert all(i.epoch <= record.epoch for i in record.instances)

    # The end.

    def teardown(self) -> None:
        """Without further faults every remaining instance is soon ready, or was idle a moment ago."""
        for _ in range(40):
            for task in list(self.pending):
                self.answer(task, True)
            self.now += 1.0
            self.receive_fleet(a_fleet(a_report(seen=self.scheduler.record().epoch)))
        moving = [i for i in self.instances() if i.state is not State.READY and i.state not in PARKED]
        assert not [i for i in moving if self.now - i.since > 2.0], "an instance does not move on"
        self.replay()

    def replay(self) -> None:
        """An export replays to the same effects, and has no secret of a function."""
        exported = b"".join(self.scheduler.log.export())
        assert differences(exported.splitlines()) == []
        assert SECRET.encode() not in exported


TestScheduler = Agent.TestCase
TestScheduler.settings = settings(stateful_step_count=50)
