"""What happens in a run, as a value that follows from its seed: the fleet, the requests, the faults.

A scenario can be made smaller by leaving out faults and requests (`shrink.py`).
"""

from random import Random

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.functions.spec import Engine, Function, Park
from cortex.platform.scheduling.parking import PRETENDS

MEMORY_MB = 16_000
SHORT_S, SETTLE_S = 3.0, 150.0
"""Seconds of peace, at most, of a short run and of others, which end as soon as they are at rest. A worker that hung
unnoticed is given up on its way to a tier, after up to 30 s, and those that wait for its memory may hang, too."""
LEAST_FOR_AN_OLD_RECORD_S = 10.0
"""Runs with a shorter load have no time for a router with an old record."""


class Request(Struct, frozen=True, kw_only=True):
    """One request of a client."""

    at: float
    function: str
    router: str
    work_s: float
    patience_s: float | None = None
    streams: bool = False


class Client(Struct, frozen=True, kw_only=True):
    """A client that sends its next request as soon as it has the answer to the last."""

    function: str
    router: str
    work_s: float
    at: float = 0.5


class Fault(Struct, frozen=True, kw_only=True):
    """One fault: what, when, where, for how long. `detail` depends on the kind."""

    at: float
    kind: str
    place: str
    other: str = ""
    for_s: float = 0.0
    detail: float = 0.0

    def __str__(self) -> str:
        where = f"{self.place} {self.other}".strip()
        lasts = f" for {self.for_s:.2f} s" if self.for_s else ""
        return f"{self.at:8.3f} s {self.kind} {where}{lasts}" + (f" ({self.detail:g})" if self.detail else "")


class Fetch(Struct, frozen=True, kw_only=True):
    """How long the fetch of a function's weights takes, on a host that lacks them at first."""

    seconds: float


class Start(Struct, frozen=True, kw_only=True):
    """How long a function's starts take."""

    seconds: float
    spread: float = 0.3


class Parking(Struct, frozen=True, kw_only=True):
    """How the workers of a function sleep."""

    stays_mb: int
    first_s: float
    refuses: float
    """Share of those that refuse to be parked or to return, die once they are parked, or return damaged."""
    hangs: float = 0.0
    """Share of those that hang on the way to a tier or back."""
    freeze_s: float = 1.0
    """How long the driver takes to freeze one, and to restore it."""


