"""The messages between routers and agents."""

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.record import Failure, SavedContext, Tier
from cortex.platform.scheduling.placement import When

ANSWER_S = 10.0
"""How long a router waits for an agent's answer before it tries the next host."""
DECIDE_S = 6.0
"""An agent begins no start later than this after the `ensure` arrived: it needs time to write its record and answer
before its router gives up."""


class Ensure(Struct, frozen=True):
    """Request an instance of a function; `force` overrides the back-off after failed starts.

    `beside` are instances that do not count: the caller needs one more. Without `evict` it starts only in free room.
    `minimum`: it is for the function's `min` or baseline, and no request waits for it. `waited_s` is how long requests
    have waited for it; with `turn`, instances in use may be closed for it. `failed` are instances whose engine has
    failed, as workers' answers to the caller's requests say; the agent verifies that and ends them first. Only
    instances that are unused for `unused_s` may leave for it.
    """

    function: Function
    force: bool = False
    beside: tuple[str, ...] = ()
    evict: bool = True
    minimum: bool = False
    waited_s: float = 0.0
    turn: bool = False
    failed: tuple[str, ...] = ()
    unused_s: float = 0.0


class EnsureAdapter(Struct, frozen=True):
    """Request a variant's adapter on an instance that loads adapters while it runs. `function` is the base."""

    function: Function
    instance: str
    variant: str


class AdapterState(Struct, frozen=True):
    """Answer to the request of an adapter: it is loaded, has a problem, or else is being loaded: the record has how
    far."""

    loaded: bool = False
    problem: str = ""


class PlanRequest(Struct, frozen=True):
    """Request the plan of an `ensure`."""

    function: Function


class Cool(Struct, frozen=True):
    """End the instances of a function, at once or after the requests in flight; or park those that can be."""

    function: str
    at_once: bool = False
    park: bool = False


class CatalogueUpdate(Struct, frozen=True):
    """The catalogue as the sweeping router reads it, and its digest."""

    catalogue: Catalogue
    digest: str


class Neighbour(Struct, frozen=True, kw_only=True):
    """Another host of the fleet, the token for what its agent offers, and the seal of its proofs. Both are secrets; the
    token is sent to it, the seal never."""

    host: str
    address: str
    token: str
    seal: str = ""


class Neighbours(Struct, frozen=True, kw_only=True):
    """The other hosts of the fleet, as a router knows them."""

    hosts: tuple[Neighbour, ...] = ()


class Offers(Struct, frozen=True, kw_only=True):
    """What an agent offers to its neighbours."""

    weights: dict[str, int] = {}
    """Bytes of each file of finished downloads, by the file's SHA-256."""


class KernelRequest(Struct, frozen=True, kw_only=True):
    """Request compiled code that fits exactly: the engine's build, the kind of device, a function's revision, the
    settings of a start, and the place (`compile_caches.place_of`). `host` asks."""

    host: str
    build: str
    device: str
    revision: str
    settings: str
    place: str

    def proves(self, digest: str) -> str:
        """Return what a host proves that answers with this pack."""
        return "\0".join((self.host, self.build, self.device, self.revision, self.settings, self.place, digest))


class KernelOffer(Struct, frozen=True, kw_only=True):
    """Answer to it: the offered pack, with a proof for each of the host's tokens; without a digest, there is none."""

    digest: str = ""
    size: int = 0
    proofs: tuple[str, ...] = ()


class Accepted(Struct, frozen=True, tag="going"):
    """Answer to ensure: this instance is ready, or on its way up."""

    instance: str
    state: State


class Rejected(Struct, frozen=True, tag="refused"):
    """Answer to ensure: not on this host. `retry_at` (0: unknown) is when a retry may help.

    `turn_in_s`: instances in use can be closed for it within this time; None: none can.
    """

    reason: str
    when: When
    retry_at: float = 0.0
    short_by_mb: int = 0
    failure: Failure | None = None
    turn_in_s: float | None = None
    foreign_mb: int = 0
    """See `NoRoom`."""


class Victim(Struct, frozen=True):
    """An instance that would be evicted, and how long it has been idle."""

    instance: str
    function: str
    idle_s: float
    tier: Tier | None = None
    """Where it goes; None: it stops."""


class PlacementPlan(Struct, frozen=True, kw_only=True, tag="planned"):
    """Answer to plan: the placement and its victims. `there` is an instance that is ready or on its way up."""

    host: str
    there: str = ""
    devices: tuple[str, ...] = ()
    memory_mb: int = 0
    """On each device."""
    memory_from: str = ""
    evict: tuple[Victim, ...] = ()
    retry_at: float = 0.0
    """Until when starts are refused because they kept failing; `warm` overrides that."""
    returns: str = ""
    """The parked instance that returns from `tier`; empty: one is started."""
    tier: Tier | None = None


