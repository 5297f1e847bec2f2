"""The router's ASGI application: inference by a table of paths, everything else by the framework.

A framework's routing, guards and conversions cost more than a warm request itself. Rights and errors are the same for
both: `access/auth.py` and `rejections.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from litestar import Litestar
from litestar.types import Receive, Send

from cortex.platform.api_keys import Right
from cortex.platform.serving.client_connection import ClientConnection, client_of
from cortex.router.access.audit import AuditLog
from cortex.router.access.auth import AuthGuard
from cortex.router.access.cross_origin import CrossOrigin
from cortex.router.dialects import engine
from cortex.router.errors import RequestError, RouterStops
from cortex.router.http_answer import Answering, Headers
from cortex.router.rejections import CLIENT_API, Rejections, fault_of, internal_error, send_whole, wrong_method
from cortex.router.request.incoming import ClientLeft, Incoming
from cortex.router.shutdown import stopping

Handler = Callable[[Incoming], Awaitable[Answering]]
"""Reads a request, and returns what answers it. Raises RequestError or ClientLeft."""

METHOD, NEEDS = "POST", Right.INFERENCE
"""Of every path in the table."""
_ALLOW = [(b"allow", f"OPTIONS, {METHOD}".encode())]


class Dispatcher:
    """The application. `inference` is the table; `rest` has all other routes, and the lifespan.

    `root_path` is removed from paths that begin with it.
    """

    def __init__(
        self,
        inference: Mapping[str, Handler],
        rest: Litestar,
        guard: AuthGuard,
        rejections: Rejections,
        cross_origin: CrossOrigin,
        audit: AuditLog,
        root_path: str = "",
    ) -> None:
        self.inference, self.rest = inference, rest
        self._guard, self._rejections = guard, rejections
        self._cross_origin, self._audit, self._root_path = cross_origin, audit, root_path

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Return what serves a request, or the lifespan."""
        if scope["type"] != "http":
            return self.rest(scope, receive, send)
        client = client_of(scope)
        if self._root_path:
            scope = _below(self._root_path, scope)
        if self._cross_origin.is_on and scope["path"].startswith(CLIENT_API):
            client.add_headers(self._cross_origin.headers(scope["headers"]))
            preflight = self._cross_origin.preflight(scope["method"], scope["headers"])
            if preflight is not None:
                return _send_empty(send, preflight)
        route = self._route(scope["path"])
        if route is None:
            return self._audit.serve(self.rest, scope, receive, send)
        if scope["method"] == METHOD:
            return self._serve(*route, scope, receive, client)
        if scope["method"] == "OPTIONS":
            return _send_empty(send, _ALLOW)
        return send_whole(send, self._rejections.answer(scope, wrong_method(scope["path"], scope["method"]), _ALLOW))

    def _route(self, path: str) -> tuple[Handler, str] | None:
        """Return the handler of a path, and the function that the path names, or ""."""
        handler, function = self.inference.get(path), ""
        if handler is None and (below := engine.below(path)) is not None:
            function, rest = below
            handler = self.inference.get(rest)
        if handler is None and (path[-1:] == "/" or "//" in path):
            handler = self.inference.get("/" + "/".join(filter(None, path.split("/"))))
        return None if handler is None else (handler, function)

    async def _serve(
        self, handler: Handler, function: str, scope: Any, receive: Receive, client: ClientConnection
    ) -> None:
        request: Incoming | None = None
        if client.is_full:  # with answers to the connection's earlier requests
            await client.drain()
        try:
            caller = await self._guard.authorize(scope, NEEDS)
            request = Incoming(scope, receive, caller, client.take_body)
            request.name = function
            answering = await handler(request)
            await answering(client.attach())
            return
        except ClientLeft:
            return
        except asyncio.CancelledError:
            if client.has_started or not stopping():
                raise
            stopped = RouterStops()  # the server would answer 500 without an envelope
            fault, headers = stopped.fault(), stopped.headers
        except RequestError as error:
            fault, headers = fault_of(error, request.caller if request else None), error.headers
        except Exception as error:
            if client.has_started:
                raise  # the server closes the connection
            fault, headers = internal_error(error), ()
        await self._rejections.answer(scope, fault, headers, request.id if request else "").send(client)


def _below(root_path: str, scope: Any) -> Any:
    """Return a request without the path below which a proxy serves the router; unchanged if the proxy removed it."""
    path, rest = scope["path"], scope["path"].removeprefix(root_path)
    return {**scope, "path": rest or "/"} if rest != path and rest[:1] in ("", "/") else scope


async def _send_empty(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
