"""The state of one host: its instances, their specs and weights, and every step they take. Pure.

A step is one row of the table in `lifecycle.py`, with its consequences: the epoch that routers must acknowledge, the
effect for the supervisor, the receipt. `reconcile.py` and `scheduler.py` decide *when* a step is taken.
"""

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, LIVE, State, Step, after
from cortex.functions.spec import Function
from cortex.platform.record import DrainReason, FailureKind, HostRecord, Instance, Use, used_instance
from cortex.platform.scheduling.effects import CancelFetch, Decision, Effect, Stop
from cortex.platform.scheduling.failures import Failures
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.progress import Proof
from cortex.platform.scheduling.reasons import STAYS_DRAINED, DecisionKind, drain_text
from cortex.platform.scheduling.reports import Reports
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from cortex.platform.scheduling.turns import Line

MOVING = (State.STARTING, State.STOPPING, State.RECLAIMING)
"""States in which the memory use of a device changes."""


class Rules(Struct, frozen=True, kw_only=True):
    """The settings of `[agent]` and `[eviction]` that decisions depend on. Seconds."""

    strategy: str = "lru"
    stop_grace_s: float = 5.0
    drain_grace_s: float = 60.0
    start_silence_s: float = 300.0
    start_ceiling_s: float = 3600.0
    defrag_after_cycles: int = 0
    """Starts between two defragmentations; 0: never."""


class Observation(Struct, frozen=True):
    """A look at a worker before it is stopped: when it was requested, when it was made, and its result."""

    requested_at: float
    at: float = 0.0
    busy: bool = False


