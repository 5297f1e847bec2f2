"""The roster: the instances of one host, what they were started from, and every step they take. Pure.

It is the state the agent's decisions are made on. A step here is one line of the table in `lifecycle.py`, with
what belongs to it: the epoch that routers must have seen, the effect for the supervisor, the receipt. *When* a
step is taken is decided in `reconcile.py` and `scheduler.py`.
"""

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, LIVE, State, Step, after
from cortex.functions.spec import Function
from cortex.platform.record import FailureKind, HostRecord, Instance, Use, used_instance
from cortex.platform.scheduling.effects import CallOff, Decision, Effect, Stop
from cortex.platform.scheduling.failures import Failures
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.progress import Proof
from cortex.platform.scheduling.reports import Reports
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from cortex.platform.scheduling.turns import Line

MOVING = (State.STARTING, State.STOPPING, State.RECLAIMING)
"""What changes the memory of a device."""


class Rules(Struct, frozen=True, kw_only=True):
    """The numbers of `[agent]` and `[eviction]` that decisions depend on. Seconds."""

    strategy: str = "lru"
    stop_grace_s: float = 5.0
    drain_grace_s: float = 60.0
    start_silence_s: float = 300.0
    start_ceiling_s: float = 3600.0
    defrag_after_cycles: int = 0
    """Starts between two times small functions are moved together; 0: never."""


