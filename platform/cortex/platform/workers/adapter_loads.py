"""Loads adapters into running workers and unloads them, by vLLM's routes: the effects `LoadAdapter`, `UnloadAdapter`.

Only the agent can reach these routes: they need the control key. A worker's own text about a failure goes to its log.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from cortex.functions.variants import adapter_name, adapter_number, as_weights
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.record import Instance
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import LoadAdapter, UnloadAdapter
from cortex.platform.scheduling.events import Event
from cortex.platform.settings import Agent
from cortex.platform.weights import disk
from cortex.platform.weights.adapters import excess_rank
from cortex.platform.weights.fetches import Fetches, FetchProblem
from cortex.platform.weights.hub import WeightsUnavailable
from cortex.platform.workers.control_calls import CallFailed, ControlCalls
from cortex.platform.workers.control_keys import ControlKeys

log = structlog.get_logger()

LOAD_S = 120.0
"""Time limit for loading an adapter from the disk."""
UNLOAD_S = 30.0
UNLOAD_AFTER_S = 60.0
"""How long an adapter whose entry has changed stays loaded: routers may not have read the change yet."""
LOADED_ALREADY = b"has already been loaded"

Note = Callable[[str, str, str], Awaitable[None]]
"""Adds a line to the log of a function's instance."""


class LoadProblem(Exception):
    """An adapter cannot be loaded; the message is for operators."""


class AdapterLoads:
    """The adapters of one host's running workers."""

    def __init__(
        self,
        settings: Agent,
        looks: BlockingCalls,
        fetches: Fetches,
        control: ControlKeys,
        note: Note,
        tell: Callable[[Event], None],
    ) -> None:
        self._cache, self._roots = Path(settings.cache_dir), settings.weight_roots
        self._looks, self._fetches, self._calls = looks, fetches, ControlCalls(control)
        self._note, self._tell = note, tell

    async def load(self, effect: LoadAdapter) -> None:
        """Load an adapter, after fetching it if this host lacks it; report the result."""
        instance, adapter = effect.instance, effect.adapter
        number = adapter_number(adapter.source)
        try:
            path = await self._path(effect)
            await self._load(instance, adapter_name(adapter.id, number), path)
        except (LoadProblem, FetchProblem, CallFailed, WeightsUnavailable, NoAnswer, OSError) as error:
            log.warning("adapter_not_loaded", function=adapter.id, instance=instance.id, why=str(error))
            self._tell(events.AdapterFailed(instance.id, adapter.id, number, str(error)))
            return
        log.info("adapter_loaded", function=adapter.id, instance=instance.id)
        self._tell(events.AdapterLoaded(instance.id, adapter.id, number, path))

    async def unload(self, effect: UnloadAdapter) -> None:
        """Unload an adapter when no router sends requests for it any more. Those under way keep it."""
        await asyncio.sleep(UNLOAD_AFTER_S)
        body = {"lora_name": effect.name}
        try:
            status, _ = await self._calls.call(effect.instance, "POST", "/v1/unload_lora_adapter", UNLOAD_S, body)
        except CallFailed as error:
            log.warning("adapter_not_unloaded", instance=effect.instance.id, adapter=effect.name, why=str(error))
            return
        log.info("adapter_unloaded", instance=effect.instance.id, adapter=effect.name, status=status)

    async def _path(self, effect: LoadAdapter) -> str:
        """Return the path of an adapter that fits its instance. Raises what `load` reports."""
        function, adapter = effect.function, as_weights(effect.function, effect.adapter)
        local = await disk.weights(self._looks, adapter, self._cache, self._roots)
        if local is None:

            def report(step: str) -> None:
                self._tell(events.AdapterProgress(effect.instance.id, adapter.id, step))

            local = await self._fetches.fetch_adapter(effect.instance, adapter, report)
        path = Path(local.path)
        if problem := await disk.adapter_problem(self._looks, function, path, Path(effect.weights.path)):
            raise LoadProblem(problem)
        if problem := excess_rank(function, effect.weights, await disk.adapter_rank(self._looks, path)):
            raise LoadProblem(problem)
        return local.path

    async def _load(self, instance: Instance, name: str, path: str) -> None:
        """Have the engine load an adapter; one that an earlier agent had loaded stays. Raises LoadProblem or
        CallFailed."""
        body = {"lora_name": name, "lora_path": path}
        status, answer = await self._calls.call(instance, "POST", "/v1/load_lora_adapter", LOAD_S, body)
        if status == 200 or LOADED_ALREADY in answer:
            return
        await self._note(
            instance.function, instance.id, f"the adapter {path} was not loaded: {answer.decode(errors='replace')}"
        )
        raise LoadProblem(f"the engine cannot load the adapter {Path(path).name}: its log has the reason")
