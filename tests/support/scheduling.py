"""A scheduler under test: each method is one event; effects are collected until the test reads them."""

from collections.abc import Collection, Mapping, Sequence

from cortex.functions.spec import Function
from cortex.platform.agent_messages import Accepted, Ensure, PlacementPlan, Rejected
from cortex.platform.record import FailureKind, Fleet, HostRecord, ProcessId
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import Answer, Effect, Ending
from cortex.platform.scheduling.event_log import EventLog
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.failures import evidence_in
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.reconcile import reconcile
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.scheduling.state import Rules


class SchedulerDriver:
    """Drives one scheduler. Answers to callers are return values, and not among the effects."""

    def __init__(self, host: HostRecord, rules: Rules) -> None:
        self.scheduler = Scheduler(host, rules)
        self.log = EventLog(self.scheduler.state, 0.0, b"key", segment_events=20)
        self._effects: list[Effect] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self.scheduler.handle(event, now)
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

    def cool(self, function: str, now: float, *, at_once: bool = False) -> list[str]:
        return self._end(events.CoolRequest(function, at_once), now)

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

    def adopt(self, worker: SavedWorker, now: float, *, alive: bool, healthy: bool) -> None:
        self.handle(events.Adopted(worker, alive, healthy), now)

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
        self, instance: str, process: ProcessId, url: str, now: float, *, path: str = "plain", warm: bool = False
    ) -> None:
        self.handle(events.Spawned(instance, process, url, path=path, warm=warm), now)

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

    def exited(self, instance: str, description: str, lines: Sequence[str], now: float) -> None:
        self.handle(events.Exited(instance, description, evidence_in(lines)), now)

    def end_delayed(self, instance: str, problem: str) -> None:
        self.handle(events.EndDelayed(instance, problem), 0.0)

    def reclaimed(self, instance: str, now: float) -> None:
        self.handle(events.Reclaimed(instance), now)
