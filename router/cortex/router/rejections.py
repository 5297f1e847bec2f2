"""Answers requests that fail before they are served, in the dialect of their path: for inference and for the framework.

`request/exchange.py` rejects what fails later. Both use `error_answer`.
"""

from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap, Receive, Scope, Send

from cortex.functions.names import did_you_mean
from cortex.platform.api_keys import Principal, Right
from cortex.platform.log import whence
from cortex.router.dialects.core.errors import Dialect, Fault, Kind
from cortex.router.dialects.engine import PATHS
from cortex.router.dialects.media import PATHS as MEDIA_PATHS
from cortex.router.errors import RequestError
from cortex.router.http_answer import Headers, Whole, error_answer
from cortex.router.metrics.request_metrics import RequestMetrics
from cortex.router.request.incoming import request_id

log = structlog.get_logger()
Http = Request[Any, Any, Any]

_DIALECTS: dict[str, Dialect] = {"/v1/messages": "messages", "/v1/responses": "responses", "/api": "ollama"}
CLIENT_API = ("/v1/", "/v2/", "/api/", "/upstream/", *PATHS)
"""Prefixes of the clients' APIs."""
_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/models",
    "/v1/files",
    "/v1/batches",
    "/v1/messages/batches",
    *MEDIA_PATHS.values(),
)
_OLLAMA_PATHS = tuple(
    f"/api/{name}"
    for name in ("chat", "generate", "embed", "embeddings", "tags", "show", "ps", "version", "pull")
)  # fmt: skip
"""What clients call, with the wrong base URL too."""
_KINDS = {404: Kind.UNKNOWN_PATH, 405: Kind.WRONG_METHOD, 413: Kind.BODY_TOO_BIG, 415: Kind.UNSUPPORTED_MEDIA}


class Rejections:
    """Makes errors into answers, and counts those of clients' APIs."""

    def __init__(self, request_metrics: RequestMetrics) -> None:
        self._request_metrics = request_metrics

    def answer(self, scope: Scope, fault: Fault, headers: Headers = (), id: str = "") -> Whole:
        """Return an error as the answer to a request; `id` is the request's, if it has one already."""
        path = scope["path"]
        if path.startswith(CLIENT_API):
            self._request_metrics.count_rejection(fault.kind)
        values = dict(scope["headers"])
        id = id or request_id(values.get(b"x-request-id"))
        return error_answer(fault, _dialect(path, values), id, headers)

    @property
    def handlers(self) -> ExceptionHandlersMap:
        """The framework's handlers of exceptions."""
        return {RequestError: self._request_error, HTTPException: self._http_error, Exception: self._internal_error}

    def _request_error(self, request: Http, error: RequestError) -> Response[None]:
        return _ErrorResponse(self, fault_of(error, request.scope["state"].get("principal")), error.headers)

    def _http_error(self, request: Http, error: HTTPException) -> Response[None]:
        """Put the framework's own errors into the dialect's envelope."""
        path = request.scope["path"][:200]
        if error.status_code == 405:
            allow = ((b"allow", error.headers["allow"].encode()),) if error.headers else ()
            return _ErrorResponse(self, wrong_method(path, request.method), allow)
        if isinstance(error, ValidationException):
            return _ErrorResponse(self, _invalid(error))
        messages = {
            404: f"unknown path {path}{_path_hint(path)}",
            413: "the body exceeds [gateway] max_body_mb of this router",
        }
        default = Kind.BAD_REQUEST if error.status_code < 500 else Kind.INTERNAL
        kind = _KINDS.get(error.status_code, default)
        return _ErrorResponse(self, Fault(kind=kind, message=messages.get(error.status_code, error.detail)))

    def _internal_error(self, request: Http, error: Exception) -> Response[None]:
        return _ErrorResponse(self, internal_error(error))


class _ErrorResponse(Response[None]):
    """An error for the framework to send: `Rejections` writes it."""

    def __init__(self, rejections: Rejections, fault: Fault, headers: Headers = ()) -> None:
        super().__init__(None)
        self._rejections, self._fault, self._more = rejections, fault, headers

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """Return the ASGI application that sends the error."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await send_whole(send, self._rejections.answer(scope, self._fault, self._more))

        return answer


async def send_whole(send: Send, answer: Whole) -> None:
    """Send an answer as ASGI messages."""
    headers = [(b"content-length", b"%d" % len(answer.body)), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def fault_of(error: RequestError, caller: Principal | None) -> Fault:
    """Return an error as its client may see it."""
    return error.fault(operator=caller is not None and caller.may(Right.STATUS))


def _invalid(error: ValidationException) -> Fault:
    """Return the error for a parameter of a path or a query string that cannot be read."""
    first: Any = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    name, why = first.get("key"), first.get("message", error.detail)
    return Fault(kind=Kind.BAD_REQUEST, message=f"{name}: {why}" if name else why, param=name)


def wrong_method(path: str, method: str) -> Fault:
    """Return the error for a method that a path does not support."""
    return Fault(kind=Kind.WRONG_METHOD, message=f"{path} does not support {method}")


def internal_error(error: Exception) -> Fault:
    """Log where an unexpected error comes from, and return what its client gets."""
    log.error("request_failed", at=whence(error))
    return Fault(kind=Kind.INTERNAL, message="internal error; search the router's log for this request id")


def _dialect(path: str, headers: dict[bytes, bytes]) -> Dialect:
    """Return the dialect in which to send an error to this path."""
    for prefix, dialect in _DIALECTS.items():
        if path == prefix or path.startswith(prefix + "/"):
            return dialect
    return "messages" if path.startswith("/v1/models") and b"anthropic-version" in headers else "chat"


def _path_hint(path: str) -> str:
    """Return which path a client with another base URL, or a misspelt path, may have meant."""
    if path.startswith("/api/"):
        return did_you_mean(path, _OLLAMA_PATHS) or ": Ollama's API has no such path here"
    for known in sorted(_PATHS, key=len, reverse=True):
        if path.endswith(known.removeprefix("/v1")):
            return f": did you mean {known}? The base URL of OpenAI's clients ends in /v1, that of Anthropic's does not"
    if path.startswith("/v1beta/"):
        return ": this service speaks OpenAI's API, with a base URL that ends in /v1, Anthropic's and Ollama's"
    return did_you_mean(path, _PATHS)