class Scenario(Struct, frozen=True, kw_only=True):
    """A whole run."""

    seed: int
    machines: dict[str, dict[str, int]]
    routers: tuple[str, ...]
    functions: dict[str, Function]
    edited: dict[str, Function]
    """The functions as an edit of the catalogue in the middle of the run declares them."""
    starts: dict[str, Start]
    uncounted: frozenset[str]
    """Functions whose workers do not report how many requests they work on."""
    fetches: dict[str, Fetch]
    """Of functions whose weights no host has at first."""
    ports: dict[str, int]
    """The number of ports that each machine has for its workers."""
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]
    load_ends: float
    ends: float
    clients: tuple[Client, ...] = ()
    park_ram_mb: int = 0
    """RAM of each machine for parked instances; 0: all workers stop."""
    parks: dict[str, Parking] = {}
    sleeps: bool = True
    """Whether engines can sleep on these machines."""
    freezes: bool = False
    """Whether the driver of these machines can freeze workers."""
    rests: bool = True
    """Whether the fleet has to be at rest at the end."""

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue at the start."""
        return Catalogue(functions=self.functions, aliases={})


def scenario(seed: int, *, active_s: float = 14.0) -> Scenario:
    """Return the scenario of a seed: faults and requests for `active_s`, then peace until the fleet is at rest.

    A run of at most `SHORT_S` ends soon afterwards, at rest or not.
    """
    rests = active_s > SHORT_S
    settle_s = SETTLE_S if rests else SHORT_S
    random = Random(seed)
    machines = _machines(random)
    has_old_record = active_s >= LEAST_FOR_AN_OLD_RECORD_S and random.random() < 0.3
    routers = tuple(f"router-{n}" for n in range(random.choice((2, 3) if has_old_record else (1, 2, 2, 3))))
    functions = _functions(random, machines, one_at_a_time=has_old_record)
    edited = dict(functions)
    if random.random() < 0.15:
        changed = random.choice(sorted(functions))
        edited[changed] = _with_args(functions[changed])
    requests = _requests(random, routers, functions, active_s)
    faults = _faults(random, machines, routers, sorted(functions), active_s, edits=edited != functions)
    starts = {f: Start(seconds=random.choice((0.5, 1.5, 3.0, 6.0))) for f in functions}
    if has_old_record:
        starts = {f: Start(seconds=random.choice((0.5, 1.5))) for f in starts}  # all of it before the load ends
        more_requests, more_faults = _with_an_old_record(random, machines, routers, starts)
        requests = tuple(sorted((*requests, *more_requests), key=lambda r: r.at))
        faults = tuple(sorted((*faults, *more_faults), key=lambda f: f.at))
    parking = Random(f"parking {seed}")  # the rest of the scenario is the same with it and without
    park_ram_mb = parking.choice((0, 15_000, 40_000))
    parks = {f: _parking(parking) for f in sorted(functions) if park_ram_mb and parking.random() < 0.8}
    freezing = Random(f"freezing {seed}")
    freezes = bool(parks) and freezing.random() < 0.5
    sleeps = not freezes or freezing.random() < 0.7
    parks = {f: _moving(freezing, parking) for f, parking in parks.items()}
    tiers = {
        f: freezing.choice((Park.SLEEP, Park.FREEZE, Park.AUTO, Park.AUTO)) if freezes else Park.SLEEP for f in parks
    }
    functions = {f: _with_park(spec, tiers.get(f)) for f, spec in functions.items()}
    edited = {f: _with_park(spec, tiers.get(f)) for f, spec in edited.items()}
    if freezes and not has_old_record:
        idle = {f: freezing.choice((0.5, 0.5, 1.5, 300.0)) for f in parks}
        functions = {
            f: replace(spec, min=0, idle_after_s=idle[f]) if f in idle else spec for f, spec in functions.items()
        }
        edited = {f: replace(spec, min=0, idle_after_s=idle[f]) if f in idle else spec for f, spec in edited.items()}
        starts = {
            f: replace(start, seconds=min(start.seconds, 1.5)) if f in idle else start for f, start in starts.items()
        }
        requests = tuple(sorted((*requests, *_returns(freezing, routers, sorted(idle), active_s)), key=lambda r: r.at))
    if not has_old_record:
        functions, edited = _with_modes(Random(f"start modes {seed}"), functions, edited)
    return Scenario(
        seed=seed,
        park_ram_mb=park_ram_mb,
        parks=parks,
        sleeps=sleeps,
        freezes=freezes,
        machines=machines,
        routers=routers,
        functions=functions,
        edited=edited,
        starts=starts,
        uncounted=frozenset(f for f in sorted(functions) if random.random() < 0.5),
        fetches={f: Fetch(seconds=random.choice((0.3, 2.0, 5.0))) for f in sorted(functions) if random.random() < 0.2},
        ports={m: number + len(parks) for m, number in _ports(random, machines, functions).items()},
        requests=requests,
        faults=faults,
        load_ends=active_s,
        ends=active_s + settle_s,
        rests=rests,
    )


def _with_modes(
    random: Random, functions: dict[str, Function], edited: dict[str, Function]
) -> tuple[dict[str, Function], dict[str, Function]]:
    """Return the functions, some with engines that start fast or in full, and perhaps crash in one of the two."""
    if random.random() < 0.6:
        return functions, edited
    args: dict[str, tuple[str, ...]] = {}
    for name in sorted(functions):
        full = (f"--full-load-s={random.choice((2.5, 5.0))}",) if random.random() < 0.7 else ()
        crash = random.choice(("", "", "", "fast", "full"))
        args[name] = (*full, f"--crash-in={crash}") if full and crash else full
    functions = {f: replace(spec, args=(*spec.args, *args[f])) for f, spec in functions.items()}
    return functions, {f: replace(spec, args=(*spec.args, *args[f])) for f, spec in edited.items()}


def _parking(random: Random) -> Parking:
    return Parking(
        stays_mb=random.choice((200, 1000, 3000)),
        first_s=random.choice((0.4, 2.0, 6.0)),
        refuses=random.choice((0.0, 0.0, 0.2)),
    )


def _moving(random: Random, parking: Parking) -> Parking:
    """Return how workers of a function move to their tiers and back."""
    return replace(parking, hangs=random.choice((0.0, 0.0, 0.0, 0.2)), freeze_s=random.choice((0.3, 1.0, 4.0)))


def _returns(random: Random, routers: tuple[str, ...], functions: list[str], active_s: float) -> list[Request]:
    """Return requests for functions whose instances have left their devices meanwhile, or are about to."""
    requests = []
    for function in functions:
        at = random.uniform(0.3, 2.0)
        while at < active_s:
            work_s = round(random.uniform(0.05, 0.5), 3)
            requests.append(Request(at=round(at, 3), function=function, router=random.choice(routers), work_s=work_s))
            at += random.uniform(3.0, 6.0)
    return requests


def _with_park(function: Function, park: Park | None) -> Function:
    """Return a function whose instances may be parked. A fake engine pretends to sleep when its options say so."""
    if park is None:
        return function
    args = (*function.args, f"{PRETENDS}=1000") if park is Park.AUTO else function.args
    return replace(function, park=park, args=args)


def _machines(random: Random) -> dict[str, dict[str, int]]:
    number = random.choice((1, 1, 2, 2, 3))
    return {
        f"host-{chr(97 + n)}": {f"GPU-{chr(97 + n)}{d}": MEMORY_MB for d in range(random.choice((1, 1, 2)))}
        for n in range(number)
    }


def _ports(random: Random, machines: dict[str, dict[str, int]], functions: dict[str, Function]) -> dict[str, int]:
    """Return hardly more ports than workers fit on a machine, so that ports are used again soon; often not one more."""
    least_mb = min(f.vram_mb // f.min_devices for f in functions.values())
    return {
        name: len(devices) * (MEMORY_MB // least_mb) + random.choice((0, 0, 2)) for name, devices in machines.items()
    }


def _functions(random: Random, machines: dict[str, dict[str, int]], *, one_at_a_time: bool) -> dict[str, Function]:
    """Return the functions; `one_at_a_time`: two or more, of which one fits on a device."""
    wide = any(len(devices) > 1 for devices in machines.values())
    functions = {}
    for n in range(random.choice((2, 3) if one_at_a_time else (1, 2, 2, 3, 3, 4))):
        devices = 2 if wide and random.random() < 0.2 else 1
        most = random.choice((1, 1, 1, 2))
        functions[f"f{n}"] = Function(
            id=f"f{n}",
            engine=Engine.FAKE,
            vram_mb=random.choice((9000, 12_000) if one_at_a_time else (5000, 7000, 9000, 12_000)) * devices,
            min_devices=devices,
            min=random.choice((0, 0, 0, 1)),
            max=most,
            target_concurrency=random.choice((1, 2, 8)),
            idle_after_s=random.choice((0.5, 1.5, 6.0, 300.0)),
            priority=random.choice((0, 0, 0, 1)),
            turn_min_s=random.choice((1.0, 3.0, 8.0)),
            turn_wait_s=random.choice((0.0, 3.0, 8.0, 20.0)),
            turn_grace_s=random.choice((2.0, 10.0)),
            start_timeout_s=random.choice((8.0, 15.0)),
            request_timeout_s=12.0,
            queue=random.choice((2, 64)),
        )
    return functions


def _with_args(function: Function) -> Function:
    return replace(function, args=("--changed",))


def _requests(
    random: Random, routers: tuple[str, ...], functions: dict[str, Function], active_s: float
) -> tuple[Request, ...]:
    names = sorted(functions)

    def request(at: float, function: str) -> Request:
        return Request(
            at=round(at, 3),
            function=function,
            router=random.choice(routers),
            work_s=round(random.choice((0.05, 0.5, 2.0, 5.0)) * random.uniform(0.5, 1.5), 3),
            patience_s=round(random.uniform(0.5, 8.0), 3) if random.random() < 0.15 else None,
            streams=random.random() < 0.3,
        )

    requests = [request(random.uniform(0.3, active_s), random.choice(names)) for _ in range(random.randint(4, 20))]
    if random.random() < 0.5:  # a client that comes again when its function is about to be reaped
        function, at = random.choice(names), 0.5
        while at < active_s:
            requests.append(request(at, function))
            at += min(functions[function].idle_after_s, 3.0) + random.uniform(0.0, 1.5)
    if random.random() < 0.4:  # clients of all routers that want one function within the time of a message or two
        function, at = random.choice(names), random.uniform(0.5, active_s * 0.8)
        requests += [request(at + random.uniform(0.0, 0.05), function) for _ in range(2 * len(routers))]
    return tuple(sorted(requests, key=lambda r: r.at))


def _faults(
    random: Random,
    machines: dict[str, dict[str, int]],
    routers: tuple[str, ...],
    functions: list[str],
    active_s: float,
    *,
    edits: bool,
) -> tuple[Fault, ...]:
    hosts = sorted(machines)
    faults = []
    for _ in range(random.choice((0, 1, 2, 3, 4, 6))):
        at = round(random.uniform(0.5, active_s * 0.8), 3)
        for_s = round(random.choice((0.3, 1.5, 4.0, 7.0)) * random.uniform(0.5, 1.5), 3)
        host, router = random.choice(hosts), random.choice(routers)
        place = random.choice((host, router))
        kind = random.choice(KINDS)
        detail, other = 0.0, ""
        match kind:
            case "cut from redis":
                detail = float(random.choice((0, 1, 2)))  # silent, refused, one way
            case "cut from host":
                place, other, detail = router, host, float(random.choice((0, 1, 2)))
            case "slow network":
                detail = round(random.choice((0.05, 0.5, 1.5)), 3)
            case "redis restarts" | "redis restarts empty":
                place = "redis"
            case "agent crashes" | "worker dies" | "worker hangs" | "host reboots":
                place, detail = host, float(random.randint(1, 60))
            case "router crashes":
                place, detail = router, float(random.randint(1, 60))
            case "clock steps":
                place, detail = random.choice((host, router, "redis")), round(random.uniform(-40, 40), 3)
            case "hub fails" | "hub is slow":
                place = host
            case "function cooled":
                place, other, detail = router, random.choice(functions), float(random.random() < 0.3)  # 1: at once
            case "function overridden":
                place, other, detail = router, random.choice(functions), float(random.choice((0, 1, 2)))
            case "host cordoned" | "host drained":
                place, other = router, host
        faults.append(Fault(at=at, kind=kind, place=place, other=other, for_s=for_s, detail=detail))
    if edits:
        faults += [
            Fault(at=round(active_s * 0.4 + random.uniform(0, 2), 3), kind="catalogue edited", place=router)
            for router in routers
        ]
    return tuple(sorted(faults, key=lambda f: f.at))


def _with_an_old_record(
    random: Random, machines: dict[str, dict[str, int]], routers: tuple[str, ...], starts: dict[str, Start]
) -> tuple[list[Request], list[Fault]]:
    """One router serves a function and is cut from Redis; the worker ends, another router starts another function,
    perhaps on the same port; then the first router, whose record is old, gets a request for the first function."""
    (cut, other), (first, second) = random.sample(routers, 2), random.sample(sorted(starts), 2)
    host = sorted(machines)[0]  # where functions are placed first
    ready = 1.0 + starts[first].seconds * 1.3
    ends = round(ready + random.uniform(0.3, 1.0), 3)
    again = round(ends + random.uniform(0.3, 1.5), 3)
    late = round(again + starts[second].seconds * random.uniform(0.8, 1.5) + 0.2, 3)

    def request(at: float, function: str, router: str) -> Request:
        return Request(at=at, function=function, router=router, work_s=round(random.uniform(0.05, 0.5), 3))

    requests = [
        request(0.5, first, cut),
        request(again, second, other),
        *(request(round(late + 0.4 * n, 3), first, cut) for n in range(3)),
    ]
    faults = [
        Fault(at=round(ready, 3), kind="cut from redis", place=cut, for_s=9.0, detail=float(random.choice((0, 1)))),
        Fault(at=ends, kind=random.choice(("worker dies", "host reboots")), place=host, for_s=0.2, detail=0.0),
    ]
    return requests, faults


KINDS = (
    "cut from redis",
    "cut from redis",
    "cut from host",
    "slow network",
    "redis restarts",
    "redis restarts empty",
    "agent crashes",
    "agent crashes",
    "router crashes",
    "process stalls",
    "worker dies",
    "worker hangs",
    "host reboots",
    "clock steps",
    "hub fails",
    "hub is slow",
    "function cooled",
    "function overridden",
    "host cordoned",
    "host drained",
)
