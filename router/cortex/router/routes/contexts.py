"""The operators' API for saved conversations: `/admin/contexts`. The hosts' records list them."""

from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery

from cortex.platform.agent_messages import RemoveContexts
from cortex.router import context_types as api
from cortex.router.activation.agents import Agents
from cortex.router.dialects.core.wire import read
from cortex.router.errors import BadRequest
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.routes.hosts import ask_all, hosts_of

Http = Request[Any, Any, Any]


def routes(catalogue: LiveCatalogue, view: FleetView, agents: Agents) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/admin/contexts", opt={"needs": "status"})
    async def contexts(host: FromQuery[str] = "", function: FromQuery[str] = "") -> api.ContextsAnswer:
        """List the saved conversations of every host, or of one, or of one function."""
        hosts = hosts_of(view, host)
        function = catalogue.catalogue.aliases.get(function, function)
        listed = [api.view_of(c, h.name) for h in hosts for c in h.contexts if not function or c.function == function]
        off = {h.name: h.contexts_off for h in hosts if h.contexts_off}
        return api.ContextsAnswer(contexts=tuple(sorted(listed, key=lambda c: -c.at)), off=off)

    @post("/admin/contexts/remove", opt={"needs": "admin", "body": api.RemoveContextsRequest}, status_code=200)
    async def remove(request: Http) -> api.RemoveContextsAnswer:
        """Remove saved conversations. With `all`, hosts also try again what they have switched off."""
        data = read(await request.body(), api.RemoveContextsRequest)
        if not (data.ids or data.function or data.all):
            raise BadRequest("no saved conversations selected: set `ids`, `function` or `all`")
        function = catalogue.catalogue.aliases.get(data.function, data.function)
        requests = {
            h.name: RemoveContexts(
                ids=tuple(c.id for c in h.contexts if c.id in data.ids or (function and c.function == function)),
                all=data.all,
            )
            for h in hosts_of(view, data.host)
        }
        hosts = [h for h in hosts_of(view, data.host) if data.all or requests[h.name].ids]
        answers, away = await ask_all(hosts, lambda h: agents.remove_contexts(h, requests[h.name]))
        removed = tuple(api.view_of(c, h) for h, contexts in answers.items() for c in contexts)
        return api.RemoveContextsAnswer(removed=removed, away=away)

    return [contexts, remove]
