"""The operators' API for functions and hosts: `/admin/…`. The CLI is its client."""

from collections.abc import Awaitable
from typing import Annotated, TypeVar

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from cortex.platform.registry import RecordUnavailable
from cortex.router import api_types as api
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.decision_log import DecisionLog
from cortex.router.errors import BadRequest, NoCapacity, RecordIsAway
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.operations import Operations
from cortex.router.overview.functions import function_view, function_views
from cortex.router.overview.hosts import cordoned_and_away, reporting_hosts, silent_hosts
from cortex.router.overview.planning import Planner, check_host, function_named
from cortex.router.overview.snapshot import Index
from cortex.router.overview.sources import Sources
from cortex.router.plan_types import Plan
from cortex.router.routes import long_lists

T = TypeVar("T")

FUNCTION_ACTIONS: dict[str, tuple[type, str]] = {
    "warm": (api.WarmAnswer, "Start an instance unless one exists, ignoring back-off."),
    "cool": (api.CoolAnswer, "Drain the instances; with `now=1` at once, which cuts requests in flight."),
    "pin": (api.FunctionSettings, "Neither reap nor evict its instances."),
    "unpin": (api.FunctionSettings, "Undo a pin. `pinned_on` of the catalogue still applies."),
    "set": (api.FunctionSettings, "Override `min` and `max` until a reset."),
    "reset": (api.FunctionSettings, "Remove all overrides."),
    "forget": (api.ForgetAnswer, "Delete its measured memory, start times and failures."),
}
"""The last segment of `POST /admin/functions/{id}/{action}`: the answer, and what the action does."""
HOST_ACTIONS: dict[str, tuple[type, str]] = {
    "cordon": (api.CordonAnswer, "Place nothing new on it; its instances keep serving. A silent host can be cordoned."),
    "uncordon": (api.CordonAnswer, "Place instances on it again."),
    "drain": (api.DrainAnswer, "Cordon it, start its functions on hosts that have room, and drain its instances."),
}


def routes(
    catalogue: LiveCatalogue, sources: Sources, planner: Planner, operations: Operations, decision_log: DecisionLog
) -> list[HTTPRouteHandler]:
    """Return the admin routes of a router."""

    @get("/admin/functions", opt={"needs": "status", "answer": api.FunctionsAnswer})
    async def functions() -> Stream:
        """List every function with its instances."""
        snapshot = await sources.functions()
        return long_lists.answer("functions", function_views(snapshot, Index(snapshot)))

    @get("/admin/functions/{name:path}", opt={"needs": "status"})
    async def function(name: FromPath[str]) -> api.FunctionView:
        """Return one function, by id or alias."""
        snapshot = await sources.functions()
        index = Index(snapshot)
        return function_view(function_named(name.lstrip("/"), catalogue, index), snapshot, index)

    @post("/admin/functions/{name:path}", status_code=200, opt={"needs": "admin", "actions": FUNCTION_ACTIONS})
    async def act(
        name: FromPath[str],
        now: FromQuery[bool] = False,
        park: FromQuery[bool] = False,
        plan: FromQuery[bool] = False,
        least: Annotated[int | None, QueryParameter(name="min", ge=0, le=1000)] = None,
        most: Annotated[int | None, QueryParameter(name="max", ge=1, le=1000)] = None,
    ) -> api.WarmAnswer | api.CoolAnswer | api.FunctionSettings | api.ForgetAnswer | Plan:
        """Act on a function: the action is the last segment, because ids may hold slashes. With `plan=1`, warm, cool,
        pin and unpin only return their plan."""
        id, _, action = name.lstrip("/").rpartition("/")
        if plan:
            return await planner.on_function(action, id)
        if target := catalogue.get(id):
            decision_log.operator_action(action, target.function.id, now=now, park=park)
        match action:
            case "warm":
                return api.WarmAnswer(instance=await operations.warm(id))
            case "cool":
                if now and park:
                    raise BadRequest("`now` cuts requests and `park` waits for them: use one of them")
                return await _cool(operations, id, at_once=now, park=park)
            case "pin" | "unpin":
                return await _override(operations, id, pinned=action == "pin")
            case "set":
                limits = {k: v for k, v in (("min", least), ("max", most)) if v is not None}
                return await _override(operations, id, **limits)
            case "reset":
                return await _override(operations, id, pinned=None, min=None, max=None)
            case "forget":
                return await _forget(operations, id)
        raise BadRequest(f"unknown action '{action[:50]}': use {', '.join(FUNCTION_ACTIONS)}")

    @get("/admin/hosts", opt={"needs": "status", "answer": api.HostsAnswer})
    async def hosts() -> Stream:
        """List the hosts that report, and the silent ones, whose instances may still serve."""
        snapshot = sources.now()
        index = Index(snapshot)
        others = {
            "silent": tuple(silent_hosts(snapshot, index)),
            "cordoned_and_away": cordoned_and_away(snapshot.fleet),
        }
        return long_lists.answer("hosts", reporting_hosts(snapshot, index), others)

    @post("/admin/hosts/{host:str}/{verb:str}", status_code=200, opt={"needs": "admin", "actions": HOST_ACTIONS})
    async def act_on_host(
        host: FromPath[str], verb: FromPath[str], plan: FromQuery[bool] = False
    ) -> api.CordonAnswer | api.DrainAnswer | Plan:
        """Act on a host. With `plan=1`, only return the plan."""
        if plan:
            return await planner.on_host(verb, host)
        check_host(verb, host, sources.now().fleet)
        decision_log.operator_action(verb, host=host)
        try:
            if verb == "drain":
                moved, draining = await _await_record(operations.drain(host))
                return api.DrainAnswer(moved=tuple(moved), draining=tuple(draining))
            await _await_record(operations.cordon(host, cordoned=verb == "cordon"))
        except AgentUnavailable as error:
            raise NoCapacity(str(error), retry_after=5) from None
        return api.CordonAnswer(host=host, cordoned=verb == "cordon")

    return [functions, function, act, hosts, act_on_host]


async def _cool(operations: Operations, name: str, *, at_once: bool, park: bool) -> api.CoolAnswer:
    draining, away = await operations.cool(name, at_once=at_once, park=park)
    if away:
        raise NoCapacity(f"the agents of these hosts do not answer: {', '.join(away)}", retry_after=5)
    return api.CoolAnswer(instances=tuple(draining))


async def _override(operations: Operations, name: str, **changes: int | bool | None) -> api.FunctionSettings:
    changed = await _await_record(operations.override(name, **changes))
    return api.FunctionSettings(id=changed.id, pinned=changed.pinned, min=changed.min, max=changed.max)


async def _forget(operations: Operations, name: str) -> api.ForgetAnswer:
    function, entries, away = await _await_record(operations.forget(name))
    if away:
        raise NoCapacity(f"forgotten by the record, but these hosts did not answer: {', '.join(away)}", retry_after=5)
    return api.ForgetAnswer(id=function, entries=entries)


async def _await_record(work: Awaitable[T]) -> T:
    """Await an operation on the record. Raises RecordIsAway."""
    try:
        return await work
    except RecordUnavailable as error:
        raise RecordIsAway(str(error), retry_after=5) from None
