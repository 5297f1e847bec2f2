"""The page's input: the router's data at one time, and an index of it by function. Pure."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import COMING, State
from cortex.platform.record import Failure, Fleet, HostRecord, Instance, Use, use
from cortex.platform.scheduling.ledger import Entry
from cortex.router.activation.waits import places_in_line
from cortex.router.status.model import Decision, Flow, Job

SILENT_S = 5.0
"""Age from which a host's record is late; heartbeats come every two seconds."""


class Rates(Struct, frozen=True, kw_only=True):
    """A function's recent response rates. None: no data."""

    first_token_ms: float | None = None
    tokens_per_s: float | None = None


class FleetSnapshot(Struct, frozen=True, kw_only=True):
    """All input of the page, as values."""

    catalogue: Catalogue = Catalogue()
    revisions: Mapping[str, str] = {}
    """By function."""
    fleet: Fleet = Fleet()
    starts: Mapping[str, Entry] = {}
    """Earlier starts by revision."""
    flow: Flow = Flow()
    rates: Mapping[str, Rates] = {}
    """By function."""
    decisions: Sequence[Decision] = ()
    """Newest first."""
    jobs: Sequence[Job] | None = None
    strategy: str = "lru"
    away: bool = False
    """Whether the record is unavailable."""
    problem: str = ""
    """The problem with the catalogue file, if any."""
    now: float = 0.0


class Index:
    """The fleet by function, computed once per page."""

    def __init__(self, fleet: Fleet) -> None:
        self.usage: Use = use(fleet)
        self.placed: dict[str, list[tuple[HostRecord, Instance]]] = defaultdict(list)
        self.failures: dict[str, list[tuple[HostRecord, Failure]]] = defaultdict(list)
        self.instances: dict[str, Instance] = {}
        self.in_line = places_in_line(fleet)
        for host in sorted(fleet.records(), key=lambda h: h.name):
            for instance in host.instances:
                self.placed[instance.function].append((host, instance))
                self.instances[instance.id] = instance
            for failure in host.failures:
                self.failures[failure.function].append((host, failure))
        for entries in self.failures.values():
            entries.sort(key=lambda f: -f[1].at)

    def in_flight(self, instance: Instance) -> int:
        """Return an instance's number of requests in flight."""
        return self.usage.in_flight.get(instance.id, 0)

    def tone(self, instance: Instance) -> str:
        """Return an instance's tone: busy, idle, coming or leaving."""
        if instance.state in COMING:
            return "coming"
        if instance.state is not State.READY:
            return "leaving"
        return "busy" if self.in_flight(instance) else "idle"


def key(kind: str, name: str) -> str:
    """Return an element's id, with a hash because names may have characters that ids may not."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
