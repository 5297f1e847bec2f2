"""The router's ASGI application: inference by a table of paths, everything else by the framework.

A framework's routing, guards and conversions cost more than a warm request itself. Rights and errors are the same for
both: `access/auth.py` and `rejections.py`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar import Litestar
from litestar.types import ASGIApp, Receive, Send

from cortex.platform.api_keys import Right
from cortex.router.access.auth import AuthGuard
from cortex.router.errors import RequestError
from cortex.router.rejections import Rejections, fault_of, internal_error, wrong_method
from cortex.router.request.incoming import ClientLeft, Incoming

Handler = Callable[[Incoming], Awaitable[ASGIApp]]
"""Reads a request, and returns the application that answers it. Raises RequestError or ClientLeft."""

METHOD, NEEDS = "POST", Right.INFERENCE
"""Of every path in the table."""


class Dispatcher:
    """The application. `inference` is the table; `rest` has all other routes, and the lifespan."""

    def __init__(
        self, inference: Mapping[str, Handler], rest: Litestar, guard: AuthGuard, rejections: Rejections
    ) -> None:
        self.inference, self.rest = inference, rest
        self._guard, self._rejections = guard, rejections

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        handler = self._handler(scope["path"]) if scope["type"] == "http" else None
        if handler is None:
            await self.rest(scope, receive, send)
        elif scope["method"] == METHOD:
            await self._serve(handler, scope, receive, send)
        elif scope["method"] == "OPTIONS":
            allow = [(b"allow", f"OPTIONS, {METHOD}".encode())]
            await send({"type": "http.response.start", "status": 204, "headers": allow})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._rejections.send(scope, send, wrong_method(scope["path"], scope["method"]))

    def _handler(self, path: str) -> Handler | None:
        handler = self.inference.get(path)
        if handler is None and (path[-1:] == "/" or "//" in path):
            handler = self.inference.get("/" + "/".join(filter(None, path.split("/"))))
        return handler

    async def _serve(self, handler: Handler, scope: Any, receive: Receive, send: Send) -> None:
        request: Incoming | None = None
        try:
            request = Incoming(scope, receive, await self._guard.authorize(scope, NEEDS))
            app = await handler(request)
            await app(scope, receive, send)
        except ClientLeft:
            return
        except RequestError as error:
            caller, id = (request.caller, request.id) if request else (None, "")
            await self._rejections.send(scope, send, fault_of(error, caller), error.headers, id)
        except Exception as error:
            try:
                await self._rejections.send(scope, send, internal_error(error), id=request.id if request else "")
            except RuntimeError:  # the answer has begun, so the server closes the connection
                raise error from None
