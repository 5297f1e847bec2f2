"""Calls into the weights' files from the agent's loop: in threads, with a time limit, one per path at a time.

`store.py`, `inventory.py` and `model_facts.py` block while a file system does, so the agent calls them only through
this module.
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
from cortex.platform.weights import inventory as inventory_on_disk
from cortex.platform.weights.adapters import problem_of, rank_of, with_local_adapters
from cortex.platform.weights.hub import WeightsUnavailable
from cortex.platform.weights.load_policy import require_inside
from cortex.platform.weights.store import demo_path, hub_cache

T = TypeVar("T")

LOOK_S = 5.0
"""Time limit for reading weights. Routers wait `agent_messages.ANSWER_S` for an agent's answer."""
INVENTORY_S, REMOVE_S = 8.0, 60.0
HUB_S = 50.0
AT_A_TIME = 16
"""Concurrent calls when all functions are checked."""
MOUNTS = Path("/proc/self/mountinfo")


def looks() -> BlockingCalls:
    """Return the agent's BlockingCalls for files, grouped by mount."""
    return BlockingCalls(LOOK_S, hint="is its mount hung?", group=lambda place: mount_of(place, _mounts()))


def place_of(function: Function, cache: Path) -> str:
    """Return the path of a function's weights; "" when it has none. Touches no file."""
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
    """Return the mount of a path; for the root file system, the path's first folder. Compares text only: following
    a link would touch the mount."""
    path = os.path.normpath(path)
    mount = max((m for m in mounts if path == m or path.startswith(m.rstrip("/") + "/")), key=len, default="/")
    return mount if mount != "/" else "/" + path.lstrip("/").partition("/")[0]


def _mounts() -> list[str]:
    """Return the mount points, from the kernel: no file system is touched."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [line.split(" ", 5)[4].replace("\\040", " ") for line in lines if line.count(" ") > 4]


async def weights(
    looks: BlockingCalls, function: Function, cache: Path, roots: Collection[str] = ()
) -> LocalWeights | None:
    """Return a function's weights, or None when this host lacks them. Raises NoAnswer, and WeightsUnavailable, which
    includes weights outside `roots`."""

    def find() -> LocalWeights | None:
        local = estimation.inspect(function, cache)
        if local is not None and local.path and roots:
            require_inside(Path(local.path), (*roots, str(cache)))
        return local

    if not (place := place_of(function, cache)):
        return find()  # touches no file: there are no weights, or the source is invalid
    # `roots` is part of the question: a caller without roots must not share its answer.
    return await looks.look(place, "weights", find, question=(msgspec.json.encode(function), tuple(roots)))


async def with_adapters(
    looks: BlockingCalls, function: Function, local: LocalWeights, cache: Path, roots: Collection[str] = ()
) -> tuple[LocalWeights, list[Function]]:
    """Return a function's weights with its adapters on this host, and those that are to be fetched before a start, as
    functions."""

    async def check(adapter: Path, model: Path) -> str:
        return await adapter_problem(looks, function, adapter, model)

    async def rank(adapter: Path) -> int:
        return await adapter_rank(looks, adapter)

    return await with_local_adapters(function, local, lambda f: weights(looks, f, cache, roots), check, rank)


async def adapter_problem(looks: BlockingCalls, function: Function, adapter: Path, model: Path) -> str:
    """Return why an adapter does not fit a function's model, or "". Raises NoAnswer."""
    question = (msgspec.json.encode(function), str(adapter))
    return await looks.look(str(adapter), "adapter", lambda: problem_of(function, adapter, model), question=question)


async def adapter_rank(looks: BlockingCalls, adapter: Path) -> int:
    """Return the rank of an adapter. Raises NoAnswer, OSError or WeightsUnavailable."""
    try:
        return await looks.look(str(adapter), "rank", lambda: rank_of(adapter))
    except ValueError as error:
        raise WeightsUnavailable(f"the adapter {adapter.name} has no readable configuration: {error}") from None


async def estimate(looks: BlockingCalls, function: Function, settings: Settings) -> Estimate:
    """Return what an instance takes, from the local weights or else from the hub. Raises WeightsUnavailable and
    NoAnswer."""
    await weights(looks, function, Path(settings.agent.cache_dir))  # a hung path must not count against the hub
    return await looks.look(
        settings.hub.endpoint or "the hub",
        f"estimate {function.id}",
        lambda: estimation.estimate_memory(function, settings),
        question=msgspec.json.encode(function),
        within_s=HUB_S,
    )


async def sizes(looks: BlockingCalls, functions: Collection[Function], cache: Path) -> dict[str, int]:
    """Return the size in MiB of each function's weights on this host; omits those that do not answer."""

    async def size(function: Function) -> int | None:
        local = await weights(looks, function, cache)
        return local.size_mb if local is not None and local.path else None

    return await of_each(functions, size)


async def of_each(
    functions: Iterable[Function], look: Callable[[Function], Awaitable[T | None]], *, at_a_time: int = AT_A_TIME
) -> dict[str, T]:
    """Call `look` for each function concurrently. Returns the answers by function id; omits failures and None."""
    semaphore = asyncio.Semaphore(at_a_time)

    async def look_at(function: Function) -> T | None:
        async with semaphore:
            try:
                return await look(function)
            except (WeightsUnavailable, OSError):
                return None

    pending = list(functions)
    answers = await asyncio.gather(*(look_at(f) for f in pending))
    return {f.id: answer for f, answer in zip(pending, answers, strict=True) if answer is not None}


async def inventory(
    looks: BlockingCalls, cache: Path, declared: Collection[Function], running: Collection[str]
) -> list[Stored]:
    """Return all weights on this host; omits paths outside the cache that do not answer. Raises NoAnswer for the
    cache."""
    functions = list(declared)

    async def operator_weights(function: Function) -> Stored | None:
        if not (place := place_of(function, cache)):
            return None
        question = msgspec.json.encode(function)
        return await looks.look(
            place, "inventory", lambda: inventory_on_disk.operator_weights(function, cache), question=question
        )

    stored, elsewhere = await asyncio.gather(
        looks.look(str(cache), "inventory", lambda: inventory_on_disk.in_cache(cache), within_s=INVENTORY_S),
        of_each(functions, operator_weights),
    )
    by_name = {s.name: s for s in elsewhere.values()}
    return inventory_on_disk.with_users([*stored, *by_name.values()], functions, running, cache)


async def remove(
    looks: BlockingCalls, cache: Path, stored: Collection[Stored], request: Remove, fetching: Collection[str]
) -> Removed:
    """Remove stored weights that nothing uses. Raises NoAnswer."""
    return await looks.look(
        str(cache),
        "remove",
        lambda: inventory_on_disk.remove(cache, stored, request, fetching),
        question=msgspec.json.encode((request, list(stored))),
        within_s=REMOVE_S,
    )
