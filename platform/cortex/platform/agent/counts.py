"""An agent's counters: every decision of its scheduler, and the phases of each start. They travel in the record.

An eviction of a function's last ready instance is *regretted* when a request uses the function within five minutes.
"""

from cortex.functions.lifecycle import State
from cortex.platform import metrics
from cortex.platform.fleet import Fleet, use
from cortex.platform.meter import Meter, Snapshot
from cortex.platform.record import DrainReason, FailureKind, HostRecord, Instance, used_function
from cortex.platform.scheduling.effects import Decision
from cortex.platform.scheduling.ledger import WAKING, returned_from
from cortex.platform.scheduling.reasons import DecisionKind

REGRET_S = 300.0


class AgentCounts:
    """One host's counters."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._meter = Meter()
        self._evicted: dict[str, float] = {}

    def snapshot(self) -> Snapshot:
        """Return all counters."""
        return self._meter.snapshot()

    def count_decision(self, decision: Decision, host: HostRecord, fleet: Fleet | None, now: float) -> None:
        """Count a decision; `host` is the record right after it."""
        where, by_model = (self._node, decision.function), (decision.function, self._node)
        meter = self._meter
        meter.count(metrics.DECISIONS, (self._node, decision.what))
        match decision.what:
            case DecisionKind.READY:
                self._ready(next((i for i in host.instances if i.id == decision.instance), None), by_model)
            case DecisionKind.PARKED:
                for instance in (i for i in host.instances if i.id == decision.instance and i.parked):
                    meter.observe(metrics.PARKING, (*where, str(instance.parked)), instance.park_s)
            case DecisionKind.EVICTED:
                meter.count(metrics.EVICTIONS, by_model)
                meter.count(metrics.DRAINS, (*where, DrainReason.EVICTED))
                if not _ready_elsewhere(decision, host, fleet):
                    self._evicted[decision.function] = now
            case DecisionKind.CLOSED:  # not an eviction to regret: the function gets another turn
                meter.count(metrics.DRAINS, (*where, DrainReason.TURN))
            case DecisionKind.DRAINING:
                meter.count(metrics.DRAINS, (*where, decision.reason or DrainReason.OTHER))
            case DecisionKind.FAILED:
                kinds = (f.kind for f in host.failures if f.instance == decision.instance)
                meter.count(metrics.START_FAILURES, (*where, next(kinds, FailureKind.CRASH)))
            case DecisionKind.REFUSED:
                meter.count(metrics.NO_ROOM, where)

    def fault(self, work: str) -> None:
        """Count an exception that background work survived."""
        self._meter.count(metrics.AGENT_FAULTS, (self._node, work))

    def count_regrets(self, fleet: Fleet, now: float) -> None:
        """Count evictions whose function was requested again."""
        if not self._evicted:
            return
        waiting = use(fleet).waiting
        for function, at in list(self._evicted.items()):
            # Clocks of hosts differ a little.
            if waiting.get(function) or fleet.used.get(used_function(function), 0.0) > at + 0.5:
                self._meter.count(metrics.REGRETTED, (function, self._node))
                del self._evicted[function]
            elif now - at > REGRET_S:
                del self._evicted[function]

    def _ready(self, instance: Instance | None, by_model: tuple[str, str]) -> None:
        if instance is not None and (tier := returned_from(instance)) is not None:
            where = (self._node, instance.function, str(tier))
            self._meter.count(metrics.STARTS, where)
            self._meter.observe(metrics.RETURN, where, instance.phases.get(WAKING, 0.0))
            return
        self._meter.count(metrics.COLD_STARTS, by_model)
        if instance is not None:
            self._started(instance)

    def _started(self, instance: Instance) -> None:
        had_to_wait = instance.phases.get(State.PLACING, 0.0) > 0.05
        launch = "warm" if instance.warm else "plain"
        path = "fetched" if State.FETCHING in instance.phases else "evicted" if had_to_wait else launch
        meter = self._meter
        meter.count(metrics.LAUNCHES, (self._node, instance.server, launch))
        mode = str(instance.start_mode or "one")
        meter.observe(metrics.START, (self._node, instance.function, mode), instance.ready - instance.started)
        self._meter.count(metrics.STARTS, (self._node, instance.function, path))
        for phase, seconds in instance.phases.items():
            self._meter.observe(metrics.START_PHASE, (self._node, instance.function, phase), seconds)


def _ready_elsewhere(decision: Decision, host: HostRecord, fleet: Fleet | None) -> bool:
    hosts = {**(fleet.hosts if fleet else {}), host.name: host}
    return any(
        i.function == decision.function and i.state is State.READY and i.id != decision.instance
        for h in hosts.values()
        for i in h.instances
    )
