"""The agent's decisions: events in, effects out. No I/O, no clock, no randomness; the agent's loop is its only
caller, so the host's state has one writer.

Callers *ensure*; they never check and then start. Whatever happened is an event with its time; whatever must
be done is an effect the loop hands to the supervisor, which answers with events. After every event
`settle()` moves on whatever can move: a placing instance whose room is free, a drain that everybody has
acknowledged, a start that shows no sign of life.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import TRANSITIONS, State, Step
from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted, PlacementPlan, Rejected, Victim
from cortex.platform.record import Cause, Device, FailureKind, Fleet, Held, Instance, ProcessId
from cortex.platform.scheduling.effects import Fetch, Reclaim, Stop
from cortex.platform.scheduling.failures import cause_of
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.placement import MINIMUM_YIELDS_S, NoRoom, Placement, When
from cortex.platform.scheduling.progress import is_hung
from cortex.platform.scheduling.reconcile import PROVE_AGAIN_S, Reconciler
from cortex.platform.scheduling.saved_state import LocalWeights, SavedWorker
from cortex.platform.scheduling.state import Observation
from cortex.platform.scheduling.turns import Waiter
from cortex.platform.workers.served_model import ServedModel

MISSES_TO_ACT = 3
"""Health checks in a row that go unanswered before anything is done about it."""

SUPERSEDED_S = 30.0
"""How long a revision that the catalogue has superseded is not started again: routers read the file within a second."""

REPORTS_BACK_S = 3.0
"""A record that was away may come back empty. Until the routers had this long to report, silence says nothing."""


class Scheduler(Reconciler):
    """One host's instances and what is to become of them."""

    def adopt(self, kept: SavedWorker, now: float, *, alive: bool, healthy: bool) -> None:
        """Take over a worker that an earlier agent of this host started:

        (1) its process is gone: clear up what it left;
        (2) it was being stopped: stop it;
        (3) it was starting: go on waiting for it;
        (4) it answers for its model: it is ready, and a drain that was under way is forgotten;
        (5) it does not answer: stop it.
        """
        instance = kept.instance
        self._functions[instance.id], self._weights[instance.id] = kept.function, kept.weights
        if not alive or instance.state is State.RECLAIMING:  # (1)
            instance = self._put(replace(instance, state=State.RECLAIMING, since=now))
            self._effects.append(Reclaim(instance))
            return
        if instance.state is State.STOPPING:  # (2)
            self._put(instance)
            self._effects.append(Stop(instance, self._rules.stop_grace_s))
            return
        if instance.state is State.STARTING:  # (3)
            self._put(replace(instance, last_sign=now))
            return
        self._epoch += 1
        serving = replace(instance, state=State.READY, epoch=self._epoch, why="", deadline=0.0, yields_to="")
        instance = self._put(serving)
        if not healthy:  # (5)
            self._fail(instance, FailureKind.CRASH, "it did not answer the agent that came back", (), now)
            self._stop(instance, "failed", now)
        else:  # (4)
            self._decide("adopted", instance.function, instance.id, f"pid {instance.pid}")

    # What callers ask for.

    def ensure(
        self,
        function: Function,
        weights: LocalWeights | None,
        instance_id: str,
        now: float,
        *,
        force: bool = False,
        beside: Collection[str] = (),
        evict: bool = True,
        minimum: bool = False,
        waited_s: float = 0.0,
        turn: bool = False,
    ) -> Accepted | Rejected:
        """See to it that an instance of `function` is up or coming, other than those `beside`:

        (1) the catalogue has superseded this revision a moment ago: refused, for the caller reads an old one;
        (2) one is: that one; a drain that nothing depends on is taken back for it;
        (3) its starts keep failing: refused until the back-off is over, unless forced;
        (4) it does not fit, or only at others' expense without `evict`: with `turn` it comes into line, and instances
            in use are closed for it when its turn has come (`turns.py`); else refused, with the reason;
        (5) its weights are missing: fetched first, room is made for them when they are here;
        (6) room is made and it is started as `instance_id`.
        """
        rev = revision(function)
        if self._catalogue is not None and self._catalogue.get(function.id) != function:
            # The caller reads another catalogue than this host was told: have it told again. What is started now and
            # is not in that one either will be superseded by it.
            self._catalogue_digest = ""
        if now < self._superseded.get((function.id, rev), 0.0):  # (1)
            return _superseded(function)
        up = self._up(function.id, rev, beside)  # (2)
        if up and up.state is State.DRAINING:
            self._take_back(up, "wanted again", now)
            return Accepted(up.id, State.READY)
        if up:
            self._functions[up.id] = function
            return Accepted(up.id, up.state)
        failure = self._failures.of(function.id, rev)  # (3)
        if failure and failure.retry_at > now and not force:
            return Rejected(
                f"starts keep failing ({max(failure.count, failure.early)} in a row), tried again no sooner than "
                f"{round(failure.retry_at - now)} s from now: {failure.reason}",
                When.LATER,
                retry_at=failure.retry_at,
                failure=failure,
            )
        wanted = self._need(function, weights)
        waiter = self._line.waiter(function, wanted, waited_s, now)
        spot = self._place(waiter, now, unused_s=MINIMUM_YIELDS_S if minimum else 0.0)  # (4)
        if not evict and isinstance(spot, Placement) and spot.waits_for:
            spot = NoRoom(reason="no room is free for one more instance", when=When.LATER)
        elif weights is not None and (isinstance(spot, NoRoom) or spot.evict):
            spot = self._consolidated(wanted, now) or spot
        if isinstance(spot, NoRoom):
            next_turn = self._next_turn(waiter, now) if evict and not minimum and spot.when is When.LATER else None
            if turn and evict:
                self._line.join(replace(waiter, turn=next_turn, start_s=self._start_s(function)))
            if next_turn is None or not turn or (next_turn.at > now and weights is not None):
                self._decide("refused", function.id, "", spot.reason)
                turn_in_s = next_turn.at - now if next_turn else None
                return Rejected(spot.reason, spot.when, short_by_mb=spot.short_by_mb, turn_in_s=turn_in_s)
            spot = next_turn.spot  # weights that are missing are fetched before its turn comes
            if weights is not None:
                self._decide("turn", function.id, instance_id, self._cost(waiter, spot, now))
        if not beside:
            self._line.leave(function.id)
        instance = Instance(
            id=instance_id,
            function=function.id,
            revision=rev,
            state=State.FETCHING if weights is None else State.PLACING,
            since=now,
            created=now,
            pinned=function.pinned or self._host.name in function.pinned_on,
            priority=function.priority,
            for_minimum=minimum,
        )
        self._instances[instance_id] = instance
        self._functions[instance_id] = function
        if weights is None:  # (5)
            self._effects.append(Fetch(instance, function))
        else:  # (6)
            self._weights[instance_id] = weights
            self._admit(instance, spot, now)
        self.settle(now)
        # Placing may already have failed (the answer is then in the failures) or gone on.
        current = self._instances.get(instance_id)
        return Accepted(instance_id, current.state if current else State.GONE)

    def plan(self, function: Function, weights: LocalWeights | None, now: float) -> PlacementPlan | Rejected:
        """Say what `ensure` would do, without doing it."""
        rev = revision(function)
        if now < self._superseded.get((function.id, rev), 0.0):
            return _superseded(function)
        if up := self._up(function.id, rev):
            return PlacementPlan(host=self._host.name, there=up.id, devices=up.devices, memory_mb=up.memory_mb)
        failure = self._failures.of(function.id, rev)
        waiter = self._line.waiter(function, self._need(function, weights), 0.0, now)
        spot = self._place(waiter, now)
        if isinstance(spot, NoRoom):
            next_turn = self._next_turn(waiter, now) if spot.when is When.LATER else None
            turn_in_s = next_turn.at - now if next_turn else None
            return Rejected(spot.reason, spot.when, short_by_mb=spot.short_by_mb, turn_in_s=turn_in_s)
        usage = self._use()
        return PlacementPlan(
            host=self._host.name,
            devices=spot.devices,
            memory_mb=spot.memory_mb,
            memory_from=spot.memory_from,
            evict=tuple(
                Victim(v, self._instances[v].function, round(now - usage.last_used(self._instances[v]), 1))
                for v in spot.evict
            ),
            retry_at=failure.retry_at if failure and failure.retry_at > now else 0.0,
        )

    def drain(self, now: float) -> list[str]:
        """Empty the host: take no new work, and let every instance go after its requests. Return who is going."""
        self._cordoned = True
        going = [i.id for i in list(self._instances.values()) if self._let_go(i, "host drain", now)]
        self.settle(now)
        return going

    def cool(self, function: str, now: float, *, at_once: bool = False, why: str = "cool") -> list[str]:
        """Let the instances of a function go: after the requests in flight, or at once. Return their ids."""
        ours = [i for i in self._instances.values() if i.function == function]
        going = [i.id for i in ours if self._let_go(i, why, now, at_once=at_once)]
        self.settle(now)
        return going

    def forgive(self, function: str) -> None:
        """Forget a function's failures: its operator says it is mended."""
        self._failures.forget(function)

    def heed(self, catalogue: Mapping[str, Function], digest: str, now: float) -> None:
        """Take a new catalogue: instances it no longer declares so are superseded; the rest get its settings."""
        self._catalogue, self._catalogue_digest = dict(catalogue), digest
        declared_now = {(f.id, revision(f)) for f in catalogue.values()}
        self._superseded = {s: t for s, t in self._superseded.items() if t > now and s not in declared_now}
        for instance in list(self._instances.values()):
            declared = catalogue.get(instance.function)
            if declared is None or revision(declared) != instance.revision:
                self._superseded[instance.function, instance.revision] = now + SUPERSEDED_S
                self._let_go(instance, "superseded", now)
            else:
                self._functions[instance.id] = declared
                pinned = declared.pinned or self._host.name in declared.pinned_on
                self._put(replace(instance, pinned=pinned, priority=declared.priority))
        self._failures.keep_only(catalogue)
        self.settle(now)

    def shut_down(self, now: float) -> None:
        """Let every instance go at once."""
        for instance in list(self._instances.values()):
            self._let_go(instance, "shutdown", now, at_once=True)

    # What happened.

    def learned(self, ledger: Mapping[str, Entry]) -> None:
        """What earlier starts took, by revision."""
        self._ledger = dict(ledger)

    def used(self, instance_id: str, used_mb: int) -> None:
        """A reading of the memory an instance really holds; the highest counts."""
        instance = self._instances.get(instance_id)
        if instance is not None and used_mb > (instance.used_mb or 0):
            self._put(replace(instance, used_mb=used_mb))

    def misplaced(self, instance_id: str, now: float) -> None:
        """A ready worker that should be on a GPU has no process there: it computes on the CPU, and must not."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.READY:
            reason = f"the worker has no process on {', '.join(instance.devices)}: it fell back to the CPU"
            self._fail(instance, FailureKind.CRASH, reason, (), now)
            self._stop(instance, "failed", now)

    def unwell(self, instance_id: str, misses: int, now: float, *, stuck: bool) -> None:
        """A ready worker did not answer its health check, `misses` times in a row:

        (1) once or twice: that happens under load;
        (2) it does nothing at all either (`stuck`): it hangs, and its requests with it;
        (3) it is busy, or may be: leave it;
        (4) it is idle and silent: it will not do.
        """
        instance = self._instances.get(instance_id)
        if instance is None or instance.state is not State.READY or misses < MISSES_TO_ACT:  # (1)
            return
        usage = self._use()
        busy = not usage.known or usage.in_flight.get(instance_id, 0) > 0
        if busy and not stuck:  # (3)
            return
        reason = f"the worker did not answer {misses} health checks{' and does nothing' if stuck else ''}"
        self._fail(instance, FailureKind.CRASH, reason, (), now, died=True)  # (2), (4)
        self._stop(instance, "failed", now)

    def proved(self, instance_id: str, now: float, *, answered: bool, worked: bool) -> None:
        """A silent worker was given a request of one token:

        (1) it answered, or got further with others: it makes progress;
        (2) it did not, and has been silent for too long: it is stopped, and the next request starts it anew;
        (3) it did not, but may yet: it is given another.
        """
        instance, function = self._instances.get(instance_id), self._functions.get(instance_id)
        proof = self._proofs.get(instance_id)
        if instance is None or function is None or proof is None or instance.state is not State.READY:
            return
        if answered:  # (1)
            self._proofs[instance_id] = replace(proof, answered=now)
            return
        silent = self._silence(instance, now)
        if silent is None or not is_hung(silent, full=self._is_full(instance, function), worked=worked):  # (3)
            self._proofs[instance_id] = replace(proof, sent=now - PROVE_AGAIN_S)
            return
        reason = (
            f"the worker made no progress for {silent.for_s:.0f} s: its requests got no byte, and one of one token no"
            " answer"
        )
        self._fail(instance, FailureKind.CRASH, reason, (), now, died=True, hung=True)  # (2)
        self._stop(instance, "failed", now)

    def measured(self, devices: Sequence[Device], foreign: Sequence[Held] = (), problem: str = "") -> None:
        """New readings of the host's devices, and who else holds their memory."""
        self._host = replace(self._host, devices=tuple(devices), foreign=tuple(foreign), problem=problem)

    def troubled(self, problems: Sequence[str]) -> None:
        """What is wrong on this host beside its devices, for operators."""
        self._host = replace(self._host, problems=tuple(problems))

    def studied(self, models: Mapping[str, ModelProfile]) -> None:
        """What the weights on this host say about their models."""
        self._host = replace(self._host, models=dict(models))

    def holds(self, weights: Mapping[str, int]) -> None:
        """Which functions' weights are on this host, with their size in MiB."""
        self._host = replace(self._host, weights=dict(weights))

    def silent(self, places: Mapping[str, float], unreadable: Mapping[str, str]) -> None:
        """Which paths on this host do not answer, since when, and which functions need them."""
        self._host = replace(self._host, silent=dict(places), unreadable=dict(unreadable))

    def launcher(self, engine: str, state: str) -> None:
        """How the launcher stands that is kept for an engine's next start."""
        self._host = replace(self._host, launchers={**self._host.launchers, engine: state})

    def reported(self, fleet: Fleet | None, now: float) -> None:
        """What the routers say; None when the record cannot be read, and then nobody counts as idle.

        A record that has forgotten this host has forgotten the routers too.
        """
        there = fleet is not None and self._host.name in fleet.hosts
        if fleet is None or (self._in_record and not there):
            self._blind_until = now + REPORTS_BACK_S
        if fleet is not None:
            self._cordoned, self._in_record = self._host.name in fleet.cordoned, there
        trusted = fleet if now >= self._blind_until else None
        self._reports.take(trusted, now, instances=tuple(self._instances.values()))
        self.settle(now)

    def looked(self, instance_id: str, running: int | None, connections: int, now: float) -> None:
        """A look at a worker: the requests its engine says it runs, and the connections to its port.

        (1) the engine's own count decides;
        (2) where it does not say, connections are requests if a router that had some fell silent: what other routers
            have open is idle, for they report.
        """
        instance = self._instances.get(instance_id)
        if instance is None or instance.state not in (State.READY, State.DRAINING):
            return
        busy = connections > 0 and self._reports.any_silent(instance_id)  # (2)
        if running is not None:  # (1)
            busy = running > 0
        if not busy:
            self._reports.is_quiet(instance_id)
        self._looks[instance_id] = Observation(asked=now, at=now, busy=busy)
        self.settle(now)

    def stuck(self, instance_id: str, problem: str) -> None:
        """What keeps an instance from ending, for operators to see."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state in (State.STOPPING, State.RECLAIMING):
            if instance.problem != problem:
                self._decide("overdue", instance.function, instance.id, problem)
            self._put(replace(instance, problem=problem))

    def fetching(self, instance_id: str, phase: str, progress: float | None, now: float) -> None:
        """The weights are on their way."""
        if (instance := self._instances.get(instance_id)) and instance.state is State.FETCHING:
            if progress != instance.progress:  # it has come further
                instance = replace(instance, phase_since=now, problem="")
            self._put(replace(instance, phase=phase, progress=progress, last_sign=now))

    def fetched(self, instance_id: str, weights: LocalWeights, now: float) -> None:
        """The weights are here: make room."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state is not State.FETCHING:
            return
        self._weights[instance_id] = weights
        instance = self._step(replace(instance, phase="", progress=None), Step.FETCHED, now)
        self._admit_or_fail(instance, now)
        self.settle(now)

    def fetch_failed(self, instance_id: str, reason: str, now: float) -> None:
        """The weights cannot be had."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.FETCHING:
            self._fail(instance, FailureKind.WEIGHTS, reason, (), now)
            self._step(instance, Step.ABANDONED, now)
            self.settle(now)

    def spawned(
        self,
        instance_id: str,
        process: ProcessId,
        url: str,
        now: float,
        *,
        server: str = "",
        health_path: str = "/health",
        path: str = "plain",
    ) -> None:
        """The worker's process runs; `path` says how it was started."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state not in (State.STARTING, State.STOPPING):
            return
        instance = replace(instance, pid=process.pid, boot=process.boot, process_ticks=process.ticks, url=url)
        instance = replace(instance, started=now, last_sign=now)
        self._put(replace(instance, server=server, health_path=health_path, path=path))

    def sign_of_life(self, instance_id: str, phase: str, now: float, progress: float | None = None) -> None:
        """A starting worker wrote to its log: it is at this step of its start, and so far with it."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state is not State.STARTING:
            return
        if phase and phase != instance.phase:
            instance = replace(instance, phases=self._spent(instance, now), phase=phase, phase_since=now)
        self._put(replace(instance, last_sign=now, progress=progress))

    def answered(self, instance_id: str, now: float) -> None:
        """The worker is healthy and serves the model it should."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.STARTING:
            instance = self._step(replace(instance, ready=now), Step.ANSWERED, now)
            self._put(replace(instance, phase="", progress=None))
            how = f", {instance.path}" if instance.path not in ("", "plain") else ""
            self._decide("ready", instance.function, instance.id, f"after {now - instance.started:.3f} s{how}")
            self.settle(now)

    def introduced(self, instance_id: str, card: ServedModel) -> None:
        """What the worker says of itself."""
        if instance := self._instances.get(instance_id):
            self._put(replace(instance, context=card.context, vision=card.vision))

    def exited(self, instance_id: str, how: str, last_lines: Sequence[str], now: float) -> None:
        """The worker's process is gone; `how` says it in words. Nobody asked for it unless it was stopping."""
        instance = self._instances.get(instance_id)
        if instance is None or Step.EXITED not in TRANSITIONS[instance.state]:
            return
        again = False
        if instance.state is State.STARTING:
            kind = self._kind_of_start_failure(instance, last_lines)
            again = kind is FailureKind.OUT_OF_MEMORY
            self._fail(instance, kind, f"the worker {how} while starting", last_lines, now)
        elif instance.state is not State.STOPPING:
            self._fail(
                instance,
                FailureKind.CRASH,
                f"the worker {how} while it was {instance.state}",
                last_lines,
                now,
                died=True,
            )
        self._decide("exited", instance.function, instance.id, how)
        instance = self._step(instance, Step.EXITED, now)
        self._effects.append(Reclaim(instance))
        if again:
            self._start_again(instance, now)
        self.settle(now)

    def spawn_failed(self, instance_id: str, reason: str, now: float, *, kind: FailureKind = FailureKind.CRASH) -> None:
        """The worker's process could not be started at all."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state not in (State.STARTING, State.STOPPING):
            return
        if instance.state is State.STARTING:
            self._fail(instance, kind, reason, (), now)
        instance = self._step(instance, Step.EXITED, now)
        self._effects.append(Reclaim(instance))

    def start_failed(self, instance_id: str, reason: str, last_lines: Sequence[str], now: float) -> None:
        """The worker lives, but will not do: it serves another model, say."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.STARTING:
            self._fail(instance, FailureKind.CRASH, reason, last_lines, now)
            self._stop(instance, "failed", now)

    def reclaimed(self, instance_id: str, now: float) -> None:
        """Nothing of the worker is left."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.RECLAIMING:
            self._step(instance, Step.RECLAIMED, now)
            self.settle(now)

    # Steps.

    def _cost(self, waiter: Waiter, spot: Placement, now: float) -> str:
        """Say what a turn costs, for its receipt."""
        leaving = ", ".join(sorted({self._instances[i].function for i in spot.evict}))
        start_s = self._start_s(waiter.function)
        takes = f"; its start takes {start_s:.1f} s" if start_s else ""
        return f"it has waited {now - waiter.since:.0f} s; {leaving} closes for it{takes}"

    def _kind_of_start_failure(self, instance: Instance, last_lines: Sequence[str]) -> FailureKind:
        """Running out of memory is forgiven once: with more room it may do."""
        before = self._failures.of(instance.function, instance.revision)
        if cause_of(last_lines) is Cause.OUT_OF_MEMORY and not (before and before.kind is FailureKind.OUT_OF_MEMORY):
            return FailureKind.OUT_OF_MEMORY
        return FailureKind.CRASH


def _superseded(function: Function) -> Rejected:
    return Rejected(f"'{function.id}' is not declared like this any more", When.LATER)
