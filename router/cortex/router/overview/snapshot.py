"""Everything a router knows at one moment, and an index of it by function. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.functions.spec import Function
from cortex.platform.budget import LowBudget
from cortex.platform.decisions import DecisionRecord
from cortex.platform.fleet import Fleet, use
from cortex.platform.record import Failure, HostRecord, Instance, ShareUse, Use
from cortex.platform.scheduling.ledger import Entry, device_of, revision_of
from cortex.router.activation.waits import places_in_line
from cortex.router.api_types import DownloadView
from cortex.router.batches.batch import Batch
from cortex.router.metrics.traffic import Bucket
from cortex.router.overview.starts import by_revision


class FleetSnapshot(Struct, frozen=True, kw_only=True):
    """The input of all views and plans, as values."""

    catalogue: Catalogue = Catalogue()
    revisions: Mapping[str, str] = {}
    """By function."""
    fleet: Fleet = Fleet()
    ledger: Mapping[str, Entry] = {}
    """Earlier starts and measurements, by revision and kind of device."""
    hour: Sequence[Bucket] = ()
    """Traffic of the last hour."""
    lately: Mapping[str, Bucket] = {}
    """Traffic of the last minutes, by function."""
    decisions: Sequence[DecisionRecord] = ()
    """Newest first."""
    downloads: Sequence[DownloadView] | None = None
    """None: unknown."""
    batches: Sequence[Batch] = ()
    """Newest first."""
    low_budgets: Sequence[LowBudget] = ()
    """Of keys that have spent 80 % or more."""
    strategy: str = "lru"
    away: bool = False
    """Whether the record is unavailable."""
    problem: str = ""
    """The problem with the catalogue file, if any."""
    now: float = 0.0


class Index:
    """A snapshot by function, computed once for all views. A variant has the instances and failures of its base."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        fleet = snapshot.fleet
        self.usage: Use = use(fleet)
        self.placed: dict[str, list[tuple[HostRecord, Instance]]] = defaultdict(list)
        self.failures: dict[str, list[tuple[HostRecord, Failure]]] = defaultdict(list)
        """Newest first."""
        self.unreadable: dict[str, list[str]] = defaultdict(list)
        """Why a function cannot be started on hosts where a path does not answer."""
        self.cannot_park: dict[str, list[HostRecord]] = defaultdict(list)
        """Hosts on which a revision is no longer parked in some tier."""
        self.without_tricks: dict[str, list[HostRecord]] = defaultdict(list)
        """Hosts on which a revision is started without some trick."""
        self.instances: dict[str, Instance] = {}
        self._of: dict[str, list[Instance]] = defaultdict(list)
        self.in_line = places_in_line(fleet)
        self.has_foreign = any(host.foreign for host in fleet.hosts.values())
        """Whether processes outside cortex hold memory anywhere."""
        self.aliases: dict[str, list[str]] = defaultdict(list)
        self.variants: dict[str, list[str]] = defaultdict(list)
        """By their base."""
        self.starts = by_revision(snapshot.ledger)
        """The last start of each revision."""
        self.measured: dict[str, dict[str, Entry]] = defaultdict(dict)
        """By revision and kind of device."""
        for host in sorted(fleet.records(), key=lambda h: h.name):
            for instance in host.instances:
                self.placed[instance.function].append((host, instance))
                self._of[instance.function].append(instance)
                self.instances[instance.id] = instance
            for failure in host.failures:
                self.failures[failure.function].append((host, failure))
        for name, host in fleet.hosts.items():
            for revision in host.unparkable:
                self.cannot_park[revision].append(host)
            for revision in host.tricks_off:
                self.without_tricks[revision].append(host)
            for function, why in host.unreadable.items():
                self.unreadable[function].append(f"{name}: {why}")
        for entries in self.failures.values():
            entries.sort(key=lambda f: -f[1].at)
        for variant in snapshot.catalogue.functions.values():  # has its base's instances
            if base := variant.variant_of:
                self.placed[variant.id], self.failures[variant.id] = self.placed[base], self.failures[base]
                self._of[variant.id] = self._of[base]
                self.unreadable[variant.id], self.in_line[variant.id] = (
                    self.unreadable[base],
                    self.in_line.get(base, []),
                )
                self.variants[base].append(variant.id)
        for alias, function in snapshot.catalogue.aliases.items():
            self.aliases[function].append(alias)
        for field, entry in snapshot.ledger.items():
            self.measured[revision_of(field)][device_of(field)] = entry

        by_function = (
            self.placed, self.failures, self.unreadable, self.in_line, self.aliases, self.variants,
            self.usage.waiting, fleet.overrides,
        )  # fmt: skip
        self._busy = {f for of in by_function for f in of}
        """The functions about which the record has anything but a last use."""
        self._known = {*self.starts, *self.measured, *self.cannot_park, *self.without_tricks}
        """The revisions about which it has anything."""

    def is_quiet(self, function: str, revision: str) -> bool:
        """Whether the record has nothing about a function and its revision but a last use."""
        return not self.has_foreign and function not in self._busy and revision not in self._known

    def in_flight(self, instance: Instance) -> int:
        """Return an instance's number of requests in flight."""
        return self.usage.in_flight.get(instance.id, 0)

    def requests(self, function: Function) -> ShareUse:
        """Return a function's own requests in flight and waiting."""
        if function.variant_of or self.variants.get(function.id):
            return self.usage.shares.get(function.id, ShareUse())
        in_flight = sum(self.in_flight(i) for i in self.of(function.id))
        return ShareUse(in_flight, self.usage.waiting.get(function.id, 0))

    def of(self, function: str) -> Sequence[Instance]:
        """Return the instances of a function on all hosts."""
        return self._of.get(function, ())
