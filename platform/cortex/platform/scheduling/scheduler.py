"""The agent's decisions: events in, effects out. No I/O, no clock, no randomness; the agent's loop is its only
caller, so the host's state has one writer.

What must be done is an effect that the loop hands to the supervisor, which answers with events. After every event that
may let an instance move on, `reconcile()` takes the steps that are due: a placing instance whose room is free, a drain
that all routers have acknowledged, a start without a sign of life.
"""

from collections.abc import Mapping
from typing import assert_never

from msgspec.structs import asdict, replace

from cortex.functions.spec import Function
from cortex.platform.agent_messages import PlacementPlan, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, used_instance
from cortex.platform.scheduling import adapters, events, requests, worker_events
from cortex.platform.scheduling.effects import AdapterAnswer, Answer, Decision, Effect
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.reconcile import reconcile
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from cortex.platform.scheduling.state import HostState, Rules

REPORTS_BACK_S = 3.0
"""A record that was away may come back empty. Reports count again after this time."""


class Scheduler:
    """One host's state, and every decision about it."""

    def __init__(self, host: HostRecord, rules: Rules) -> None:
        self.state = HostState.of(host, rules)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event; return the effects, in order.

        When it raises half-way, the effects so far are in `take_effects()`.
        """
        state = self.state
        match event:
            case events.EnsureRequest():
                state.effects.append(Answer(requests.ensure(state, event, now)))
            case events.AdapterRequest(request):
                state.effects.append(AdapterAnswer(adapters.ensure(state, request, now)))
            case events.StartWithdrawn(instance):
                requests.withdraw(state, instance, now)
            case events.CoolRequest():
                requests.cool(state, event, now)
            case events.DrainRequest():
                requests.drain_host(state, now)
            case events.ShutdownRequest():
                requests.shut_down(state, now)
            case events.FailuresCleared(function):
                requests.forget_failures(state, function)
            case events.CatalogueChanged():
                requests.apply_catalogue(state, event, now)
            case events.Adopted():
                requests.adopt(state, event, now)
            case events.Reported(fleet):
                _take_report(state, fleet, now)
            case events.HostRead():
                facts = {name: value for name, value in asdict(event).items() if value is not None}
                copies = {name: dict(value) for name, value in facts.items() if isinstance(value, Mapping)}
                state.host = replace(state.host, **{**facts, **copies})
            case events.LedgerRead(entries):
                state.ledger = dict(entries)
            case events.LauncherChanged(engine, launcher, memory_mb):
                launchers = {**state.host.launchers, engine: launcher}
                sizes = {**state.host.launcher_mb, engine: memory_mb}
                state.host = replace(state.host, launchers=launchers, launcher_mb=sizes)
            case events.FetchProgress():
                worker_events.fetch_progress(state, event, now)
            case events.Fetched():
                worker_events.fetched(state, event, now)
            case events.FetchFailed():
                worker_events.fetch_failed(state, event, now)
            case events.Spawned():
                worker_events.spawned(state, event, now)
            case events.SpawnFailed():
                worker_events.spawn_failed(state, event, now)
            case events.SignOfLife():
                worker_events.sign_of_life(state, event, now)
            case events.ModelDescribed():
                worker_events.model_described(state, event)
            case events.Answered():
                worker_events.answered(state, event, now)
            case events.StartFailed():
                worker_events.start_failed(state, event, now)
            case events.MemoryRead():
                worker_events.memory_read(state, event)
            case events.AdapterProgress():
                adapters.progressed(state, event)
            case events.AdapterLoaded():
                adapters.loaded(state, event)
            case events.AdapterFailed():
                adapters.failed(state, event, now)
            case events.ContextNoted(what, function, instance, why):
                state.effects.append(Decision(what, function, instance, why))
            case events.HealthCheckFailed():
                worker_events.health_check_failed(state, event, now)
            case events.FellBackToCpu():
                worker_events.fell_back_to_cpu(state, event, now)
            case events.Looked():
                worker_events.looked(state, event, now)
            case events.Proved():
                worker_events.proved(state, event, now)
            case events.Parked():
                worker_events.parked(state, event, now)
            case events.ParkFailed():
                worker_events.park_failed(state, event, now)
            case events.Exited():
                worker_events.exited(state, event, now)
            case events.EndDelayed():
                worker_events.end_delayed(state, event)
            case events.Reclaimed():
                worker_events.reclaimed(state, event, now)
            case _:
                assert_never(event)
        return self.take_effects()

    def take_effects(self) -> list[Effect]:
        """Return the effects of an event that raised."""
        effects, self.state.effects = self.state.effects, []
        return effects

    # Readings for callers.

    def plan(self, function: Function, weights: LocalWeights | None, now: float) -> PlacementPlan | Rejected:
        """Return what an `EnsureRequest` would do, without doing it."""
        return requests.plan(self.state, function, weights, now)

    def record(self) -> HostRecord:
        """Return the host's current record."""
        return self.state.record()

    def function_of(self, instance: str) -> Function | None:
        """Return the spec an instance was started from."""
        return self.state.functions.get(instance)

    def declaration(self, function: str) -> Function | None:
        """Return a function as the current catalogue declares it."""
        return self.state.catalogue.get(function) if self.state.catalogue else None

    def catalogue(self) -> dict[str, Function]:
        """Return all functions of the current catalogue."""
        return dict(self.state.catalogue or {})

    def started_from(self) -> set[str]:
        """Return the paths of the weights and adapters of all instances."""
        return {path for w in self.state.weights.values() for path in (w.path, *w.adapters.values())}

    def in_flight(self, instance: str) -> int:
        """Return how many requests were in flight on an instance when the reports were last read."""
        return self.state.use().in_flight.get(instance, 0)

    def last_used(self, instance: str) -> float:
        """Return when routers last used an instance, by the record; 0: never, or the record cannot be read."""
        return self.state.use().used.get(used_instance(instance), 0.0)

    def saved_state(self) -> AgentState:
        """Return the state for the next agent of this host: every worker with a process, and what failed."""
        state = self.state
        workers = (i for i in state.instances.values() if i.pid)
        return AgentState(
            workers=tuple(SavedWorker(i, state.functions[i.id], state.weights[i.id]) for i in workers),
            failures=state.failures.all(),
            unparkable=state.host.unparkable,
            tricks_off=state.host.tricks_off,
            epoch=state.epoch,
        )


def _take_report(state: HostState, fleet: Fleet | None, now: float) -> None:
    """Take a reading of the record; None when it cannot be read, and then no instance counts as idle.

    A record without this host has lost the routers' reports too.
    """
    in_record = fleet is not None and state.host.name in fleet.hosts
    if fleet is None or (state.in_record and not in_record):
        state.blind_until = now + REPORTS_BACK_S
    if fleet is not None:
        state.cordoned, state.in_record = state.host.name in fleet.cordoned, in_record
    trusted = fleet if now >= state.blind_until else None
    state.reports.take(trusted, now, instances=tuple(state.instances.values()))
    reconcile(state, now)