class TakeSeat(Struct, frozen=True, kw_only=True):
    """Request a slot of an instance with `keep_context` for a request that a router is about to send. A router repeats
    it, with the same id, while it has to wait."""

    id: str
    """A random id of the seat."""
    router: str
    instance: str
    owner: str
    """A digest of the owner of its prompt; empty: all callers share the cache."""
    marks: tuple[str, ...] = ()
    """Of its conversation, one for each number of its first messages, ending with the whole: see `SlotContext`."""
    first: int = 1
    """Number of messages of the first mark."""
    slots: int = 0
    """Slots of the instance; 0: the request takes slots that are unknown."""


class Seat(Struct, frozen=True, kw_only=True):
    """Answer to it."""

    slot: int | None = None
    """None: none is reserved for the request, or it has to wait."""
    may_reuse: bool = False
    """Whether it may reuse the slot's cache."""
    continues: int = 0
    """How many of its messages are those of the slot's last request, the whole conversation of that."""
    wait: bool = False
    """No slot is free: ask again."""


class LeaveSeat(Struct, frozen=True, kw_only=True):
    """End a seat after its answer. With a mark: which conversation, with how many tokens of prompt, its slot has."""

    id: str
    instance: str
    mark: str = ""
    tokens: int = 0


class RestoreContext(Struct, frozen=True, kw_only=True):
    """Request a saved conversation in a slot of an instance. It is on the agent's own host, or on `host`, which hands
    it over at `address` to the holder of `key`."""

    instance: str
    slot: int
    context: SavedContext
    host: str = ""
    address: str = ""
    key: str = ""


class ContextAnswer(Struct, frozen=True, kw_only=True):
    """Answer to it: how many tokens the slot has now, or why the conversation is not used."""

    tokens: int = 0
    why: str = ""


class ContextFailure(Struct, frozen=True, kw_only=True):
    """A conversation was restored, and the next answer did not use it."""

    context: SavedContext
    why: str


class RemoveContexts(Struct, frozen=True, kw_only=True):
    """Request the removal of saved conversations: those named, or all."""

    ids: tuple[str, ...] = ()
    all: bool = False


class Fetching(Struct, frozen=True, kw_only=True):
    """The state of a fetch, as in `/admin/jobs`. Bytes, seconds, Unix times."""

    id: str
    source: str
    state: str
    """queued, fetching, waiting (to try again), done, failed or stopped."""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    """Bytes a second, lately."""
    why: str = ""
    """Why it waits or failed."""
    retry_at: float = 0.0
    requested_at: float = 0.0
    explicit: bool = False
    """Requested by name: it continues although no instance waits for it."""
    functions: tuple[str, ...] = ()

    @property
    def remaining_s(self) -> float | None:
        """Time left at this rate; None: unknown."""
        return (self.total - self.done) / self.rate if self.rate > 0 and self.total else None

    @property
    def fraction(self) -> float | None:
        """Progress from 0 to 1; None: unknown."""
        return min(1.0, self.done / self.total) if self.total else None

    def with_functions(self, functions: tuple[str, ...]) -> "Fetching":
        """Return it with the functions it is for."""
        return replace(self, functions=functions)

    @property
    def alive(self) -> bool:
        """Whether it is queued or running."""
        return self.state in ("queued", "fetching", "waiting")


class Prefetch(Struct, frozen=True):
    """Request a fetch of a function's weights although no instance waits for them."""

    function: Function


class Remove(Struct, frozen=True):
    """Request the removal of stored weights: those named, or all that no declared function uses."""

    names: tuple[str, ...] = ()
    unused: bool = False
    dry_run: bool = False


class Stored(Struct, frozen=True, kw_only=True):
    """Weights on a host, as `cortex weights ls` shows them."""

    name: str
    """How they are named as a source: `org/name@revision:Q4_K_M`."""
    kind: str
    """hub, demo, by hand, path (a file that is none of ours), partial (a download that is not finished), compiled (an
    engine's code for a kind of device), or conversations (those saved of a function)."""
    size: int
    """Bytes."""
    path: str
    commit: str = ""
    at: float = 0.0
    functions: tuple[str, ...] = ()
    """Declared functions that use them."""
    in_use: bool = False
    """An instance has been started from them."""
    origins: dict[str, int] = {}
    """The bytes from other hosts by name, and of a download from the hub (`""`)."""


class Removed(Struct, frozen=True, kw_only=True):
    """Answer to remove: what was or would be removed, and what stays and why."""

    removed: tuple[Stored, ...] = ()
    refusals: dict[str, str] = {}
