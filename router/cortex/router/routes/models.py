"""`/v1/models`: the functions and aliases that a caller may use, in the caller's dialect."""

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from litestar.response import Stream
from msgspec import Raw

from cortex.router.access.auth import caller
from cortex.router.dialects.models import Card, anthropic_model, anthropic_page
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.model_description import card
from cortex.router.model_listing import ModelListing
from cortex.router.request.incoming import request_id
from cortex.router.routes import long_lists

Http = Request[Any, Any, Any]


def routes(catalogue: LiveCatalogue, view: FleetView, created: int) -> list[HTTPRouteHandler]:
    """Return the routes; `created` is the Unix time that every model claims."""
    listing = ModelListing(created)

    def card_of(name: str, target: Target) -> Card:
        ready = view.ready(target.base.id, target.revision)
        return card(name, created, target.function, view.profile(target.base.id), ready)

    @get("/v1/models", opt={"needs": "inference"})
    async def models(
        request: Http,
        limit: FromQuery[str | None] = None,
        after_id: FromQuery[str | None] = None,
        before_id: FromQuery[str | None] = None,
    ) -> Response[bytes] | Stream:
        """List every function and alias that the caller may use, warm or cold, in the caller's dialect."""
        targets = catalogue.visible(caller(request))
        if is_anthropic(request):
            of = dict(targets)
            page = anthropic_page(list(of), limit, after_id, before_id)
            cards = (anthropic_model(card_of(id, of[id])) for id in page.ids)
            return long_lists.answer("data", cards, page.others(), _ids(request))
        entries = listing.every(((name, target.function) for name, target in targets), view.fleet)
        return long_lists.answer("data", entries, {"object": "list"}, _ids(request))

    @get("/v1/models/{model_id:path}", opt={"needs": "inference"})
    async def model(request: Http, model_id: FromPath[str]) -> Response[bytes]:
        """Describe one function or alias. Ids with a slash may be sent as `%2F`."""
        name = model_id.lstrip("/")
        target = catalogue.resolve_for(name, caller(request))
        if is_anthropic(request):
            return _json(request, anthropic_model(card_of(name, target)))
        return _json(request, Raw(listing.one(name, target.function, view.fleet, view.profile(target.base.id))))

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
