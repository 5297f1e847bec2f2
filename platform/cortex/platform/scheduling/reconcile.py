"""Reconciliation: take the steps that are due. Pure.

`reconcile()` is called after every event and on every tick: it starts a placing instance whose room is free, gives up a
start without a sign of life, drains an idle instance, and finishes a drain that all routers have acknowledged.
"""

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from cortex.functions.lifecycle import COMING, LIVE, State, Step
from cortex.functions.servers import max_concurrency, server_of
from cortex.functions.spec import Function, revision
from cortex.platform.record import FailureKind, Fleet, Instance, Silence, Use
from cortex.platform.scheduling.defrag import Move, consolidate
from cortex.platform.scheduling.effects import Fetch, Look, Prove, Reclaim, Spawn, Stop
from cortex.platform.scheduling.ledger import beside_cache_mb, placement_mb
from cortex.platform.scheduling.placement import Need, NoRoom, Placement, need, place, protection
from cortex.platform.scheduling.progress import PROOF_S, Proof, is_doubtful, silence
from cortex.platform.scheduling.reaping import reap_at
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.state import HostState, Observation
from cortex.platform.scheduling.turns import (
    REPORTED_S,
    Turn,
    Waiter,
    next_turn,
    reservation_id,
    with_reservations,
)

STABLE_S = 60.0
"""An instance that was ready this long clears its function's failures."""

MORE_MEMORY = 1.5
"""Factor of memory for a start after one that ran out of memory."""

SLOWEST_LOAD_MB_S = 50.0
"""The slowest speed of reading weights that the start ceiling allows for."""

LOOK_AGAIN_S = 5.0
"""How long a look at a worker may take before another is requested."""

PROVE_AGAIN_S = PROOF_S + 5.0
"""How long a proof may take before another is requested."""

LOOK_FRESH_S = 1.0
"""Maximum age of a look when a worker is stopped because of it."""

OVERDUE_S = {State.FETCHING: 300.0, State.PLACING: 120.0, State.STOPPING: 30.0, State.RECLAIMING: 60.0}
"""How long an instance may be in a state without progress before that is reported and retried."""


