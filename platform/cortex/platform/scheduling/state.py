"""The state of one host: its instances, and all that decisions about them depend on. Pure.

`steps.py` changes instances; `reconcile.py`, `requests.py` and `worker_events.py` decide when. It can be encoded, so
that events can be replayed from a copy.
"""

from collections.abc import Collection, Iterator, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from cortex.functions.lifecycle import LIVE, PARKED, State
from cortex.functions.spec import Function
from cortex.functions.spec import revision as revision_of
from cortex.platform.record import HostRecord, Instance, Tier, Use
from cortex.platform.scheduling.effects import Effect
from cortex.platform.scheduling.failures import Failures
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.parking import is_leaving
from cortex.platform.scheduling.progress import Proof
from cortex.platform.scheduling.reasons import STAYS_DRAINED
from cortex.platform.scheduling.reports import Reports
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.turns import Line

MASKED_REVISION = "CORTEX_REVISION"
"""The variable with the revision of a spec whose secrets were removed."""

MOVING = (State.STARTING, State.PARKING, State.STOPPING, State.RECLAIMING)
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


class HostState(Struct, kw_only=True):
    """One host's instances, with all that its decisions depend on."""

    host: HostRecord
    """What the host reports in addition to the other fields; `record()` has all of it."""
    rules: Rules
    instances: dict[str, Instance] = {}
    functions: dict[str, Function] = {}
    """The spec of each instance."""
    weights: dict[str, LocalWeights] = {}
    """The weights of each instance."""
    failures: Failures = field(default_factory=Failures)
    epoch: int = 0
    catalogue: dict[str, Function] | None = None
    catalogue_digest: str = ""
    superseded: dict[str, float] = {}
    """Until when a revision is not started, because a catalogue superseded it."""
    reports: Reports = field(default_factory=Reports)
    looks: dict[str, Observation] = {}
    proofs: dict[str, Proof] = {}
    overdue: dict[str, float] = {}
    """When an instance that is overdue is tried again."""
    rehearsals: dict[str, int] = {}
    """How many rehearsals of its first sleep an instance has begun."""
    upgrades: dict[str, int] = {}
    """How many full starts that were to replace an instance have been cancelled."""
    adapter_failures: dict[str, dict[str, float]] = {}
    """By instance and variant, when an adapter could not be loaded."""
    blind_until: float = 0.0
    reconciled_at: float = 0.0
    """When `reconcile` last ran; 0: never."""
    stalled_until: float = 0.0
    """Until when a worker that seems to hang may only have stood still, as this process did."""
    in_record: bool = False
    cordoned: bool = False
    ledger: dict[str, Entry] = {}
    line: Line = field(default_factory=Line)
    cycles: int = 0
    """Starts so far."""
    defragged: int = 0
    """Starts before the last defragmentation."""
    masked: bool = False
    """In a replay: specs without their secrets have their revision in `env` (`event_log.py`)."""
    effects: list[Effect] = []
    """Those of the current event so far."""

    @classmethod
    def of(cls, host: HostRecord, rules: Rules) -> "HostState":
        """Return the state of a host with this record."""
        return cls(
            host=host,
            rules=rules,
            instances={i.id: i for i in host.instances},
            failures=Failures.restored(host.failures),
            epoch=host.epoch,
        )

    def record(self) -> HostRecord:
        """Return the host's current record."""
        return replace(
            self.host,
            instances=tuple(self.instances.values()),
            failures=self.failures.all(),
            line=self.line.in_order(),
            epoch=self.epoch,
            catalogue=self.catalogue_digest,
        )

    def use(self) -> Use:
        """Return the usage of instances; unknown while the record cannot be trusted."""
        return self.reports.use()

    def revision(self, function: Function) -> str:
        """Return the revision of a spec."""
        masked = self.masked and function.env.get(MASKED_REVISION)
        return masked or revision_of(function)

    def find(self, instance_id: str, *states: State) -> Instance | None:
        """Return an instance that is in one of these states; None when it is in another, or gone."""
        instance = self.instances.get(instance_id)
        return instance if instance is not None and instance.state in states else None

    def on_way_or_up(self, function: str, revision: str, exclude: Collection[str] = ()) -> Instance | None:
        """Return the instance that serves a function: one that is live, else one whose drain can be cancelled."""
        same = [
            i
            for i in self.instances.values()
            if (i.function, i.revision) == (function, revision) and i.id not in exclude
        ]
        live = [i for i in same if i.state is State.READY or i.is_coming]
        idle = [
            i for i in same if i.state is State.DRAINING and i.reason not in STAYS_DRAINED and not self.is_awaited(i.id)
        ]
        return next(iter(live + idle), None)

    def parked(self, function: str, revision: str, exclude: Collection[str] = ()) -> Instance | None:
        """Return the instance of a function that can return soonest: asleep, frozen, or being parked."""
        order = (State.SLEEPING, State.FROZEN, State.PARKING)
        same = [
            i
            for i in self.instances.values()
            if (i.function, i.revision) == (function, revision)
            and i.id not in exclude
            and (i.state is State.PARKING or (i.state in PARKED and not is_leaving(i)))
        ]
        return min(same, key=lambda i: order.index(i.state), default=None)

    def has_left(self, instance_id: str) -> bool:
        """Whether an instance has given up the memory that another waits for: it is gone, or in its tier."""
        instance = self.instances.get(instance_id)
        return instance is None or (instance.state in PARKED and not is_leaving(instance))

    def switch_off(self, revision: str, tier: Tier, why: str) -> None:
        """Remember that a tier failed for a revision."""
        failed = {**self.host.unparkable.get(revision, {}), tier: why}
        self.host = replace(self.host, unparkable={**self.host.unparkable, revision: failed})

    def tricks_off(self, revision: str) -> dict[str, str]:
        """Return the tricks that failed for a revision, with the reasons."""
        return self.host.tricks_off.get(revision, {})

    def switch_tricks_off(self, revision: str, tricks: Collection[str], why: str) -> None:
        """Remember that these tricks failed for a revision."""
        failed = {**self.tricks_off(revision), **dict.fromkeys(tricks, why)}
        self.host = replace(self.host, tricks_off={**self.host.tricks_off, revision: failed})

    def switch_on(self, revisions: Collection[str]) -> None:
        """Forget which tiers and tricks failed for these revisions."""
        tiers = {r: failed for r, failed in self.host.unparkable.items() if r not in revisions}
        tricks = {r: failed for r, failed in self.host.tricks_off.items() if r not in revisions}
        if (tiers, tricks) != (self.host.unparkable, self.host.tricks_off):
            self.host = replace(self.host, unparkable=tiers, tricks_off=tricks)

    def twins(self, instance: Instance) -> list[Instance]:
        """Return the other instances of the same function and revision."""
        same = (instance.function, instance.revision)
        return [i for i in self.instances.values() if (i.function, i.revision) == same and i.id != instance.id]

    def is_replaced(self, instance: Instance) -> bool:
        """Whether another instance serves in its place, or is starting."""
        return any(i.state in (State.STARTING, State.READY) for i in self.twins(instance))

    def is_moving(self, instance_id: str) -> bool:
        """Whether an instance stays only until its replacement is ready."""
        successor = self.instances.get(self.instances[instance_id].moves_to)
        return successor is not None and successor.state in LIVE

    def is_awaited(self, instance_id: str) -> bool:
        """Whether another instance waits for this one's memory."""
        return any(instance_id in i.waits_for for i in self.instances.values())

    def is_lane_taken(self, instance: Instance, moving: Sequence[State] = MOVING) -> bool:
        """One start, stop or reclaim at a time on each GPU: engines size themselves by the free memory."""
        gpus = {d.id for d in self.host.devices if d.kind == "gpu"}.intersection(instance.devices)
        return any(gpus.intersection(i.devices) for i in self.instances.values() if i.state in moving)

    def in_fleet(self) -> Iterator[Instance]:
        """Yield the instances of all hosts; those of this one as they are now."""
        hosts = self.reports.fleet.hosts.values() if self.reports.fleet else ()
        yield from self.instances.values()
        yield from (i for h in hosts if h.name != self.host.name for i in h.instances)

    def functions_starting(self) -> set[str]:
        """Return the functions with an instance on its way up, here or elsewhere."""
        return {i.function for i in self.in_fleet() if i.is_coming}
