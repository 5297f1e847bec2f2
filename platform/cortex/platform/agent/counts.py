"""What an agent counts: every decision of its scheduler, and what each start took. It travels by the record.

An eviction is *regretted* when somebody uses the function within five minutes and it had been its last ready
instance: the room was given to the wrong one.
"""

from cortex.functions.lifecycle import State
from cortex.platform import metrics
from cortex.platform.meter import Meter, Snapshot
from cortex.platform.record import FailureKind, Fleet, HostRecord, Instance, use, used_function
from cortex.platform.scheduling.effects import Decision

REGRET_S = 300.0
DRAIN_REASONS = ("idle", "cool", "evicted", "superseded", "host drain", "moved", "shutdown", "failed")


class AgentCounts:
    """One host's counters."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._meter = Meter()
        self._evicted: dict[str, float] = {}

    def snapshot(self) -> Snapshot:
        """Return everything counted so far."""
        return self._meter.snapshot()

    def decided(self, decided: Decision, host: HostRecord, fleet: Fleet | None, now: float) -> None:
        """Count a decision; `host` is how things stand right after it."""
        where, by_model = (self._node, decided.function), (decided.function, self._node)
        meter = self._meter
        meter.count(metrics.DECISIONS, (self._node, decided.what))
        match decided.what:
            case "ready":
                meter.count(metrics.COLD_STARTS, by_model)
                self._started(next((i for i in host.instances if i.id == decided.instance), None))
            case "evicted":
                meter.count(metrics.EVICTIONS, by_model)
                meter.count(metrics.DRAINS, (*where, "evicted"))
                if not _ready_elsewhere(decided, host, fleet):
                    self._evicted[decided.function] = now
            case "closed":  # no eviction to regret: the function has its turn again
                meter.count(metrics.DRAINS, (*where, "turn"))
            case "draining":
                reason = next((r for r in DRAIN_REASONS if decided.why.startswith(r)), "other")
                meter.count(metrics.DRAINS, (*where, reason))
            case "failed":
                kinds = (f.kind for f in host.failures if f.instance == decided.instance)
                meter.count(metrics.START_FAILURES, (*where, next(kinds, FailureKind.CRASH)))
            case "refused":
                meter.count(metrics.NO_ROOM, where)

    def fault(self, work: str) -> None:
        """Count an exception that background work survived."""
        self._meter.count(metrics.AGENT_FAULTS, (self._node, work))

    def looked(self, fleet: Fleet, now: float) -> None:
        """See whether somebody used a function after its eviction."""
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

    def _started(self, instance: Instance | None) -> None:
        if instance is None:
            return
        waited = instance.phases.get(State.PLACING, 0.0) > 0.05
        how = "warm" if instance.path == "warm" else "plain"
        path = "fetched" if State.FETCHING in instance.phases else "evicted" if waited else how
        meter = self._meter
        meter.count(metrics.LAUNCHES, (self._node, instance.server, how))
        self._meter.count(metrics.STARTS, (self._node, instance.function, path))
        for phase, seconds in instance.phases.items():
            self._meter.observe(metrics.START_PHASE, (self._node, instance.function, phase), seconds)


def _ready_elsewhere(decided: Decision, host: HostRecord, fleet: Fleet | None) -> bool:
    hosts = {**(fleet.hosts if fleet else {}), host.name: host}
    return any(
        i.function == decided.function and i.state is State.READY and i.id != decided.instance
        for h in hosts.values()
        for i in h.instances
    )
