"""What the page is made of: everything a router knows at one moment, and that by function. Pure."""

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
"""A host whose record is older than this is late: a heartbeat comes every two seconds."""


class Rates(Struct, frozen=True, kw_only=True):
    """How a function has been answered lately. None: no request told."""

    first_token_ms: float | None = None
    tokens_per_s: float | None = None


class FleetSnapshot(Struct, frozen=True, kw_only=True):
    """All of it, as values."""

    catalogue: Catalogue = Catalogue()
    revisions: Mapping[str, str] = {}
    """By function."""
    fleet: Fleet = Fleet()
    starts: Mapping[str, Entry] = {}
    """What earlier starts took, by revision."""
    flow: Flow = Flow()
    rates: Mapping[str, Rates] = {}
    """By function."""
    decisions: Sequence[Decision] = ()
    """Newest first."""
    jobs: Sequence[Job] | None = None
    strategy: str = "lru"
    away: bool = False
    """Whether the record cannot be read now."""
    problem: str = ""
    """What is wrong with the catalogue's file."""
    now: float = 0.0


class Index:
    """The fleet by function, read once for a whole page."""

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
        for found in self.failures.values():
            found.sort(key=lambda f: -f[1].at)

    def in_flight(self, instance: Instance) -> int:
        """Return how many requests an instance is answering."""
        return self.usage.in_flight.get(instance.id, 0)

    def tone(self, instance: Instance) -> str:
        """Return how an instance looks: busy, idle, coming or leaving."""
        if instance.state in COMING:
            return "coming"
        if instance.state is not State.READY:
            return "leaving"
        return "busy" if self.in_flight(instance) else "idle"


def key(kind: str, name: str) -> str:
    """Return an element's id: names may hold what an id must not."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
