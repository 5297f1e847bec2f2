"""What routers and agents say to each other, as values."""

from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform.placement import When
from cortex.platform.record import Failure


class Ensure(Struct, frozen=True):
    """Ask for an instance of a function; `force` overrides the back-off after failed starts.

    `beside` are instances that do not count: the caller wants one more than those. With `evict` false it is
    started into free room or not at all.
    """

    function: Function
    force: bool = False
    beside: tuple[str, ...] = ()
    evict: bool = True


class Plan(Struct, frozen=True):
    """Ask what `ensure` would do."""

    function: Function


class Cool(Struct, frozen=True):
    """Let the instances of a function go, at once or after the requests in flight."""

    function: str
    at_once: bool = False


class Heed(Struct, frozen=True):
    """The catalogue as the sweeping router reads it, and its digest."""

    catalogue: Catalogue
    digest: str


class Going(Struct, frozen=True, tag="going"):
    """Answer to ensure: this instance is serving, or on its way."""

    instance: str
    state: State


class Refused(Struct, frozen=True, tag="refused"):
    """Answer to ensure: not here. `retry_at` (0: unknown) is when asking again may help."""

    reason: str
    when: When
    retry_at: float = 0.0
    short_by_mb: int = 0
    failure: Failure | None = None


class Victim(Struct, frozen=True):
    """Who would be evicted, and how long it has been idle."""

    instance: str
    function: str
    idle_s: float


class Planned(Struct, frozen=True, kw_only=True, tag="planned"):
    """Answer to plan: where it would go, and at whose expense. `there` is an instance that is up or coming."""

    host: str
    there: str = ""
    devices: tuple[str, ...] = ()
    memory_mb: int = 0
    """On each device."""
    memory_from: str = ""
    evict: tuple[Victim, ...] = ()
    retry_at: float = 0.0
    """Until when starts are refused because they kept failing; `warm` overrides that."""
