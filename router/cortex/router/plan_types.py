"""Plans as types: what an action would do, as facts. The page and the CLI make their words from them. Pure."""

import enum

from msgspec import Struct

from cortex.platform.record import Tier
from cortex.router.api_types import EvictionCandidate


class Action(enum.StrEnum):
    """An action that has a plan."""

    WARM = "warm"
    COOL = "cool"
    PIN = "pin"
    UNPIN = "unpin"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"


class Effect(enum.StrEnum):
    """What an action would do at all."""

    CHANGE = "change"
    NOTHING = "nothing"
    """The fleet is already as the action would make it."""
    IMPOSSIBLE = "impossible"


class PlannedStart(Struct, frozen=True, kw_only=True):
    """The instance that a warm leads to."""

    host: str
    instance: str = ""
    """The instance that is ready or starting there already, or that would return; empty: one would be started."""
    tier: Tier | None = None
    """Where `instance` would return from."""
    devices: tuple[str, ...] = ()
    memory_mb: int = 0
    """On each device."""
    memory_from: str = ""
    retry_at: float | None = None
    """Until when starts back off after failures; a warm ignores it."""


class Eviction(Struct, frozen=True, kw_only=True):
    """An instance that a start would evict."""

    instance: str
    function: str
    idle_s: float
    priority: int = 0
    tier: Tier | None = None
    """Where it would go; null: it would stop."""
    return_s: float | None = None
    """Seconds that its return from there took, or a start of it; null: not measured."""
    rank: int = 0
    """Its rank in the host's eviction order; 0: the order has changed since. Those before it free too little."""


class AffectedInstance(Struct, frozen=True, kw_only=True):
    """An instance that an action concerns."""

    instance: str
    function: str
    host: str
    state: str
    in_flight: int


class Outcome(enum.StrEnum):
    """What becomes of a function when its host is drained."""

    MOVES = "moves"
    COLD = "cold"
    """No other host has room."""
    STOPS = "stops"
    """The catalogue no longer has it."""
    CANCELLED = "cancelled"
    """Its start is cancelled."""


class Move(Struct, frozen=True, kw_only=True):
    """What becomes of one function of a drained host."""

    function: str
    outcome: Outcome
    to: str = ""
    """The host on which it would be started."""
    evicts: tuple[str, ...] = ()
    """The functions that would be evicted there."""
    in_flight: int = 0


class Plan(Struct, frozen=True, kw_only=True):
    """What an action would do. Every route that takes `?plan=1` answers with it and changes nothing."""

    action: Action
    effect: Effect
    now: float
    function: str = ""
    host: str = ""
    """The host that is cordoned, uncordoned or drained."""
    start: PlannedStart | None = None
    """warm: the instance; None: no host can run it."""
    evictions: tuple[Eviction, ...] = ()
    """warm: the instances that are evicted for it."""
    stays: tuple[EvictionCandidate, ...] = ()
    """warm: the protected instances of that host, if others are evicted."""
    refusals: dict[str, str] = {}
    """warm: hosts that do not run it, with the reason."""
    instances: tuple[AffectedInstance, ...] = ()
    """cool, drain: those that end. pin, unpin: those it applies to. cordon: those that keep serving."""
    moves: tuple[Move, ...] = ()
    """drain: what becomes of each function."""
    strategy: str = "lru"
    """The order of eviction."""
    restarts: int = 0
    """cool: how many instances are started again, for the function's `min`."""
    idle_after_s: float | None = None
    """unpin: how long an instance idles before it is reaped."""
