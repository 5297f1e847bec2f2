"""A running worker's reports about itself: `/props` and `/slots`, by `?model=NAME` or below `/upstream/NAME`.

`routes/inference.py` has engines' own routes with a body. These start no worker and do not count as a use, because
programs poll them.
"""

from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery

from cortex.router.access.auth import caller
from cortex.router.activation.load_balancing import choose
from cortex.router.dialects import engine
from cortex.router.dialects.core.errors import BadAnswer, WorkerRefusal
from cortex.router.dialects.core.worker_errors import fault_from_worker
from cortex.router.errors import SEE_WHY, NotLoaded, UpstreamBroke
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.request.capability_checks import check_route
from cortex.router.request.upstream import Broken, Upstream

Http = Request[Any, Any, Any]


def routes(catalogue: LiveCatalogue, view: FleetView, upstream: Upstream) -> list[HTTPRouteHandler]:
    """Return the routes. All are GET."""

    async def state(request: Http, path: str, name: str) -> Response[bytes]:
        if not name:
            raise engine.no_name()
        target = catalogue.resolve_for(name, caller(request))
        function = target.function
        ready = view.ready(target.base.id, target.revision)
        check_route(function, path, ready)
        instance = choose(ready, view.elsewhere)
        if instance is None:
            raise NotLoaded(function.id, path)
        try:
            status, body = await upstream.read(instance, path)
        except (Broken, BadAnswer) as error:
            public = f"the worker of '{function.id}' did not answer {path}"
            raise UpstreamBroke(f"{public}: {error}", public=public + SEE_WHY) from None
        if status != 200:
            raise WorkerRefusal(fault_from_worker(status, body))
        headers = {"x-cortex-function": function.id, "x-cortex-instance": instance.id}
        return Response(engine.visible_part(path, body, name), media_type="application/json", headers=headers)

    @get("/props", opt={"needs": "inference"})
    async def props(request: Http, model: FromQuery[str] = "") -> Response[bytes]:
        """Describe a running worker: its context, template and defaults."""
        return await state(request, "/props", model)

    @get("/slots", opt={"needs": "inference"})
    async def slots(request: Http, model: FromQuery[str] = "") -> Response[bytes]:
        """List a running worker's slots, and which of them are busy."""
        return await state(request, "/slots", model)

    @get("/upstream/{rest:path}", opt={"needs": "inference"})
    async def upstream_(request: Http, rest: FromPath[str]) -> Response[bytes]:
        """Describe a worker, or list its slots, for the function that the path names."""
        below = engine.below(engine.UPSTREAM + rest.lstrip("/"))
        if below is None or below[1] not in engine.STATES:
            raise NotFoundException
        return await state(request, below[1], below[0])

    return [props, slots, upstream_]
