"""Builds the router's HTTP application: its routes, guard and error handlers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from cortex.platform import clock
from cortex.platform.api_keys import Principal, Right
from cortex.platform.log import whence
from cortex.platform.name_lookups import NameLookups
from cortex.platform.settings import Settings
from cortex.router.access.auth import AuthGuard, caller
from cortex.router.dialects.core.errors import Dialect, Fault, Kind
from cortex.router.dialects.models import Card, anthropic_model, anthropic_page
from cortex.router.errors import RequestError
from cortex.router.health import health_report
from cortex.router.live_catalogue import Target
from cortex.router.model_description import card
from cortex.router.model_listing import entry, listing
from cortex.router.request.admission import Admission
from cortex.router.request.exchange import Exchanges
from cortex.router.request.http_answer import Headers, send_error
from cortex.router.routes import admin, inference
from cortex.router.routes import decisions as decision_routes
from cortex.router.routes import instances as instance_routes
from cortex.router.routes import keys as key_routes
from cortex.router.routes import requests as request_routes
from cortex.router.routes import weights as weights_routes
from cortex.router.routes.inference import request_id
from cortex.router.runtime import Runtime
from cortex.router.status import routes as status

log = structlog.get_logger()
Http = Request[Any, Any, Any]

_DIALECTS: dict[str, Dialect] = {"/v1/messages": "messages", "/v1/responses": "responses"}
_KINDS = {404: Kind.UNKNOWN_PATH, 405: Kind.WRONG_METHOD, 413: Kind.BODY_TOO_BIG, 415: Kind.UNSUPPORTED_MEDIA}


def create_app(settings: Settings) -> Litestar:
    """Build one router worker. Raises CatalogueError or OSError if the catalogue is invalid."""
    runtime = Runtime(settings)
    exchanges = Exchanges(
        runtime.view,
        runtime.live_catalogue,
        Admission(runtime.view, runtime.activator, runtime.in_flight),
        runtime.upstream,
        runtime.deaths,
        runtime.request_records,
        runtime.tracing,
    )
    auth = AuthGuard(runtime.keys, runtime.sessions, settings.gateway)

    def described_card(described: dict[str, Any], target: Target) -> Card:
        function, view = target.function, runtime.view
        return card(described, function, view.profile(function.id), view.ready(function.id, target.revision))

    @get("/v1/models", opt={"needs": "inference"})
    async def models(
        request: Http, limit: str | None = None, after_id: str | None = None, before_id: str | None = None
    ) -> Response[bytes]:
        """List every function and alias that the caller may use, warm or cold, in the caller's dialect."""
        may_use = caller(request).may_use
        entries = [
            e
            for e in listing(runtime.live_catalogue.catalogue, runtime.view.fleet, runtime.started)
            if may_use(e["alias_of"] or e["id"])
        ]
        if _is_anthropic(request):
            cards = [described_card(e, runtime.live_catalogue.resolve(e["id"])) for e in entries]
            return _json(request, anthropic_page(cards, limit, after_id, before_id))
        return _json(request, {"object": "list", "data": entries})

    @get("/v1/models/{model_id:path}", opt={"needs": "inference"})
    async def model(request: Http, model_id: str) -> Response[bytes]:
        """Describe one function or alias. Ids with a slash may be sent as `%2F`."""
        name = model_id.lstrip("/")
        target = runtime.live_catalogue.resolve_for(name, caller(request))
        function = target.function
        described = entry(function, runtime.view.fleet, runtime.started, runtime.view.profile(function.id))
        if name != function.id:
            described |= {"id": name, "alias_of": function.id}
        if _is_anthropic(request):
            return _json(request, anthropic_model(described_card(described, target)))
        return _json(request, described)

    @get("/health", opt={"needs": "nothing"})
    async def health() -> dict[str, Any]:
        """Report whether the router can serve requests, and its problems."""
        return health_report(runtime, clock.now())

    @get("/", opt={"needs": "nothing"})
    async def root() -> dict[str, str]:
        """Name the service and its entry points."""
        return {"name": "cortex", "models": "/v1/models", "health": "/health", "status": "/status"}

    @asynccontextmanager
    async def run(_: Litestar) -> AsyncIterator[None]:
        NameLookups().install(asyncio.get_running_loop())
        async with runtime:
            yield

    return Litestar(
        [
            *inference.routes(runtime, exchanges),
            models,
            model,
            health,
            root,
            *admin.routes(runtime),
            *request_routes.routes(runtime),
            *status.routes(runtime),
            *key_routes.routes(runtime.registry, runtime.keys),
            *decision_routes.routes(runtime),
            *instance_routes.routes(runtime),
            *weights_routes.routes(runtime),
        ],
        guards=[auth.guard],
        lifespan=[run],
        state=State({"request_metrics": runtime.request_metrics}),
        exception_handlers={
            RequestError: _request_error,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
        request_max_body_size=settings.gateway.max_body_mb * 1024 * 1024,
        openapi_config=None,
        logging_config=None,
    )  # fmt: skip


def _is_anthropic(request: Http) -> bool:
    """Both dialects list models at one path; only Anthropic's clients send this header."""
    return "anthropic-version" in request.headers


def _json(request: Http, value: object) -> Response[bytes]:
    id = request_id(request)
    headers = {"x-request-id": id, "request-id": id}
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)


def _dialect(request: Http) -> Dialect:
    """Return the dialect in which to send an error to this path."""
    path = request.scope["path"]
    for prefix, dialect in _DIALECTS.items():
        if path == prefix or path.startswith(prefix + "/"):
            return dialect
    return "messages" if path.startswith("/v1/models") and _is_anthropic(request) else "chat"


class _ErrorResponse(Response[None]):
    """An error for the framework to send: `send_error` writes it."""

    def __init__(self, request: Http, fault: Fault, headers: Headers = ()) -> None:
        super().__init__(None)
        self._fault, self._more = fault, headers
        self._dialect, self._request_id = _dialect(request), request_id(request)
        if request.scope["path"].startswith("/v1/"):
            request.app.state.request_metrics.count_rejection(fault.kind)

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Return the ASGI application that sends the error."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await send_error(send, self._fault, self._dialect, self._request_id, self._more)

        return answer


def _request_error(request: Http, error: RequestError) -> Response[None]:
    principal: Principal | None = request.scope["state"].get("principal")
    fault = error.fault(operator=principal is not None and principal.may(Right.STATUS))
    return _ErrorResponse(request, fault, error.headers)


def _http_error(request: Http, error: HTTPException) -> Response[None]:
    """Put the framework's own errors into the dialect's envelope."""
    path = request.scope["path"][:200]
    messages = {
        404: f"unknown path {path}",
        405: f"{path} does not support {request.method}",
        413: "the body exceeds [gateway] max_body_mb of this router",
    }
    default = Kind.BAD_REQUEST if error.status_code < 500 else Kind.INTERNAL
    kind = _KINDS.get(error.status_code, default)
    return _ErrorResponse(request, Fault(kind=kind, message=messages.get(error.status_code, error.detail)))


def _internal_error(request: Http, error: Exception) -> Response[None]:
    log.error("request_broke", at=whence(error))
    message = "internal error; search the router's log for this request id"
    return _ErrorResponse(request, Fault(kind=Kind.INTERNAL, message=message))
