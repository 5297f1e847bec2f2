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

from cortex.functions.names import did_you_mean
from cortex.platform import clock
from cortex.platform.api_keys import Principal, Right
from cortex.platform.log import whence
from cortex.platform.name_lookups import NameLookups
from cortex.platform.settings import Settings
from cortex.router.access.auth import AuthGuard, caller
from cortex.router.dialects.core.errors import Dialect, DialectError, Fault, Kind, envelope
from cortex.router.dialects.models import Card, anthropic_model, anthropic_page
from cortex.router.errors import RequestError
from cortex.router.health import health_report
from cortex.router.live_catalogue import Target
from cortex.router.model_description import card
from cortex.router.model_listing import entry, listing
from cortex.router.request.exchange import Services
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
_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/embeddings", "/v1/rerank", "/v1/models",
)  # fmt: skip
"""What clients call, with the wrong base URL too."""
_KINDS = {404: Kind.UNKNOWN_PATH, 405: Kind.WRONG_METHOD, 413: Kind.BODY_TOO_BIG, 415: Kind.UNSUPPORTED_MEDIA}


def create_app(settings: Settings) -> Litestar:
    """Build one router worker. Raises CatalogueError or OSError if the catalogue is invalid."""
    runtime = Runtime(settings)
    services = Services(
        runtime.view,
        runtime.activator,
        runtime.in_flight,
        runtime.upstream,
        runtime.request_records,
        runtime.tracing,
        runtime.live_catalogue,
        runtime.deaths,
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
            *inference.routes(runtime, services),
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
            DialectError: _dialect_error,
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
    return _answer(request, 200, msgspec.json.encode(value), {})


def _answer(request: Http, status: int, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    id = request_id(request)
    headers = {"x-request-id": id, "request-id": id, **headers}
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _dialect(request: Http) -> Dialect:
    """Return the dialect in which to send an error to this path."""
    path = request.scope["path"]
    for prefix, dialect in _DIALECTS.items():
        if path == prefix or path.startswith(prefix + "/"):
            return dialect
    return "messages" if path.startswith("/v1/models") and _is_anthropic(request) else "chat"


def _fault_response(request: Http, fault: Fault) -> Response[bytes]:
    dialect = _dialect(request)
    if request.scope["path"].startswith(("/v1/", "/v2/")):
        request.app.state.request_metrics.count_rejection(fault.kind)
    answer = _answer(request, fault.status(dialect), b"", fault.headers())
    answer.content = envelope(fault, dialect, answer.headers["x-request-id"])
    return answer


def _request_error(request: Http, error: RequestError) -> Response[bytes]:
    principal: Principal | None = request.scope["state"].get("principal")
    return _fault_response(request, error.fault(operator=principal is not None and principal.may(Right.STATUS)))


def _dialect_error(request: Http, error: DialectError) -> Response[bytes]:
    return _fault_response(request, error.fault)


def _http_error(request: Http, error: HTTPException) -> Response[bytes]:
    """Put the framework's own errors into the dialect's envelope."""
    path = request.scope["path"][:200]
    messages = {
        404: f"unknown path {path}{_path_hint(path)}",
        405: f"{path} does not support {request.method}",
        413: "the body exceeds [gateway] max_body_mb of this router",
    }
    default = Kind.BAD_REQUEST if error.status_code < 500 else Kind.INTERNAL
    kind = _KINDS.get(error.status_code, default)
    return _fault_response(request, Fault(kind=kind, message=messages.get(error.status_code, error.detail)))


def _path_hint(path: str) -> str:
    """Return which path a client with another base URL, or a misspelt path, may have meant."""
    for known in sorted(_PATHS, key=len, reverse=True):
        if path.endswith(known.removeprefix("/v1")):
            return f": did you mean {known}? The base URL of OpenAI's clients ends in /v1, that of Anthropic's does not"
    if path.startswith(("/api/", "/v1beta/")):
        return ": this service speaks OpenAI's API, with a base URL that ends in /v1, and Anthropic's"
    return did_you_mean(path, _PATHS)


def _internal_error(request: Http, error: Exception) -> Response[bytes]:
    log.error("request_broke", at=whence(error))
    message = "internal error; search the router's log for this request id"
    return _fault_response(request, Fault(kind=Kind.INTERNAL, message=message))