class Observation(Struct, frozen=True):
    """A look at a worker before it is stopped: when it was asked for, and what was seen, and when."""

    asked: float
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

    # What others may read.

    def record(self) -> HostRecord:
        """Return the host's record as it stands."""
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
        """Return a function as the catalogue last heard declares it."""
        return self._catalogue.get(function) if self._catalogue else None

    def catalogue(self) -> dict[str, Function]:
        """Return all functions of the catalogue last heard."""
        return dict(self._catalogue or {})

    def started_from(self) -> set[str]:
        """Return the paths of all weights that instances were, or are to be, started from."""
        return {w.path for w in self._weights.values()}

    def in_flight(self, instance: str) -> int:
        """Return how many requests were in flight on an instance when the reports were last read."""
        return self._use().in_flight.get(instance, 0)

    def last_used(self, instance: str) -> float:
        """Return when routers last used an instance, as far as the record says; 0: never, or it cannot be read."""
        return self._use().used.get(used_instance(instance), 0.0)

    def state(self) -> AgentState:
        """Return what the next agent of this host must know: every worker with a process, and what failed."""
        return AgentState(
            workers=tuple(
                SavedWorker(i, self._functions[i.id], self._weights[i.id]) for i in self._instances.values() if i.pid
            ),
            failures=self._failures.all(),
            epoch=self._epoch,
        )

    def take_effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # Who stands where.

    def _use(self) -> Use:
        """What instances are doing, as far as anybody can tell."""
        return self._reports.use()

    def _up(self, function: str, rev: str, beside: Collection[str] = ()) -> Instance | None:
        """The instance that `ensure` need only name: one that is live, else one whose drain can be taken back."""
        same = [
            i for i in self._instances.values() if (i.function, i.revision) == (function, rev) and i.id not in beside
        ]
        live = [i for i in same if i.state in LIVE]
        idle = [
            i
            for i in same
            if i.state is State.DRAINING and i.why not in ("cool", "host drain") and not self._awaited(i.id)
        ]
        return next(iter(live + idle), None)

    def _twins(self, instance: Instance) -> list[Instance]:
        """The other instances that a request for this one could go to just as well."""
        same = (instance.function, instance.revision)
        return [i for i in self._instances.values() if (i.function, i.revision) == same and i.id != instance.id]

    def _replaced(self, instance: Instance) -> bool:
        """Whether another instance serves in its place, or is about to."""
        return any(i.state in (State.STARTING, State.READY) for i in self._twins(instance))

    def _moving(self, instance_id: str) -> bool:
        """Whether an instance stays only until the one that takes its place is ready."""
        successor = self._instances.get(self._instances[instance_id].moves_to)
        return successor is not None and successor.state in LIVE

    def _awaited(self, instance_id: str) -> bool:
        """Whether another instance is to take this one's room."""
        return any(instance_id in i.waits_for for i in self._instances.values())

    def _lane_taken(self, instance: Instance, moving: Sequence[State] = MOVING) -> bool:
        """One start, stop or reclaim at a time on each GPU: engines size themselves by what they find free."""
        gpus = {d.id for d in self._host.devices if d.kind == "gpu"}.intersection(instance.devices)
        return any(gpus.intersection(i.devices) for i in self._instances.values() if i.state in moving)

    # Steps.

    def _drain(self, instance: Instance, why: str, now: float) -> None:
        self._epoch += 1
        instance = replace(instance, epoch=self._epoch, why=why, deadline=now + self._rules.drain_grace_s)
        if not why.startswith("evicted"):  # that has a receipt of its own
            self._decide("draining", instance.function, instance.id, why)
        self._step(instance, Step.DRAIN, now)

    def _close(self, instance: Instance, function: str, now: float) -> None:
        """Have an instance that is in use finish what it has and leave for a function whose turn it is.

        Requests end by their own clock at the latest, so that is when it leaves.
        """
        self._epoch += 1
        latest = now + self._functions[instance.id].request_timeout_s
        instance = replace(instance, epoch=self._epoch, why=f"evicted for {function}", yields_to=function)
        self._step(replace(instance, deadline=latest), Step.DRAIN, now)

    def _take_back(self, instance: Instance, why: str, now: float) -> None:
        """Let a draining instance serve on; one that was to come in its place is not needed any more."""
        self._epoch += 1
        self._decide("kept", instance.function, instance.id, why)
        self._step(replace(instance, epoch=self._epoch, why="", deadline=0.0, yields_to=""), Step.TAKEN_BACK, now)
        for twin in self._twins(instance):
            if twin.state in (State.FETCHING, State.PLACING):
                self._decide("abandoned", twin.function, twin.id, f"{instance.id} serves on")
                self._step(twin, Step.ABANDONED, now)

    def _stop(self, instance: Instance, why: str, now: float) -> None:
        instance = self._step(replace(instance, why=why), Step.STOP, now)
        self._decide("stopped", instance.function, instance.id, why)
        self._effects.append(Stop(instance, self._rules.stop_grace_s))

    def _let_go(self, instance: Instance, why: str, now: float, *, at_once: bool = False) -> bool:
        """Begin the end of an instance. False when it has begun already."""
        match instance.state:
            case State.FETCHING | State.PLACING:
                self._fail(instance, _cancelled(why), f"given up before it started: {why}", (), now)
                self._step(instance, Step.ABANDONED, now)
            case State.STARTING:
                self._fail(instance, _cancelled(why), f"given up while it was starting: {why}", (), now)
                self._stop(instance, why, now)
            case State.READY if not at_once:
                self._drain(instance, why, now)
            case State.READY | State.DRAINING if at_once:
                self._stop(instance, why, now)
            case State.DRAINING:
                self._put(replace(instance, why=why, deadline=now + self._rules.drain_grace_s))
            case _:
                return False
        return True

    def _step(self, instance: Instance, step: Step, now: float) -> Instance:
        if instance.state is State.FETCHING and step is Step.ABANDONED:
            self._effects.append(CallOff(instance, self._functions[instance.id]))
        if instance.state in COMING:
            instance = replace(instance, phases=self._spent(instance, now))
        self._looks.pop(instance.id, None)
        self._proofs.pop(instance.id, None)
        self._overdue.pop(instance.id, None)
        return self._put(replace(instance, state=after(instance.state, step), since=now, problem=""))

    @staticmethod
    def _spent(instance: Instance, now: float) -> dict[str, float]:
        """Return the seconds of each phase on the way up, the present one's until now. The first step of a start,
        before the worker says anything, has the state's name."""
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
        self._decide("failed", instance.function, instance.id, failure.reason)

    def _decide(self, what: str, function: str, instance: str, why: str) -> None:
        self._effects.append(Decision(what, function, instance, why))


def _cancelled(why: str) -> FailureKind:
    """Say what a start that was given up means to those that wait for it: where only its place or its revision is lost,
    they may request another."""
    return FailureKind.ROOM if why in ("host drain", "shutdown", "superseded") else FailureKind.CANCELLED
