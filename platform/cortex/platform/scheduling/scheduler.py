"""The agent's decisions: events in, effects out. No I/O, no clock, no randomness; the agent's loop is its only
caller, so the host's state has one writer.

Callers *ensure*; they never check and then start. Each method is an event with its time; what must be done is an effect
that the loop hands to the supervisor, which answers with events. After every event `reconcile()` takes the steps that
are due: a placing instance whose room is free, a drain that all routers have acknowledged, a start without a sign of
life.
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
from cortex.platform.served_model import ServedModel

MISSES_TO_ACT = 3
"""Consecutive health checks without an answer before the scheduler acts."""

SUPERSEDED_S = 30.0
"""How long a superseded revision is not started again: routers read the catalogue within a second."""

REPORTS_BACK_S = 3.0
"""A record that was away may come back empty. Reports count again after this time."""


class Scheduler(Reconciler):
    """One host's instances, and every decision about them."""

    def adopt(self, worker: SavedWorker, now: float, *, alive: bool, healthy: bool) -> None:
        """Take over a worker that an earlier agent of this host started:

        (1) its process is gone: reclaim its memory;
        (2) it was stopping: stop it;
        (3) it was starting: keep waiting for it;
        (4) it serves its model: it is ready, and an earlier drain is cancelled;
        (5) it does not answer: stop it.
        """
        instance = worker.instance
        self._functions[instance.id], self._weights[instance.id] = worker.function, worker.weights
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
            self._fail(instance, FailureKind.CRASH, "the worker did not answer the restarted agent", (), now)
            self._stop(instance, "failed", now)
        else:  # (4)
            self._decide("adopted", instance.function, instance.id, f"pid {instance.pid}")

    # Requests.

    def ensure(
        self,
        function: Function,
        weights: LocalWeights | None,
        instance_id: str,
        now: float,
        *,
        force: bool = False,
        exclude: Collection[str] = (),
        evict: bool = True,
        minimum: bool = False,
        waited_s: float = 0.0,
        turn: bool = False,
    ) -> Accepted | Rejected:
        """Ensure that an instance of `function`, other than those in `exclude`, is ready or on its way up:

        (1) the catalogue has just superseded this revision: rejected, because the caller's catalogue is old;
        (2) there is one: return it; a drain that nothing depends on is cancelled;
        (3) its starts keep failing: rejected until the back-off is over, unless forced;
        (4) it does not fit, or only by eviction and without `evict`: with `turn` it joins the line, and instances in
            use are closed for it when its turn comes (`turns.py`); otherwise rejected, with the reason;
        (5) its weights are missing: fetch them first, make room later;
        (6) make room and start it as `instance_id`.
        """
        rev = revision(function)
        if self._catalogue is not None and self._catalogue.get(function.id) != function:
            # The caller's catalogue differs from this host's: publish no digest, so that a router sends it again. An
            # instance that is not in that one either is superseded by it.
            self._catalogue_digest = ""
        if now < self._superseded.get((function.id, rev), 0.0):  # (1)
            return _superseded(function)
        up = self._up(function.id, rev, exclude)  # (2)
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
        function_need = self._need(function, weights)
        waiter = self._line.waiter(function, function_need, waited_s, now)
        placement = self._place(waiter, now, unused_s=MINIMUM_YIELDS_S if minimum else 0.0)  # (4)
        if not evict and isinstance(placement, Placement) and placement.waits_for:
            placement = NoRoom(reason="no room is free for one more instance", when=When.LATER)
        elif weights is not None and (isinstance(placement, NoRoom) or placement.evict):
            placement = self._consolidation(function_need, now) or placement
        if isinstance(placement, NoRoom):
            next_turn = self._next_turn(waiter, now) if evict and not minimum and placement.when is When.LATER else None
            if turn and evict:
                self._line.join(replace(waiter, turn=next_turn, start_s=self._start_s(function)))
            if next_turn is None or not turn or (next_turn.at > now and weights is not None):
                self._decide("refused", function.id, "", placement.reason)
                turn_in_s = next_turn.at - now if next_turn else None
                return Rejected(
                    placement.reason, placement.when, short_by_mb=placement.short_by_mb, turn_in_s=turn_in_s
                )
            placement = next_turn.placement  # missing weights are fetched before the turn
            if weights is not None:
                self._decide("turn", function.id, instance_id, self._cost(waiter, placement, now))
        if not exclude:
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
            self._admit(instance, placement, now)
        self.reconcile(now)
        # Placing may already have failed (the reason is then in the failures) or moved on.
        current = self._instances.get(instance_id)
        return Accepted(instance_id, current.state if current else State.GONE)

    def plan(self, function: Function, weights: LocalWeights | None, now: float) -> PlacementPlan | Rejected:
        """Return what `ensure` would do, without doing it."""
        rev = revision(function)
        if now < self._superseded.get((function.id, rev), 0.0):
            return _superseded(function)
        if up := self._up(function.id, rev):
            return PlacementPlan(host=self._host.name, there=up.id, devices=up.devices, memory_mb=up.memory_mb)
        failure = self._failures.of(function.id, rev)
        waiter = self._line.waiter(function, self._need(function, weights), 0.0, now)
        placement = self._place(waiter, now)
        if isinstance(placement, NoRoom):
            next_turn = self._next_turn(waiter, now) if placement.when is When.LATER else None
            turn_in_s = next_turn.at - now if next_turn else None
            return Rejected(placement.reason, placement.when, short_by_mb=placement.short_by_mb, turn_in_s=turn_in_s)
        usage = self._use()
        return PlacementPlan(
            host=self._host.name,
            devices=placement.devices,
            memory_mb=placement.memory_mb,
            memory_from=placement.memory_from,
            evict=tuple(
                Victim(v, self._instances[v].function, round(now - usage.last_used(self._instances[v]), 1))
                for v in placement.evict
            ),
            retry_at=failure.retry_at if failure and failure.retry_at > now else 0.0,
        )

    def drain(self, now: float) -> list[str]:
        """Drain the host: start nothing more, and end every instance after its requests. Return the ids of those that
        end."""
        self._cordoned = True
        ids = [i.id for i in list(self._instances.values()) if self._end(i, "host drain", now)]
        self.reconcile(now)
        return ids

    def cool(self, function: str, now: float, *, at_once: bool = False, why: str = "cool") -> list[str]:
        """End the instances of a function: after the requests in flight, or at once. Return their ids."""
        instances = [i for i in self._instances.values() if i.function == function]
        ids = [i.id for i in instances if self._end(i, why, now, at_once=at_once)]
        self.reconcile(now)
        return ids

    def clear_failures(self, function: str) -> None:
        """Remove a function's failures: its operator has fixed it."""
        self._failures.forget(function)

    def apply_catalogue(self, catalogue: Mapping[str, Function], digest: str, now: float) -> None:
        """Apply a new catalogue: drain instances whose launch command changed or whose function is gone as
        superseded; give the others the new settings."""
        self._catalogue, self._catalogue_digest = dict(catalogue), digest
        declared_now = {(f.id, revision(f)) for f in catalogue.values()}
        self._superseded = {s: t for s, t in self._superseded.items() if t > now and s not in declared_now}
        for instance in list(self._instances.values()):
            declared = catalogue.get(instance.function)
            if declared is None or revision(declared) != instance.revision:
                self._superseded[instance.function, instance.revision] = now + SUPERSEDED_S
                self._end(instance, "superseded", now)
            else:
                self._functions[instance.id] = declared
                pinned = declared.pinned or self._host.name in declared.pinned_on
                self._put(replace(instance, pinned=pinned, priority=declared.priority))
        self._failures.keep_only(catalogue)
        self.reconcile(now)

    def shut_down(self, now: float) -> None:
        """End every instance at once."""
        for instance in list(self._instances.values()):
            self._end(instance, "shutdown", now, at_once=True)

    # Events.

    def set_ledger(self, ledger: Mapping[str, Entry]) -> None:
        """Measurements of earlier starts, by revision."""
        self._ledger = dict(ledger)

    def used(self, instance_id: str, used_mb: int) -> None:
        """A reading of the memory that an instance uses; the highest counts."""
        instance = self._instances.get(instance_id)
        if instance is not None and used_mb > (instance.used_mb or 0):
            self._put(replace(instance, used_mb=used_mb))

    def fell_back_to_cpu(self, instance_id: str, now: float) -> None:
        """A ready worker that belongs on a GPU has no process there: it computes on the CPU, and is stopped."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.READY:
            reason = f"the worker has no process on {', '.join(instance.devices)}: it fell back to the CPU"
            self._fail(instance, FailureKind.CRASH, reason, (), now)
            self._stop(instance, "failed", now)

    def health_check_failed(self, instance_id: str, misses: int, now: float, *, stuck: bool) -> None:
        """A ready worker did not answer `misses` consecutive health checks:

        (1) fewer than `MISSES_TO_ACT`: that happens under load;
        (2) it uses no CPU time either (`stuck`): it hangs, and is stopped with its requests;
        (3) it is or may be busy: leave it;
        (4) it is idle: stop it.
        """
        instance = self._instances.get(instance_id)
        if instance is None or instance.state is not State.READY or misses < MISSES_TO_ACT:  # (1)
            return
        usage = self._use()
        busy = not usage.known or usage.in_flight.get(instance_id, 0) > 0
        if busy and not stuck:  # (3)
            return
        reason = f"the worker did not answer {misses} health checks{' and uses no CPU time' if stuck else ''}"
        self._fail(instance, FailureKind.CRASH, reason, (), now, died=True)  # (2), (4)
        self._stop(instance, "failed", now)

    def proved(self, instance_id: str, now: float, *, answered: bool, worked: bool) -> None:
        """A silent worker was sent a request of one token:

        (1) it answered, or answered other requests: it makes progress;
        (2) it did not, and has been silent for too long: stop it; the next request starts another;
        (3) it did not, and has time left: send another.
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
            f"the worker made no progress for {silent.for_s:.0f} s: it sent no byte, and did not answer a request of"
            " one token"
        )
        self._fail(instance, FailureKind.CRASH, reason, (), now, died=True, hung=True)  # (2)
        self._stop(instance, "failed", now)

    def measured(self, devices: Sequence[Device], foreign: Sequence[Held] = (), problem: str = "") -> None:
        """New readings of the host's devices, and the foreign processes that hold their memory."""
        self._host = replace(self._host, devices=tuple(devices), foreign=tuple(foreign), problem=problem)

    def set_problems(self, problems: Sequence[str]) -> None:
        """The host's problems except those of its devices, for operators."""
        self._host = replace(self._host, problems=tuple(problems))

    def set_models(self, models: Mapping[str, ModelProfile]) -> None:
        """The model profiles of the weights on this host."""
        self._host = replace(self._host, models=dict(models))

    def set_weights(self, weights: Mapping[str, int]) -> None:
        """The functions whose weights are on this host, with their size in MiB."""
        self._host = replace(self._host, weights=dict(weights))

    def set_silent_paths(self, paths: Mapping[str, float], unreadable: Mapping[str, str]) -> None:
        """The paths on this host that do not answer, since when, and the functions that need them."""
        self._host = replace(self._host, silent=dict(paths), unreadable=dict(unreadable))

    def set_launcher(self, engine: str, state: str) -> None:
        """The state of the launcher for an engine's next start."""
        self._host = replace(self._host, launchers={**self._host.launchers, engine: state})

    def reported(self, fleet: Fleet | None, now: float) -> None:
        """A reading of the record; None when it cannot be read, and then no instance counts as idle.

        A record without this host has lost the routers' reports too.
        """
        in_record = fleet is not None and self._host.name in fleet.hosts
        if fleet is None or (self._in_record and not in_record):
            self._blind_until = now + REPORTS_BACK_S
        if fleet is not None:
            self._cordoned, self._in_record = self._host.name in fleet.cordoned, in_record
        trusted = fleet if now >= self._blind_until else None
        self._reports.take(trusted, now, instances=tuple(self._instances.values()))
        self.reconcile(now)

    def looked(self, instance_id: str, running: int | None, connections: int, now: float) -> None:
        """A look at a worker: its engine's count of running requests, and the connections to its port.

        (1) the engine's count decides;
        (2) without one, connections count as requests if a router with requests in flight fell silent: connections of
            routers that report are idle.
        """
        instance = self._instances.get(instance_id)
        if instance is None or instance.state not in (State.READY, State.DRAINING):
            return
        busy = connections > 0 and self._reports.any_silent(instance_id)  # (2)
        if running is not None:  # (1)
            busy = running > 0
        if not busy:
            self._reports.forget_silent(instance_id)
        self._looks[instance_id] = Observation(requested_at=now, at=now, busy=busy)
        self.reconcile(now)

    def end_delayed(self, instance_id: str, problem: str) -> None:
        """A problem keeps an instance from ending; operators see it."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state in (State.STOPPING, State.RECLAIMING):
            if instance.problem != problem:
                self._decide("overdue", instance.function, instance.id, problem)
            self._put(replace(instance, problem=problem))

    def fetching(self, instance_id: str, phase: str, progress: float | None, now: float) -> None:
        """Progress of a fetch."""
        if (instance := self._instances.get(instance_id)) and instance.state is State.FETCHING:
            if progress != instance.progress:
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
        self.reconcile(now)

    def fetch_failed(self, instance_id: str, reason: str, now: float) -> None:
        """The weights could not be fetched."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.FETCHING:
            self._fail(instance, FailureKind.WEIGHTS, reason, (), now)
            self._step(instance, Step.ABANDONED, now)
            self.reconcile(now)

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
        """The worker's process runs; `path` says description it was started."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state not in (State.STARTING, State.STOPPING):
            return
        instance = replace(instance, pid=process.pid, boot=process.boot, process_ticks=process.ticks, url=url)
        instance = replace(instance, started=now, last_sign=now)
        self._put(replace(instance, server=server, health_path=health_path, path=path))

    def sign_of_life(self, instance_id: str, phase: str, now: float, progress: float | None = None) -> None:
        """A starting worker wrote to its log: the phase of its start, and its progress in it."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state is not State.STARTING:
            return
        if phase and phase != instance.phase:
            instance = replace(instance, phases=self._spent(instance, now), phase=phase, phase_since=now)
        self._put(replace(instance, last_sign=now, progress=progress))

    def answered(self, instance_id: str, now: float) -> None:
        """The worker is healthy and serves its model."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.STARTING:
            instance = self._step(replace(instance, ready=now), Step.ANSWERED, now)
            self._put(replace(instance, phase="", progress=None))
            description = f", {instance.path}" if instance.path not in ("", "plain") else ""
            self._decide("ready", instance.function, instance.id, f"after {now - instance.started:.3f} s{description}")
            self.reconcile(now)

    def set_served_model(self, instance_id: str, card: ServedModel) -> None:
        """The worker's description of its model."""
        if instance := self._instances.get(instance_id):
            self._put(replace(instance, context=card.context, vision=card.vision))

    def exited(self, instance_id: str, description: str, last_lines: Sequence[str], now: float) -> None:
        """The worker's process ended; `description` describes it. Unexpected unless the instance was stopping."""
        instance = self._instances.get(instance_id)
        if instance is None or Step.EXITED not in TRANSITIONS[instance.state]:
            return
        again = False
        if instance.state is State.STARTING:
            kind = self._kind_of_start_failure(instance, last_lines)
            again = kind is FailureKind.OUT_OF_MEMORY
            self._fail(instance, kind, f"the worker {description} while starting", last_lines, now)
        elif instance.state is not State.STOPPING:
            self._fail(
                instance,
                FailureKind.CRASH,
                f"the worker {description} while it was {instance.state}",
                last_lines,
                now,
                died=True,
            )
        self._decide("exited", instance.function, instance.id, description)
        instance = self._step(instance, Step.EXITED, now)
        self._effects.append(Reclaim(instance))
        if again:
            self._start_again(instance, now)
        self.reconcile(now)

    def spawn_failed(self, instance_id: str, reason: str, now: float, *, kind: FailureKind = FailureKind.CRASH) -> None:
        """The worker's process could not be started."""
        instance = self._instances.get(instance_id)
        if instance is None or instance.state not in (State.STARTING, State.STOPPING):
            return
        if instance.state is State.STARTING:
            self._fail(instance, kind, reason, (), now)
        instance = self._step(instance, Step.EXITED, now)
        self._effects.append(Reclaim(instance))

    def start_failed(self, instance_id: str, reason: str, last_lines: Sequence[str], now: float) -> None:
        """The worker runs, but cannot serve: it serves another model, for example."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.STARTING:
            self._fail(instance, FailureKind.CRASH, reason, last_lines, now)
            self._stop(instance, "failed", now)

    def reclaimed(self, instance_id: str, now: float) -> None:
        """The worker's processes are gone and its memory is free."""
        instance = self._instances.get(instance_id)
        if instance is not None and instance.state is State.RECLAIMING:
            self._step(instance, Step.RECLAIMED, now)
            self.reconcile(now)

    # Steps.

    def _cost(self, waiter: Waiter, placement: Placement, now: float) -> str:
        """Return the text of a turn's receipt."""
        leaving = ", ".join(sorted({self._instances[i].function for i in placement.evict}))
        start_s = self._start_s(waiter.function)
        takes = f"; its start takes {start_s:.1f} s" if start_s else ""
        return f"it has waited {now - waiter.since:.0f} s; {leaving} closes for it{takes}"

    def _kind_of_start_failure(self, instance: Instance, last_lines: Sequence[str]) -> FailureKind:
        """The first start that runs out of memory is started again with more; a second counts as a crash."""
        before = self._failures.of(instance.function, instance.revision)
        if cause_of(last_lines) is Cause.OUT_OF_MEMORY and not (before and before.kind is FailureKind.OUT_OF_MEMORY):
            return FailureKind.OUT_OF_MEMORY
        return FailureKind.CRASH


def _superseded(function: Function) -> Rejected:
    return Rejected(f"the catalogue has a newer revision of '{function.id}', or no longer has it", When.LATER)
