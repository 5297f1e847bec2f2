"""Select the adapter of a variant in a request to an instance that the variant shares with its base.

vLLM knows an adapter by a name in `model`, and loads it at the first request for it. llama.cpp numbers its adapters,
and every request names one; a request for the base disables them all, because what a server applies by default differs
between releases.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from cortex.functions.servers import SERVERS
from cortex.functions.variants import adapter_number
from cortex.platform.agent_messages import EnsureAdapter
from cortex.platform.cancel import cancel_tasks
from cortex.platform.record import Instance
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.dialects.core.large_object import Body, with_fields
from cortex.router.errors import SEE_WHY, AdapterFailed, NotReadyInTime
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target

AGAIN_S = 2.0
"""After this time without news of a load, its agent is asked again: it may have restarted."""


def has_adapter(target: Target, instance: Instance) -> bool:
    """Whether an instance has loaded the adapter of a variant, or the function has none."""
    if not target.has_adapter:
        return True
    number = instance.adapters.get(target.function.id)
    if loads_adapters(instance) == "while it runs":
        return number == adapter_number(target.function.adapter)
    return number is not None


def loads_adapters(instance: Instance) -> str:
    """Return when the server of an instance loads adapters."""
    server = SERVERS.get(instance.server)
    return server.loads_adapters if server else "no"


def able(target: Target, ready: tuple[Instance, ...], load: Callable[[str], int]) -> tuple[Instance, ...]:
    """Return the instances that can serve a variant, of those with so many requests in flight each (`load`):

    (1) those with its adapter;
    (2) if these all have the function's `target_concurrency`, also those that would load it while they run;
    (3) if none has it, those whose adapter has no problem;
    (4) else all of them, so that `check_adapter` gives the reason of one.
    """
    if not target.has_adapter:
        return ready
    having = tuple(i for i in ready if has_adapter(target, i))
    sound = tuple(i for i in ready if i not in having and target.function.id not in i.adapter_problems)
    if not having:
        return sound or ready  # (3), (4)
    if all(load(i.id) >= target.function.target_concurrency for i in having):  # (2)
        return having + tuple(i for i in sound if loads_adapters(i) == "while it runs")
    return having  # (1)


def check_adapter(target: Target, instance: Instance) -> None:
    """Raise AdapterFailed if an instance has not loaded the adapter of a variant, and loads none while it runs."""
    if not has_adapter(target, instance) and loads_adapters(instance) != "while it runs":
        problem = instance.adapter_problems.get(target.function.id, "its instance was started without it")
        raise _failed(target, problem)


def with_adapter(body: Body, target: Target, instance: Instance) -> Body:
    """Return the body of a request with the number of its adapter, if the server takes numbers."""
    if not instance.adapters or loads_adapters(instance) != "at start":
        return body
    if not target.has_adapter:
        return with_fields(body, b'"lora":[{"id":0,"scale":0.0}]')  # llama.cpp ignores an empty list
    return with_fields(body, b'"lora":[{"id":%d,"scale":1.0}]' % instance.adapters[target.function.id])


class AdapterLoads:
    """Has agents load adapters into running instances. All waiters of this router share one load, and the agent owns
    it: no disconnect of a client ends it."""

    def __init__(self, view: FleetView, agents: Agents) -> None:
        self._view, self._agents = view, agents
        self._loads: dict[tuple[str, str], asyncio.Task[bool]] = {}

    async def close(self) -> None:
        """Stop following the loads."""
        await cancel_tasks(self._loads.values())

    async def wait(self, target: Target, instance: Instance, timeout_s: float) -> bool:
        """Return True once an instance has loaded the adapter of a variant, or if its server loads none while it runs:
        `check_adapter` tells what such a one lacks. False: the instance has left meanwhile.

        Raises AdapterFailed or NotReadyInTime.
        """
        if has_adapter(target, instance) or loads_adapters(instance) != "while it runs":
            return True
        load = self._join(target, instance.id)
        await asyncio.wait((load,), timeout=max(0.0, timeout_s))
        if load.done() and not load.cancelled():
            return load.result()
        placed = self._view.instance(instance.id)
        step = placed[1].adapter_steps.get(target.function.id, "") if placed else ""
        public = f"the adapter of '{target.function.id}' was not loaded in time"
        raise NotReadyInTime(f"{public}: {step or 'its load has not begun'}", retry_after=5, public=public + SEE_WHY)

    def _join(self, target: Target, instance: str) -> asyncio.Task[bool]:
        """Return the running load of an adapter, or begin one."""
        key = (instance, target.worker_model)
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = asyncio.create_task(self._load(target, instance))
            load.add_done_callback(lambda task: self._end(key, task))
        return load

    def _end(self, key: tuple[str, str], load: asyncio.Task[bool]) -> None:
        del self._loads[key]
        if not load.cancelled():
            load.exception()  # marks it as retrieved: every waiter may have left

    async def _load(self, target: Target, id: str) -> bool:
        """Follow the load of an adapter to its end:

        (1) the instance has left: False;
        (2) the adapter is loaded: True;
        (3) it is being loaded: wait for news;
        (4) otherwise ask the agent for it, again after a while.

        Raises AdapterFailed when it cannot be loaded, NotReadyInTime after the function's start timeout.
        """
        deadline, ask_at = time.monotonic() + target.function.start_timeout_s, 0.0
        while (now := time.monotonic()) < deadline:
            ready = self._view.ready(target.base.id, target.revision)
            placed = self._view.instance(id)
            if placed is None or id not in (i.id for i in ready):  # (1)
                return False
            host, instance = placed
            if has_adapter(target, instance):  # (2)
                return True
            if target.function.id not in instance.adapter_steps and now >= ask_at:  # (4)
                ask_at = now + AGAIN_S
                request = EnsureAdapter(target.base, id, target.function.id)
                with contextlib.suppress(AgentUnavailable):  # again after a while, or the host leaves the record
                    answer = await self._agents.ensure_adapter(host, request)
                    if answer.problem:
                        raise _failed(target, answer.problem)
                    if answer.loaded:
                        return True
            await self._view.wait_for_change(min(AGAIN_S, deadline - now))  # (3)
        raise NotReadyInTime(f"the adapter of '{target.function.id}' was not loaded in time", retry_after=5)


def _failed(target: Target, problem: str) -> AdapterFailed:
    public = f"'{target.function.id}' cannot be served: its adapter is not loaded"
    return AdapterFailed(f"'{target.function.id}' cannot be served: {problem}", public=public + SEE_WHY)