class HostState:
    """One host's instances."""

    def __init__(self, host: HostRecord, rules: Rules) -> None:
        self._host = host
        self._rules = rules
        self._instances: dict[str, Instance] = {i.id: i for i in host.instances}
        self._functions: dict[str, Function] = {}
        self._weights: dict[str, LocalWeights] = {}
        self._failures = Failures(host.failures)
        self._epoch = host.epoch
        self._catalogue: dict[str, Function] | None = None
        self._catalogue_digest = ""
        self._superseded: dict[tuple[str, str], float] = {}
        """Until when a function's revision is not started, because a catalogue superseded it."""
        self._reports = Reports()
        self._looks: dict[str, Observation] = {}
        self._proofs: dict[str, Proof] = {}
        self._overdue: dict[str, float] = {}
        """When an instance that is overdue is tried again."""
        self._blind_until = 0.0
        self._in_record = False
        self._cordoned = False
        self._ledger: dict[str, Entry] = {}
        self._line = Line()
        self._cycles = self._defragged = 0
        self._effects: list[Effect] = []

    # Readings for callers.

    def record(self) -> HostRecord:
        """Return the host's current record."""
        return replace(
            self._host,
            instances=tuple(self._instances.values()),
            failures=self._failures.all(),
            line=self._line.in_order(),
            epoch=self._epoch,
            catalogue=self._catalogue_digest,
        )

    def function_of(self, instance: str) -> Function | None:
        """Return the spec an instance was started from."""
        return self._functions.get(instance)

    def declared(self, function: str) -> Function | None:
        """Return a function as the current catalogue declares it."""
        return self._catalogue.get(function) if self._catalogue else None

    def catalogue(self) -> dict[str, Function]:
        """Return all functions of the current catalogue."""
        return dict(self._catalogue or {})

    def started_from(self) -> set[str]:
        """Return the paths of the weights of all instances."""
        return {w.path for w in self._weights.values()}

    def in_flight(self, instance: str) -> int:
        """Return how many requests were in flight on an instance when the reports were last read."""
        return self._use().in_flight.get(instance, 0)

    def last_used(self, instance: str) -> float:
        """Return when routers last used an instance, by the record; 0: never, or the record cannot be read."""
        return self._use().used.get(used_instance(instance), 0.0)

    def state(self) -> AgentState:
        """Return the state for the next agent of this host: every worker with a process, and the failures."""
        return AgentState(
            workers=tuple(
                SavedWorker(i, self._functions[i.id], self._weights[i.id]) for i in self._instances.values() if i.pid
            ),
            failures=self._failures.all(),
            epoch=self._epoch,
        )

    def take_effects(self) -> list[Effect]:
        """Return the effects since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # Queries.

    def _use(self) -> Use:
        """The usage of instances; unknown while the record cannot be trusted."""
        return self._reports.use()

    def _up(self, function: str, rev: str, exclude: Collection[str] = ()) -> Instance | None:
        """The instance that `ensure` can return: one that is live, else one whose drain can be cancelled."""
        same = [
            i for i in self._instances.values() if (i.function, i.revision) == (function, rev) and i.id not in exclude
        ]
        live = [i for i in same if i.state in LIVE]
        idle = [
            i for i in same if i.state is State.DRAINING and i.reason not in STAYS_DRAINED and not self._awaited(i.id)
        ]
        return next(iter(live + idle), None)

    def _twins(self, instance: Instance) -> list[Instance]:
        """The other instances of the same function and revision."""
        same = (instance.function, instance.revision)
        return [i for i in self._instances.values() if (i.function, i.revision) == same and i.id != instance.id]

    def _replaced(self, instance: Instance) -> bool:
        """Whether another instance serves in its place, or is starting."""
        return any(i.state in (State.STARTING, State.READY) for i in self._twins(instance))

    def _moving(self, instance_id: str) -> bool:
        """Whether an instance stays only until its replacement is ready."""
        successor = self._instances.get(self._instances[instance_id].moves_to)
        return successor is not None and successor.state in LIVE

    def _awaited(self, instance_id: str) -> bool:
        """Whether another instance waits for this one's memory."""
        return any(instance_id in i.waits_for for i in self._instances.values())

    def _lane_taken(self, instance: Instance, moving: Sequence[State] = MOVING) -> bool:
        """One start, stop or reclaim at a time on each GPU: engines size themselves by the free memory."""
        gpus = {d.id for d in self._host.devices if d.kind == "gpu"}.intersection(instance.devices)
        return any(gpus.intersection(i.devices) for i in self._instances.values() if i.state in moving)

    # Steps.

    def _drain(self, instance: Instance, reason: DrainReason, now: float, detail: str = "") -> None:
        self._epoch += 1
        instance = replace(_with_reason(instance, reason, detail), epoch=self._epoch)
        instance = replace(instance, deadline=now + self._rules.drain_grace_s)
        if reason is not DrainReason.EVICTED:  # an eviction has its own receipt
            self._decide(DecisionKind.DRAINING, instance.function, instance.id, instance.why, reason)
        self._step(instance, Step.DRAIN, now)

    def _close(self, instance: Instance, function: str, now: float) -> None:
        """Close an instance in use for a function whose turn has come: it finishes its requests and stops.

        `request_timeout_s` bounds how long that takes.
        """
        self._epoch += 1
        latest = now + self._functions[instance.id].request_timeout_s
        instance = _with_reason(instance, DrainReason.TURN, function)
        instance = replace(instance, epoch=self._epoch, yields_to=function)
        self._step(replace(instance, deadline=latest), Step.DRAIN, now)

    def _take_back(self, instance: Instance, why: str, now: float) -> None:
        """Cancel the drain of an instance; abandon the start of its replacement."""
        self._epoch += 1
        self._decide(DecisionKind.DRAIN_CANCELLED, instance.function, instance.id, why)
        self._step(replace(without_reason(instance), epoch=self._epoch), Step.TAKEN_BACK, now)
        for twin in self._twins(instance):
            if twin.state in (State.FETCHING, State.PLACING):
                self._decide(DecisionKind.ABANDONED, twin.function, twin.id, f"{instance.id} serves on")
                self._step(twin, Step.ABANDONED, now)

    def _stop(self, instance: Instance, reason: DrainReason | None, now: float) -> None:
        """Stop a worker for a reason; None: for the one it drains for."""
        instance = self._step(_with_reason(instance, reason) if reason else instance, Step.STOP, now)
        self._decide(DecisionKind.STOPPED, instance.function, instance.id, instance.why, instance.reason)
        self._effects.append(Stop(instance, self._rules.stop_grace_s))

    def _end(self, instance: Instance, reason: DrainReason, now: float, *, at_once: bool = False) -> bool:
        """Drain, stop or abandon an instance. False when it is already ending."""
        match instance.state:
            case State.FETCHING | State.PLACING:
                self._fail(instance, _cancelled(reason), f"given up before it started: {reason}", (), now)
                self._step(instance, Step.ABANDONED, now)
            case State.STARTING:
                self._fail(instance, _cancelled(reason), f"given up while it was starting: {reason}", (), now)
                self._stop(instance, reason, now)
            case State.READY if not at_once:
                self._drain(instance, reason, now)
            case State.READY | State.DRAINING if at_once:
                self._stop(instance, reason, now)
            case State.DRAINING:
                self._put(replace(_with_reason(instance, reason), deadline=now + self._rules.drain_grace_s))
            case _:
                return False
        return True

    def _step(self, instance: Instance, step: Step, now: float) -> Instance:
        if instance.state is State.FETCHING and step is Step.ABANDONED:
            self._effects.append(CancelFetch(instance, self._functions[instance.id]))
        if instance.state in COMING:
            instance = replace(instance, phases=self._spent(instance, now))
        self._looks.pop(instance.id, None)
        self._proofs.pop(instance.id, None)
        self._overdue.pop(instance.id, None)
        return self._put(replace(instance, state=after(instance.state, step), since=now, problem=""))

    @staticmethod
    def _spent(instance: Instance, now: float) -> dict[str, float]:
        """Return the seconds of each phase of a start, the current one's until now. The first phase, before the worker
        logs anything, has the state's name."""
        starts = instance.state is State.STARTING
        name = instance.phase if starts and instance.phase else str(instance.state)
        spent = now - (max(instance.since, instance.phase_since) if starts else instance.since)
        return {**instance.phases, name: round(instance.phases.get(name, 0.0) + spent, 3)}

    def _put(self, instance: Instance) -> Instance:
        if instance.state is State.GONE:
            self._instances.pop(instance.id, None)
            self._functions.pop(instance.id, None)
            self._weights.pop(instance.id, None)
        else:
            self._instances[instance.id] = instance
        return instance

    def _fail(
        self,
        instance: Instance,
        kind: FailureKind,
        reason: str,
        last_lines: Sequence[str],
        now: float,
        *,
        died: bool = False,
        hung: bool = False,
    ) -> None:
        failure = self._failures.add(instance, kind, reason, last_lines, now, died=died, hung=hung)
        self._decide(DecisionKind.FAILED, instance.function, instance.id, failure.reason)

    def _decide(
        self, what: DecisionKind, function: str, instance: str, why: str, reason: DrainReason | None = None
    ) -> None:
        self._effects.append(Decision(what, function, instance, why, reason))


def _with_reason(instance: Instance, reason: DrainReason, detail: str = "") -> Instance:
    return replace(instance, reason=reason, why=drain_text(reason, detail))


def without_reason(instance: Instance) -> Instance:
    """Return an instance whose drain is cancelled."""
    return replace(instance, reason=None, why="", deadline=0.0, yields_to="")


def _cancelled(reason: DrainReason) -> FailureKind:
    """Return the failure kind of a cancelled start: after ROOM, requests may try another host or revision."""
    elsewhere = (DrainReason.HOST_DRAIN, DrainReason.SHUTDOWN, DrainReason.SUPERSEDED)
    return FailureKind.ROOM if reason in elsewhere else FailureKind.CANCELLED
