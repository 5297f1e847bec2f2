"""The router's ASGI application: inference by a table of paths, everything else by the framework.

A framework's routing, guards and conversions cost more than a warm request itself. Rights and errors are the same for
both: `access/auth.py` and `rejections.py`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from litestar import Litestar
from litestar.types import Receive, Send

from cortex.platform.api_keys import Right
from cortex.platform.serving.client_connection import client_of
from cortex.router.access.auth import AuthGuard
from cortex.router.errors import RequestError
from cortex.router.rejections import Rejections, fault_of, internal_error, send_whole, wrong_method
from cortex.router.request.http_answer import Answering
from cortex.router.request.incoming import ClientLeft, Incoming

Handler = Callable[[Incoming], Awaitable[Answering]]
"""Reads a request, and returns what answers it. Raises RequestError or ClientLeft."""

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
            await self._serve(handler, scope, receive)
        elif scope["method"] == "OPTIONS":
            allow = [(b"allow", f"OPTIONS, {METHOD}".encode())]
            await send({"type": "http.response.start", "status": 204, "headers": allow})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send_whole(send, self._rejections.answer(scope, wrong_method(scope["path"], scope["method"])))

    def _handler(self, path: str) -> Handler | None:
        handler = self.inference.get(path)
        if handler is None and (path[-1:] == "/" or "//" in path):
            handler = self.inference.get("/" + "/".join(filter(None, path.split("/"))))
        return handler

    async def _serve(self, handler: Handler, scope: Any, receive: Receive) -> None:
        client, request = client_of(scope), None
        if client.is_full:  # with answers to the connection's earlier requests
            await client.drain()
        try:
            request = Incoming(scope, receive, await self._guard.authorize(scope, NEEDS))
            answering = await handler(request)
            await answering(client.attach())
            return
        except ClientLeft:
            return
        except RequestError as error:
            fault, headers = fault_of(error, request.caller if request else None), error.headers
        except Exception as error:
            if client.has_started:
                raise  # the server closes the connection
            fault, headers = internal_error(error), ()
        await self._rejections.answer(scope, fault, headers, request.id if request else "").send(client)
