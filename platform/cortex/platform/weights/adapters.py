"""Find adapters on this host, and check that they fit their base. One that does not fit fails only its own function.

An adapter is fetched, listed and removed like the weights of a function (`variants.as_weights`).
"""

import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cortex.functions.launch.vllm import highest_rank
from cortex.functions.servers import server_of
from cortex.functions.spec import Engine, Function
from cortex.functions.variants import as_weights
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.weights import gguf_head
from cortex.platform.weights.hub import WeightsUnavailable

CONFIG = "adapter_config.json"
MOST_BYTES = 1 << 20
UNKNOWN_RANK = 64
"""The rank for which an instance starts while an adapter is not on its host yet: few have a higher one."""

Find = Callable[[Function], Awaitable[LocalWeights | None]]
"""Returns weights on this host, or None where they are to be fetched. Raises WeightsUnavailable and NoAnswer."""


async def with_local_adapters(
    function: Function,
    local: LocalWeights,
    find: Find,
    check: Callable[[Path, Path], Awaitable[str]],
    rank: Callable[[Path], Awaitable[int]],
) -> tuple[LocalWeights, list[Function]]:
    """Return a function's weights with its adapters on this host, and those that are to be fetched before a start, as
    functions: none for an engine that loads adapters while it runs. `check` returns why an adapter does not fit the
    model at a path, `rank` the rank of one."""
    paths: dict[str, str] = {}
    problems: dict[str, str] = {}
    missing: list[Function] = []
    size_mb, highest = local.size_mb, 0
    for adapter in function.adapters:
        weights = as_weights(function, adapter)
        try:
            own = await find(weights)
            if own is None:
                missing.append(weights)
            elif problem := await check(Path(own.path), Path(local.path)):
                problems[adapter.id] = problem
            else:
                paths[adapter.id] = own.path
                size_mb += own.size_mb
                highest = max(highest, await rank(Path(own.path)))
        except (WeightsUnavailable, NoAnswer, OSError, ValueError) as error:
            problems[adapter.id] = str(error)
    local = replace(local, size_mb=size_mb, adapters=paths, adapter_problems=problems)
    if loads_while_it_runs(function):
        return replace(local, adapter_rank=max(highest, UNKNOWN_RANK if missing or problems else 1)), []
    return local, missing


def loads_while_it_runs(function: Function) -> bool:
    """Whether the instances of a function load its adapters while they run."""
    return bool(function.adapters) and server_of(function).loads_adapters == "while it runs"


def without_failed(local: LocalWeights, last_lines: Iterable[str]) -> LocalWeights | None:
    """Return weights without the adapter that a worker of llama.cpp failed to load, by its last lines; None if it
    loaded them all."""
    for line in last_lines:
        for path in local.adapters.values():
            if f"failed to load lora adapter '{path}'" in line:
                problem = f"the engine cannot load the adapter {Path(path).name}: its log has the reason"
                failed = {id: problem for id, own in local.adapters.items() if own == path}
                paths = {id: own for id, own in local.adapters.items() if own != path}
                return replace(local, adapters=paths, adapter_problems={**local.adapter_problems, **failed})
    return None


def problem_of(function: Function, adapter: Path, model: Path) -> str:
    """Return why an adapter does not fit a function's model, or "". Blocks."""
    if function.engine is Engine.LLAMACPP:
        return _problem_of_gguf(adapter, model)
    return _problem_of_folder(adapter, function.weights)


def rank_of(adapter: Path) -> int:
    """Return the highest rank in an adapter's folder; 1 for a file, whose engine needs no rank. Blocks."""
    if not adapter.is_dir():
        return 1
    config = _config(adapter)
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max((r for r in ranks if isinstance(r, int)), default=1)


def excess_rank(function: Function, local: LocalWeights, rank: int) -> str:
    """Return why an instance that was started with these weights cannot load an adapter of a rank, or ""."""
    highest = highest_rank(function, local.adapter_rank)
    if rank <= highest:
        return ""
    return (
        f"its rank is {rank}, and the instance was started for at most {highest}: `cortex fn cool {function.id}` lets "
        'the next start take it, or args = ["--max-lora-rank", …]'
    )


def _problem_of_gguf(adapter: Path, model: Path) -> str:
    try:
        own, base = gguf_head.read(adapter), gguf_head.read(model)
    except (gguf_head.BadGguf, OSError) as error:
        return f"the adapter {adapter.name} cannot be read: {error}"
    if own.get("general.type") != "adapter" or own.get("adapter.type") != "lora":
        return f"{adapter.name} is not a LoRA adapter: its general.type is {own.get('general.type', 'model')!r}"
    mine, theirs = own.get("general.architecture"), base.get("general.architecture")
    return "" if mine == theirs else f"{adapter.name} is for another base: for {mine}, and {model.name} is {theirs}"


def _problem_of_folder(adapter: Path, model: str) -> str:
    try:
        config = _config(adapter)
    except (OSError, ValueError) as error:
        return f"the adapter {adapter.name} has no readable {CONFIG}: {error}"
    kind, base = str(config.get("peft_type", "LORA")), str(config.get("base_model_name_or_path") or "")
    if kind.upper() != "LORA":
        return f"{adapter.name} is not a LoRA adapter: its peft_type is {kind!r}"
    return "" if _may_fit(base, model) else f"the adapter is for another base: for {base!r}, and this is {model!r}"


def _config(adapter: Path) -> dict[str, Any]:
    """Return the configuration of an adapter. Raises OSError or ValueError."""
    with (adapter / CONFIG).open("rb") as file:
        config = json.loads(file.read(MOST_BYTES))
    if not isinstance(config, dict):
        raise ValueError("it is not an object")
    return config


def _may_fit(base: str, model: str) -> bool:
    """Whether two repository names may belong to one model: quantised copies append to its name. Paths prove
    nothing, so they are accepted; the engine refuses an adapter whose tensors do not fit."""
    if any(not name or name.startswith(("/", "~", ".")) for name in (base, model)):
        return True
    one, other = (name.partition(":")[0].rpartition("/")[2].lower() for name in (base, model))
    return one.startswith(other) or other.startswith(one)
