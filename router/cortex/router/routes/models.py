"""`/v1/models`: the functions and aliases that a caller may use, in the caller's dialect."""

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from cortex.router.access.auth import caller
from cortex.router.dialects.models import Card, anthropic_model, anthropic_page
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.model_description import card
from cortex.router.model_listing import Placed, entry, listing
from cortex.router.request.incoming import request_id
from cortex.router.routes import long_lists

Http = Request[Any, Any, Any]


def routes(catalogue: LiveCatalogue, view: FleetView, created: int) -> list[HTTPRouteHandler]:
    """Return the routes; `created` is the Unix time that every model claims."""

    def described_card(described: dict[str, Any], target: Target) -> Card:
        function = target.function
        return card(described, function, view.profile(target.base.id), view.ready(target.base.id, target.revision))

    @get("/v1/models", opt={"needs": "inference"})
    async def models(
        request: Http, limit: str | None = None, after_id: str | None = None, before_id: str | None = None
    ) -> Response[bytes] | Stream:
        """List every function and alias that the caller may use, warm or cold, in the caller's dialect."""
        may_use = caller(request).may_use
        entries = (e for e in listing(catalogue.catalogue, view.fleet, created) if may_use(e["alias_of"] or e["id"]))
        if is_anthropic(request):
            cards = [described_card(e, catalogue.resolve(e["id"])) for e in entries]
            return _json(request, anthropic_page(cards, limit, after_id, before_id))
        return long_lists.answer("data", entries, {"object": "list"}, _ids(request))

    @get("/v1/models/{model_id:path}", opt={"needs": "inference"})
    async def model(request: Http, model_id: str) -> Response[bytes]:
        """Describe one function or alias. Ids with a slash may be sent as `%2F`."""
        name = model_id.lstrip("/")
        target = catalogue.resolve_for(name, caller(request))
        function = target.function
        placed = Placed(view.fleet, only=function.base_id)
        described = entry(function, placed, created, view.profile(target.base.id))
        if name != function.id:
            described |= {"id": name, "alias_of": function.id}
        if is_anthropic(request):
            return _json(request, anthropic_model(described_card(described, target)))
        return _json(request, described)

    return [models, model]


def is_anthropic(request: Http) -> bool:
    """Both dialects list models at one path; only Anthropic's clients send this header."""
    return "anthropic-version" in request.headers


def _json(request: Http, value: object) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=_ids(request))


def _ids(request: Http) -> dict[str, str]:
    """Return the headers with the request's id."""
    sent = request.headers.get("x-request-id")
    id = request_id(sent.encode("latin-1") if sent else None)
    return {"x-request-id": id, "request-id": id}
