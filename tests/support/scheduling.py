"""A scheduler under test, and the ways to bring its instances into a state.

Each method of the driver is one event; effects are collected until the test reads them.
"""

from collections.abc import Collection, Mapping, Sequence

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Accepted, Ensure, PlacementPlan, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.record import FailureKind, HostRecord, Instance, ProcessId, Tier
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import Answer, Decision, Effect, Ending, Look
from cortex.platform.scheduling.event_log import EventLog
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.failures import evidence_in
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.reconcile import reconcile
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.scheduling.state import Rules
from tests.support.factories import a_device, a_fleet, a_function, a_host, a_process, a_report


class SchedulerDriver:
    """Drives one scheduler. Answers to callers are return values, and not among the effects."""

    def __init__(self, host: HostRecord, rules: Rules, *, segment_events: int = 0) -> None:
        """With `segment_events`, `log` has the events, in segments of so many."""
        self.scheduler = Scheduler(host, rules)
        self.log = EventLog(self.scheduler.state, 0.0, b"key", segment_events=segment_events)
        self._logs = segment_events > 0
        self._effects: list[Effect] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self.scheduler.handle(event, now)
        if self._logs:
            self.log.add(event, effects, now)
        self._effects += [e for e in effects if not isinstance(e, Answer | Ending)]
        return effects

    def take_effects(self) -> list[Effect]:
        """The effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def record(self) -> HostRecord:
        return self.scheduler.record()

    def saved_state(self) -> AgentState:
        return self.scheduler.saved_state()

    def function_of(self, instance: str) -> Function | None:
        return self.scheduler.function_of(instance)

    def plan(self, function: Function, weights: LocalWeights | None, now: float) -> PlacementPlan | Rejected:
        return self.scheduler.plan(function, weights, now)

    def reconcile(self, now: float) -> None:
        """Take the steps that are due, without an event: a replay would miss them."""
        reconcile(self.scheduler.state, now)
        self._effects += self.scheduler.take_effects()

    # Requests.

    def ensure(
        self,
        function: Function,
        weights: LocalWeights | None,
        instance: str,
        now: float,
        *,
        force: bool = False,
        exclude: Collection[str] = (),
        evict: bool = True,
        minimum: bool = False,
        waited_s: float = 0.0,
        turn: bool = False,
    ) -> Accepted | Rejected:
        request = Ensure(function, force, tuple(exclude), evict, minimum, waited_s, turn)
        effects = self.handle(events.EnsureRequest(request, weights, instance), now)
        return next(e.answer for e in effects if isinstance(e, Answer))

    def cool(self, function: str, now: float, *, at_once: bool = False, park: bool = False) -> list[str]:
        return self._end(events.CoolRequest(function, at_once, park), now)

    def drain(self, now: float) -> list[str]:
        return self._end(events.DrainRequest(), now)

    def _end(self, event: Event, now: float) -> list[str]:
        return [i for e in self.handle(event, now) if isinstance(e, Ending) for i in e.instances]

    def shut_down(self, now: float) -> None:
        self.handle(events.ShutdownRequest(), now)

    def clear_failures(self, function: str) -> None:
        self.handle(events.FailuresCleared(function), 0.0)

    def apply_catalogue(self, functions: Mapping[str, Function], digest: str, now: float) -> None:
        self.handle(events.CatalogueChanged(functions, digest), now)

    def adopt(self, worker: SavedWorker, now: float, *, alive: bool, healthy: bool, asleep: bool | None = None) -> None:
        self.handle(events.Adopted(worker, alive, healthy, asleep), now)

    # Readings.

    def reported(self, fleet: Fleet | None, now: float) -> None:
        self.handle(events.Reported(fleet), now)

    def set_ledger(self, entries: Mapping[str, Entry]) -> None:
        self.handle(events.LedgerRead(entries), 0.0)

    def used(self, instance: str, used_mb: int) -> None:
        self.handle(events.MemoryRead(instance, used_mb), 0.0)

    # Workers.

    def fetching(self, instance: str, phase: str, progress: float | None, now: float) -> None:
        self.handle(events.FetchProgress(instance, phase, progress), now)

    def fetched(self, instance: str, weights: LocalWeights, now: float) -> None:
        self.handle(events.Fetched(instance, weights), now)

    def fetch_failed(self, instance: str, reason: str, now: float) -> None:
        self.handle(events.FetchFailed(instance, reason), now)

    def spawned(
        self,
        instance: str,
        process: ProcessId,
        url: str,
        now: float,
        *,
        path: str = "plain",
        warm: bool = False,
        tricks: tuple[str, ...] = (),
    ) -> None:
        spawned = events.Spawned(instance, process, url, path=path, warm=warm, sleeps=True, tricks=tricks)
        self.handle(spawned, now)

    def spawn_failed(self, instance: str, reason: str, now: float, *, kind: FailureKind = FailureKind.CRASH) -> None:
        self.handle(events.SpawnFailed(instance, reason, kind), now)

    def sign_of_life(self, instance: str, phase: str, now: float, progress: float | None = None) -> None:
        self.handle(events.SignOfLife(instance, phase, progress), now)

    def answered(self, instance: str, now: float) -> None:
        self.handle(events.Answered(instance), now)

    def start_failed(self, instance: str, reason: str, lines: Sequence[str], now: float) -> None:
        self.handle(events.StartFailed(instance, reason, evidence_in(lines)), now)

    def health_check_failed(self, instance: str, misses: int, now: float, *, stuck: bool) -> None:
        self.handle(events.HealthCheckFailed(instance, misses, stuck), now)

    def fell_back_to_cpu(self, instance: str, now: float) -> None:
        self.handle(events.FellBackToCpu(instance), now)

    def looked(self, instance: str, running: int | None, connections: int, now: float) -> None:
        self.handle(events.Looked(instance, running, connections), now)

    def proved(self, instance: str, now: float, *, answered: bool, worked: bool) -> None:
        self.handle(events.Proved(instance, answered, worked), now)

    def parked(
        self, instance: str, tier: Tier, now: float, *, device_mb: int = 0, ram_mb: int = 0, took_s: float = 0.4
    ) -> None:
        self.handle(events.Parked(instance, tier, device_mb, ram_mb, took_s), now)

    def park_failed(self, instance: str, tier: Tier, reason: str, now: float) -> None:
        self.handle(events.ParkFailed(instance, tier, reason), now)

    def exited(self, instance: str, description: str, lines: Sequence[str], now: float) -> None:
        self.handle(events.Exited(instance, description, evidence_in(lines)), now)

    def end_delayed(self, instance: str, problem: str) -> None:
        self.handle(events.EndDelayed(instance, problem), 0.0)

    def reclaimed(self, instance: str, now: float) -> None:
        self.handle(events.Reclaimed(instance), now)


HERE = LocalWeights("/cache/weights.gguf", 1000)
RULES = Rules(drain_grace_s=60.0, stop_grace_s=5.0, start_silence_s=300.0, start_ceiling_s=3600.0)

F = a_function("f", vram_mb=6000)
G = a_function("g", vram_mb=6000)
SMALL = a_function("small", vram_mb=1000)
OTHER = a_function("other", vram_mb=1000)

ON_CPU = a_host(devices=(a_device("cpu", kind="cpu"),))
TWO_GPUS = a_host(devices=(a_device("gpu-0"), a_device("gpu-1")))


def a_scheduler(host: HostRecord | None = None, fleet: Fleet | None = None, rules: Rules = RULES) -> SchedulerDriver:
    """A scheduler with the report of one router without requests."""
    scheduler = SchedulerDriver(host or a_host(), rules)
    scheduler.reported(fleet or a_fleet(a_report()), 0.0)
    return scheduler


def new_effects(scheduler: SchedulerDriver) -> list[Effect]:
    """The effects since the last call, without decisions."""
    return [e for e in scheduler.take_effects() if not isinstance(e, Decision)]


def look(scheduler: SchedulerDriver, now: float, *, running: int | None = 0, connections: int = 0) -> list[Effect]:
    """Answer every look request; return the other effects."""
    others: list[Effect] = []
    while effects := new_effects(scheduler):
        others += [e for e in effects if not isinstance(e, Look)]
        for effect in effects:
            if isinstance(effect, Look):
                scheduler.looked(effect.instance.id, running, connections, now)
    return others


def decisions(scheduler: SchedulerDriver) -> list[tuple[str, str, str]]:
    """the decisions since the last call: what, of which instance, why."""
    return [(e.what, e.instance, e.why) for e in scheduler.take_effects() if isinstance(e, Decision)]


def instance_of(scheduler: SchedulerDriver, instance: str = "one") -> Instance:
    return next(i for i in scheduler.record().instances if i.id == instance)


def states(scheduler: SchedulerDriver) -> dict[str, State]:
    return {i.id: i.state for i in scheduler.record().instances}


def start(
    scheduler: SchedulerDriver,
    function: Function = F,
    instance: str = "one",
    now: float = 0.0,
    weights: LocalWeights = HERE,
) -> None:
    """Bring an instance as far as `starting`, its process spawned."""
    assert scheduler.ensure(function, weights, instance, now) == Accepted(instance, State.STARTING)
    scheduler.spawned(instance, a_process(), "http://127.0.0.1:20000", now)
    scheduler.take_effects()


def bring_up(
    scheduler: SchedulerDriver,
    function: Function = F,
    instance: str = "one",
    now: float = 0.0,
    weights: LocalWeights = HERE,
) -> None:
    """Bring an instance as far as `ready`."""
    start(scheduler, function, instance, now, weights)
    scheduler.answered(instance, now)
    scheduler.take_effects()


def clear_away(scheduler: SchedulerDriver, instance: str = "one", now: float = 0.0) -> None:
    """Let the supervisor answer a stop to the end."""
    scheduler.exited(instance, "exited with 0", (), now)
    scheduler.reclaimed(instance, now)


def crash(scheduler: SchedulerDriver, instance: str, now: float) -> None:
    """Let a start fail."""
    start(scheduler, F, instance, now)
    clear_away(scheduler, instance, now)
    scheduler.take_effects()


def three_crashes() -> SchedulerDriver:
    """At 2, F has failed three times in a row and is tried again no sooner than at 62."""
    scheduler = a_scheduler()
    for n, at in enumerate((0.0, 1.0, 2.0)):
        crash(scheduler, f"i{n}", at)
    return scheduler