class Reconciler(HostState):
    """A host's state, and the steps that follow from it."""

    def reconcile(self, now: float) -> None:
        """Take the steps that are due. Called after every event and on every tick."""
        usage = self._use()
        if self._line:
            self._line.prune(usage, self._functions_starting(), now)
        for instance_id in list(self._instances):
            instance = self._instances.get(instance_id)  # an earlier iteration may have changed it
            if instance is None:
                continue
            match instance.state:
                case State.PLACING:
                    self._reconcile_placing(instance, usage, now)
                case State.STARTING:
                    self._reconcile_starting(instance, now)
                case State.READY:
                    self._reconcile_ready(instance, usage, now)
                case State.DRAINING:
                    self._reconcile_draining(instance, usage, now)
            if (current := self._instances.get(instance_id)) and current.state in OVERDUE_S:
                self._reconcile_overdue(current, now)

    def _reconcile_overdue(self, instance: Instance, now: float) -> None:
        """Report what an overdue instance waits for, and retry:

        (1) a fetch without progress is resumed;
        (2) an instance that waits for others to leave is placed again: there may be room elsewhere;
        (3) a worker that does not end is stopped, and its memory reclaimed, again.
        """
        bound = OVERDUE_S[instance.state]
        if instance.state is State.STOPPING:
            bound += self._rules.stop_grace_s
        moved = max(instance.since, instance.phase_since if instance.state is State.FETCHING else 0.0)
        if now < self._overdue.get(instance.id, moved + bound):
            return
        if any(self._instances[w].yields_to for w in instance.waits_for if w in self._instances):
            return  # an instance that closes for it may take as long as its requests
        self._overdue[instance.id] = now + bound
        log_it = not instance.problem
        match instance.state:
            case State.FETCHING:  # (1)
                problem = f"the fetch of its weights has made no progress for {bound:.0f} s"
                self._effects.append(Fetch(instance, self._functions[instance.id]))
            case State.PLACING:  # (2)
                waits = [w for w in instance.waits_for if w in self._instances]
                names = ", ".join(f"{self._instances[w].function} ({self._instances[w].state})" for w in waits)
                problem = f"it waits for {names or 'another start or stop on its devices'}"
                if all(self._instances[w].state is not State.DRAINING for w in waits):
                    self._admit_or_fail(instance, now)
            case State.STOPPING:  # (3)
                problem = "its process does not end"
                self._effects.append(Stop(instance, self._rules.stop_grace_s))
            case _:  # (3)
                problem = "the memory of its process is not released"
                self._effects.append(Reclaim(instance))
        current = self._instances.get(instance.id)
        if current is not None and current.state is instance.state and not current.problem:
            self._put(replace(current, problem=problem))
        if log_it:
            self._decide("overdue", instance.function, instance.id, problem)

    def _reconcile_placing(self, instance: Instance, usage: Use, now: float) -> None:
        """Start it once all instances it waits for are gone and no start or stop runs on its GPUs."""
        present = [w for w in instance.waits_for if w in self._instances]
        if self._turn_is_pointless(instance, present, usage, now):
            self._decide("abandoned", instance.function, instance.id, "no request waits for it any more")
            self._step(instance, Step.ABANDONED, now)
            return
        still_live = (w for w in present if self._instances[w].state in LIVE and not self._moving(w))
        if any(still_live):  # a victim's drain was cancelled: place again
            self._admit_or_fail(instance, now)
            return
        if present != list(instance.waits_for):
            instance = self._put(replace(instance, waits_for=tuple(present)))
        if present or self._lane_taken(instance):
            return
        instance = replace(instance, started=now, last_sign=now, phase="starting")
        instance = self._step(instance, Step.PLACED, now)
        self._cycles += 1
        # After a failed start the engine sizes its cache itself.
        failed = self._failures.of(instance.function, instance.revision) is not None
        entry = None if failed else self._ledger.get(instance.revision)
        beside_mb = beside_cache_mb(entry, len(instance.devices))
        spawn = Spawn(instance, self._functions[instance.id], self._weights[instance.id], beside_mb)
        self._effects.append(spawn)

    def _turn_is_pointless(self, instance: Instance, present: Sequence[str], usage: Use, now: float) -> bool:
        """Whether instances in use are closing for one that no request waits for any more: their drain is cancelled."""
        closing = [w for w in present if self._instances[w].yields_to == instance.function]
        return (
            any(self._instances[w].state is State.DRAINING for w in closing)
            and usage.known
            and not usage.waiting.get(instance.function)
            and now - instance.since > REPORTED_S
        )

    def _functions_starting(self) -> set[str]:
        """The functions with an instance on its way up, here or elsewhere."""
        hosts = self._reports.fleet.hosts.values() if self._reports.fleet else ()
        elsewhere = (i for h in hosts if h.name != self._host.name for i in h.instances)
        return {i.function for i in (*self._instances.values(), *elsewhere) if i.state in COMING}

    def _reconcile_starting(self, instance: Instance, now: float) -> None:
        silent, total = now - instance.last_sign, now - instance.started
        if silent > self._rules.start_silence_s:
            self._fail(instance, FailureKind.CRASH, f"the start showed no sign of life for {silent:.0f} s", (), now)
            self._stop(instance, "failed", now)
        elif total > (ceiling := self._ceiling(instance)):
            self._fail(
                instance,
                FailureKind.CRASH,
                f"the start took longer than {ceiling:.0f} s",
                (),
                now,
            )
            self._stop(instance, "failed", now)

    def _ceiling(self, instance: Instance) -> float:
        """Maximum duration of a start: the rule's, plus the time to read its weights from a slow disk."""
        return self._rules.start_ceiling_s + self._weights[instance.id].size_mb / SLOWEST_LOAD_MB_S

    def _reconcile_ready(self, instance: Instance, usage: Use, now: float) -> None:
        """Drain it once it was idle long enough, and the function's `min` does not need it."""
        failure = self._failures.of(instance.function, instance.revision)
        if failure and now - instance.ready > STABLE_S and failure.at < instance.ready:
            self._failures.forget(instance.function)
        function = self._functions.get(instance.id)
        successor = self._instances.get(instance.moves_to)
        if successor is not None and successor.state is State.READY:
            self._drain(instance, f"moved to {', '.join(successor.devices)}", now)
            return
        if usage.known and function is not None:
            self._reconcile_progress(instance, function, now)
        if not usage.known or function is None or instance.pinned:
            return
        if usage.in_flight.get(instance.id) and self._only_silent(instance):
            self._is_idle(instance, now)  # requests a look; its result counts from the next report on
        at = reap_at(instance, function, usage, self._in_fleet())
        if at is not None and now >= at:
            self._drain(instance, "idle", now)

    def _reconcile_progress(self, instance: Instance, function: Function, now: float) -> None:
        """Send a request of one token to a worker that has been silent for too long."""
        proof = self._proofs.get(instance.id)
        if proof is not None and now - proof.sent < PROVE_AGAIN_S and proof.answered < proof.sent:
            return
        silent = self._silence(instance, now)
        if silent is not None and is_doubtful(silent, full=self._is_full(instance, function)):
            self._proofs[instance.id] = Proof(sent=now, answered=proof.answered if proof else 0.0)
            self._effects.append(Prove(instance, function))

    def _silence(self, instance: Instance, now: float) -> Silence | None:
        fleet = self._reports.fleet
        return silence(instance.id, fleet.routers.values(), self._proofs.get(instance.id), now) if fleet else None

    def _is_full(self, instance: Instance, function: Function) -> bool:
        """Whether all slots of a worker are busy, by the routers' reports."""
        slots = max_concurrency(function, server_of(function, instance.server))
        return slots is not None and self._use().in_flight.get(instance.id, 0) >= slots

    def _in_fleet(self) -> Iterator[Instance]:
        """Return the instances of all hosts; those of this one as they are now."""
        hosts = self._reports.fleet.hosts.values() if self._reports.fleet else ()
        yield from self._instances.values()
        yield from (i for h in hosts if h.name != self._host.name for i in h.instances)

    def _reconcile_draining(self, instance: Instance, usage: Use, now: float) -> None:
        """Finish the drain handshake: every live router has acknowledged it, nothing is in flight, and the worker is
        idle."""
        fleet = self._reports.fleet
        busy = usage.in_flight.get(instance.id, 0)
        if fleet is None:  # reports cannot be read: assume nothing
            acknowledged = False
        else:
            acknowledged = all(r.seen.get(self._host.name, -1) >= instance.epoch for r in fleet.routers.values())
        if busy and self._only_silent(instance):
            busy = 0  # a look at the worker decides below
        if acknowledged and not busy and not self._is_idle(instance, now):
            if not self._is_busy(instance):
                return  # until the look is done
            busy = 1
        if instance.why.startswith("evicted") and not self._awaited(instance.id):
            self._take_back(instance, "its room is not needed any more", now)
        elif acknowledged and not busy:
            if not self._lane_taken(instance, (State.STARTING,)):  # memory that is released disturbs a start
                self._stop(instance, instance.why, now)
        elif instance.why == "superseded" or self._replaced(instance):
            return  # another serves in its place: it finishes its requests, however long that takes
        elif instance.yields_to and now < instance.deadline:
            self._outlast_grace(instance, busy, now)
        elif busy and instance.why == "idle" and not self._awaited(instance.id):
            self._take_back(instance, "a request is in flight", now)
        elif now >= instance.deadline:
            why = f"{busy} requests in flight" if busy else "not acknowledged by all routers"
            self._take_back(instance, f"still {why} after the grace period", now)

    def _outlast_grace(self, instance: Instance, busy: int, now: float) -> None:
        """Report that the requests of a closing instance outlast the grace period. It still waits for them."""
        function = self._functions[instance.id]
        if instance.id in self._overdue or now < instance.since + function.turn_grace_s:
            return
        what = f"its requests in flight ({busy})" if busy else "acknowledgements of routers"
        why = (
            f"{what} take longer than `turn_grace_s`; {instance.yields_to} waits for them, at most"
            f" {function.request_timeout_s:g} s from when it was closed"
        )
        self._overdue[instance.id] = now
        self._decide("overdue", instance.function, instance.id, why)

    # Looks at the worker.

    def _only_silent(self, instance: Instance) -> bool:
        """Whether only routers that fell silent had requests in flight on an instance."""
        fleet = self._reports.fleet
        live = fleet.routers.values() if fleet else ()
        return self._reports.any_silent(instance.id) and not any(r.in_flight.get(instance.id) for r in live)

    def _is_idle(self, instance: Instance, now: float) -> bool:
        """Whether a recent look shows that the worker is idle. Requests a look when there is none."""
        look = self._looks.get(instance.id)
        if look is not None and look.at and now - look.at <= LOOK_FRESH_S:
            return not look.busy
        if look is None or look.at or now - look.requested_at > LOOK_AGAIN_S:
            self._looks[instance.id] = Observation(requested_at=now, at=0.0, busy=look.busy if look else False)
            self._effects.append(Look(instance))
        return False

    def _is_busy(self, instance: Instance) -> bool:
        """Whether the worker was busy at the last look, contrary to the routers' reports."""
        look = self._looks.get(instance.id)
        return look is not None and look.busy

    # Room.

    def _need(self, function: Function, weights: LocalWeights | None) -> Need:
        """What a function needs, by measurement where there is one; more after it ran out of memory."""
        rev = revision(function)
        fleet = self._reports.fleet or Fleet()
        running = {i.id for h in fleet.hosts.values() for i in h.instances} | self._instances.keys()
        measured_mb = placement_mb(self._ledger.get(rev), function.vram_mb, running, fleet.used)
        function_need = need(function, weights, measured_mb, self._host.devices)
        failure = self._failures.of(function.id, rev)
        if failure and failure.kind is FailureKind.OUT_OF_MEMORY:
            most = max((d.budget_mb for d in self._host.devices), default=0)
            more = max(function_need.memory_mb, min(round(function_need.memory_mb * MORE_MEMORY), most))
            return replace(function_need, memory_mb=more, least_mb=0)
        return function_need

    def _start_again(self, instance: Instance, now: float) -> None:
        """Start an instance that ran out of memory again, with more memory; others may be evicted for it."""
        retry = Instance(
            id=f"{instance.id}-2",
            function=instance.function,
            revision=instance.revision,
            state=State.PLACING,
            since=now,
            created=now,
            pinned=instance.pinned,
            priority=instance.priority,
        )
        self._functions[retry.id] = self._functions[instance.id]
        self._weights[retry.id] = self._weights[instance.id]
        self._admit_or_fail(retry, now)

    def _place(self, waiter: Waiter, now: float, *, unused_s: float = 0.0) -> Placement | NoRoom:
        """Place a function outside the reservations of those ahead of it in line."""
        host = with_reservations(self.record(), self._line.ahead_of(waiter))
        strategy, cordoned = self._rules.strategy, self._cordoned
        return place(waiter.need, host, self._use(), now, strategy=strategy, cordoned=cordoned, unused_s=unused_s)

    def _next_turn(self, waiter: Waiter, now: float) -> Turn | None:
        """When instances in use can be closed for a function, by the rules of `turns.py`."""
        ahead = self._line.ahead_of(waiter)
        functions = {**self._functions, **{reservation_id(w): w.function for w in ahead}}
        starts = {rev: entry.start_s for rev, entry in self._ledger.items()}
        host, strategy = with_reservations(self.record(), ahead), self._rules.strategy
        if self._cordoned:
            return None
        return next_turn(waiter, host, self._use(), functions, now, strategy=strategy, starts=starts)

    def _start_s(self, function: Function) -> float:
        """Seconds of earlier starts of a function; 0: not measured."""
        entry = self._ledger.get(revision(function))
        return entry.start_s if entry else 0.0

    def _admit(self, instance: Instance, placement: Placement, now: float) -> None:
        """Assign a placement to an instance, and drain its victims."""
        self._put(
            replace(
                instance,
                devices=placement.devices,
                memory_mb=placement.memory_mb,
                memory_from=placement.memory_from,
                waits_for=placement.waits_for,
            )
        )
        for victim in map(self._instances.__getitem__, placement.evict):
            if protection(victim, self._use(), now):  # it is in use: this is a turn
                self._decide("closed", victim.function, victim.id, f"for the turn of {instance.function}")
                self._close(victim, instance.function, now)
                continue
            self._decide("evicted", victim.function, victim.id, f"for {instance.function}")
            self._drain(victim, f"evicted for {instance.function}", now)
        self._decide("placed", instance.function, instance.id, f"on {', '.join(placement.devices)}")

    def _admit_or_fail(self, instance: Instance, now: float) -> None:
        function = self._functions[instance.id]
        instance = self._put(replace(instance, devices=(), memory_mb=0, waits_for=()))
        function_need = self._need(function, self._weights[instance.id])
        placement = self._place(self._line.waiter(function, function_need, now - instance.created, now), now)
        if isinstance(placement, Placement):
            self._admit(instance, placement, now)
            return
        self._fail(instance, FailureKind.ROOM, placement.reason, (), now)
        self._step(instance, Step.ABANDONED, now)

    def _consolidation(self, function_need: Need, now: float) -> Placement | None:
        """Empty devices for a function that needs several by moving idle instances together, when that is due."""
        since = self._cycles - self._defragged
        if function_need.devices < 2 or not self._rules.defrag_after_cycles or since < self._rules.defrag_after_cycles:
            return None
        consolidation = consolidate(function_need, self.record(), self._use(), now, strategy=self._rules.strategy)
        if consolidation is None or self._cordoned:
            return None
        self._defragged = self._cycles
        for move in consolidation.moves:
            self._move(self._instances[move.instance], move, now)
        return Placement(
            devices=consolidation.devices,
            memory_mb=function_need.memory_mb,
            memory_from=function_need.memory_from,
            waits_for=tuple(m.instance for m in consolidation.moves),
        )

    def _move(self, instance: Instance, move: Move, now: float) -> None:
        """Start a replacement of an instance on other devices; the instance leaves when that one is ready."""
        successor = Instance(
            id=f"{instance.id}-m",
            function=instance.function,
            revision=instance.revision,
            state=State.PLACING,
            since=now,
            created=now,
            devices=move.to,
            memory_mb=instance.memory_mb,
            memory_from=instance.memory_from,
            priority=instance.priority,
        )
        self._functions[successor.id] = self._functions[instance.id]
        self._weights[successor.id] = self._weights[instance.id]
        self._put(successor)
        self._put(replace(instance, moves_to=successor.id))
        self._decide("moved", instance.function, instance.id, f"to {', '.join(move.to)}")
