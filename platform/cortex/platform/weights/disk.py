"""Looks at weights from the agent's loop: in threads of their own, bounded in time, one per path at a time.

`store.py`, `inventory.py` and `model_facts.py` block as long as a file system does. The agent calls them only from
here.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from cortex.functions.estimate import Estimate
from cortex.functions.sources import BadSource, Demo, Local, Repo, source_of
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Remove, Removed, Stored
from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Settings
from cortex.platform.weights import estimation
from cortex.platform.weights import inventory as stock
from cortex.platform.weights.hub import WeightsUnavailable
from cortex.platform.weights.load_policy import keep_inside
from cortex.platform.weights.store import demo_path, hub_cache

T = TypeVar("T")

LOOK_S = 5.0
"""How long a look at weights may take. Routers wait for an agent's answer for `agent_messages.ANSWER_S`."""
INVENTORY_S, REMOVE_S = 8.0, 60.0
HUB_S = 50.0
AT_A_TIME = 16
"""BlockingCalls side by side when all functions are looked at."""
MOUNTS = Path("/proc/self/mountinfo")


def looks() -> BlockingCalls:
    """Return what an agent looks at files with."""
    return BlockingCalls(LOOK_S, hint="is its mount hung?", group=lambda place: mount_of(place, _mounts()))


def place_of(function: Function, cache: Path) -> str:
    """Return the path at which a function's weights are looked for; "" when it has none. Touches no file."""
    try:
        source = source_of(function)
    except BadSource:
        return ""
    match source:
        case Local():
            return str(Path(source.path).expanduser())
        case Demo():
            return str(demo_path(source, cache))
        case Repo():
            return str(hub_cache(cache) / f"models--{source.repo.replace('/', '--')}")
        case _:
            return ""


def mount_of(path: str, mounts: Iterable[str]) -> str:
    """Return the mount a path is on; of the root's files, the first folder. By the words of the path: no link is
    followed, since that would touch the mount."""
    path = os.path.normpath(path)
    on = max((m for m in mounts if path == m or path.startswith(m.rstrip("/") + "/")), key=len, default="/")
    return on if on != "/" else "/" + path.lstrip("/").partition("/")[0]


def _mounts() -> list[str]:
    """Return where file systems are mounted. The kernel tells without asking them."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [line.split(" ", 5)[4].replace("\\040", " ") for line in lines if line.count(" ") > 4]


async def weights(
    looks: BlockingCalls, function: Function, cache: Path, roots: Collection[str] = ()
) -> LocalWeights | None:
    """Return a function's weights if they are here. Raises WeightsUnavailable, also where they may not be, and
    NoAnswer."""

    def find() -> LocalWeights | None:
        here = estimation.weighed(function, cache)
        if here is not None and here.path and roots:
            keep_inside(Path(here.path), (*roots, str(cache)))
        return here

    if not (place := place_of(function, cache)):
        return find()  # there is nothing to look at, or the reason why not
    # Whether it may be loaded is part of the question: another caller's look may leave it out.
    return await looks.look(place, "weights", find, question=(msgspec.json.encode(function), tuple(roots)))


async def estimate(looks: BlockingCalls, function: Function, settings: Settings) -> Estimate:
    """Return what an instance takes; where its weights are not here, as their hub says. Raises WeightsUnavailable and
    NoAnswer."""
    await weights(looks, function, Path(settings.agent.cache_dir))  # a path that does not answer is not the hub's fault
    return await looks.look(
        settings.hub.endpoint or "the hub",
        f"estimate {function.id}",
        lambda: estimation.estimated(function, settings),
        question=msgspec.json.encode(function),
        within_s=HUB_S,
    )


async def sizes(looks: BlockingCalls, functions: Collection[Function], cache: Path) -> dict[str, int]:
    """Return which functions' weights are on this host, with their size in MiB; without those that do not answer."""

    async def size(function: Function) -> int | None:
        here = await weights(looks, function, cache)
        return here.size_mb if here is not None and here.path else None

    return await of_each(functions, size)


async def of_each(
    functions: Iterable[Function], look: Callable[[Function], Awaitable[T | None]], *, at_a_time: int = AT_A_TIME
) -> dict[str, T]:
    """Return by function what a look at each gives, each on its own; without those that give nothing or fail."""
    room = asyncio.Semaphore(at_a_time)

    async def one(function: Function) -> T | None:
        async with room:
            try:
                return await look(function)
            except (WeightsUnavailable, OSError):
                return None

    all_of_them = list(functions)
    answers = await asyncio.gather(*(one(f) for f in all_of_them))
    return {f.id: answer for f, answer in zip(all_of_them, answers, strict=True) if answer is not None}


async def inventory(
    looks: BlockingCalls, cache: Path, declared: Collection[Function], running: Collection[str]
) -> list[Stored]:
    """Return all weights on this host; of those at paths of their own, the ones that answer. Raises NoAnswer for
    the cache."""
    functions = list(declared)

    async def apart(function: Function) -> Stored | None:
        if not (place := place_of(function, cache)):
            return None
        question = msgspec.json.encode(function)
        return await looks.look(place, "inventory", lambda: stock.apart(function, cache), question=question)

    stored, elsewhere = await asyncio.gather(
        looks.look(str(cache), "inventory", lambda: stock.in_cache(cache), within_s=INVENTORY_S),
        of_each(functions, apart),
    )
    by_name = {s.name: s for s in elsewhere.values()}
    return stock.with_users([*stored, *by_name.values()], functions, running, cache)


async def remove(
    looks: BlockingCalls, cache: Path, stored: Collection[Stored], request: Remove, fetching: Collection[str]
) -> Removed:
    """Remove stored weights that nothing uses. Raises NoAnswer."""
    return await looks.look(
        str(cache),
        "remove",
        lambda: stock.remove(cache, stored, request, fetching),
        question=msgspec.json.encode((request, list(stored))),
        within_s=REMOVE_S,
    )
