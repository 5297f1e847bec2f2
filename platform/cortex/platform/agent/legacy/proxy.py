"""Forwards inference requests through the agent to a worker of its host, for gateways of the Rust system.

Unlike the router, it does not queue, start, replay or translate. If the model is not loaded on this host, the answer is
404; otherwise request and answer are passed on unchanged. An instance is chosen and counted as in use without an
`await` in between, so the scheduler never sees a chosen instance as idle. An answer that broke off is never ended like
a complete one.
"""

import asyncio

import aiohttp
import msgspec
import structlog
from litestar.types import Receive, Scope, Send

from cortex.functions.names import LONGEST
from cortex.functions.spec import Function
from cortex.platform import untrusted, worker_http
from cortex.platform.agent.loop import Agent
from cortex.platform.keys import HostToken
from cortex.platform.record import Instance
from cortex.platform.worker_http import EVENT_BYTES, KEY_REFUSED, REDIRECTS, Unreadable

log = structlog.get_logger()

_END = b"data: [DONE]"


class Proxy:
    """Connections to this host's workers, opened and closed by `async with`."""

    def __init__(self, agent: Agent, token: HostToken) -> None:
        self._agent, self._token = agent, token
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> "Proxy":
        self._http = worker_http.session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    def exchange(self, model: str, path: str, body: bytes) -> "Exchange":
        """Return the ASGI application for one request."""
        return Exchange(self._agent, self, model, path, body)

    async def post(self, instance: Instance, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Send a request to a worker with the worker's key. Raises aiohttp.ClientError."""
        for key in self._token.worker_keys(instance.id):
            headers = {**worker_http.headers(key), "Content-Type": "application/json"}
            response = await self._http.post(instance.url + path, data=body, headers=headers, allow_redirects=False)
            if response.status not in KEY_REFUSED:
                return response
            try:
                if await worker_http.refuses_request(self._http, instance, key, response.status):
                    return response
            except BaseException:
                response.close()
                raise
            response.close()
        raise aiohttp.ClientConnectionError(f"{instance.url} rejects the key of its instance")


class Exchange:
    """One request: a separate ASGI application, which notices at once when the client disconnects."""

    def __init__(self, agent: Agent, proxy: Proxy, model: str, path: str, body: bytes) -> None:
        self._agent, self._proxy = agent, proxy
        self._model, self._path, self._body = model, path, body
        self._head_sent = False
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, until it ends or the client disconnects."""
        self._send = send
        work = asyncio.create_task(self._serve())
        disconnect = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, disconnect):
                task.cancel()
            await asyncio.gather(work, disconnect, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _serve(self) -> None:
        """Answer the request:

        (1) No instance is ready: 404, with the text that callers expect.
        (2) The worker answers: its answer.
        (3) The worker breaks off or takes too long: an error, inside the stream if it has begun.
        """
        ready = self._agent.ready(self._model)
        if ready is None:  # (1)
            await self._fail(404, f"model '{self._model[:LONGEST]}' not loaded on this neuron")
            return
        instance, function = ready
        with self._agent.track(instance):
            try:
                async with asyncio.timeout(function.request_timeout_s):
                    await self._forward(instance)  # (2)
            except (*worker_http.BREAKS, ConnectionError) as error:  # (3)
                await self._break_off(502, function, f"broke off: {worker_http.failure(error)}")
            except Unreadable as error:
                await self._break_off(502, function, f"sent an answer that cannot be read: {error}")
            except TimeoutError:
                await self._break_off(504, function, f"took longer than {function.request_timeout_s:g} s")

    async def _forward(self, instance: Instance) -> None:
        response = await self._proxy.post(instance, self._path, self._body)
        try:
            if response.status in REDIRECTS:
                raise Unreadable(f"it is a redirect ({response.status}), which is not followed")
            content_type = response.headers.get("Content-Type", "application/json")
            if response.status == 200 and content_type.startswith("text/event-stream"):
                await self._stream(response)
                return
            # 401 would mean that the caller's own token is wrong.
            status = 403 if response.status in KEY_REFUSED else response.status
            await self._whole(status, content_type, await worker_http.whole(response))
        finally:
            response.close()

    async def _stream(self, response: aiohttp.ClientResponse) -> None:
        """Forward a stream in whole events, so that an error can follow any of them."""
        rest, end = bytearray(), b""
        async for chunk in worker_http.pieces(response):
            start = max(0, len(rest) - 3)  # a separator may be cut in two
            rest += chunk
            end = (end + chunk)[-64:]
            if events := _whole_events(rest, start):
                await self._head(200, "text/event-stream; charset=utf-8")
                await self._body_part(bytes(rest[:events]))
                del rest[:events]
            elif len(rest) > EVENT_BYTES:
                raise worker_http.too_long(EVENT_BYTES)
        if not end.rstrip().endswith(_END):
            raise ConnectionError("its stream ended without an end marker")
        await self._head(200, "text/event-stream; charset=utf-8")
        await self._body_part(bytes(rest), last=True)

    # To the client.

    async def _break_off(self, status: int, function: Function, reason: str) -> None:
        text = f"the worker of '{function.id}' {reason}"
        log.warning("relay_failed", function=function.id, why=reason)
        if not self._head_sent:
            await self._fail(status, text)
            return
        error = {"error": {"message": text, "type": "server_error", "param": None, "code": "worker_error"}}
        await self._body_part(b"data: " + msgspec.json.encode(error) + b"\n\n", last=True)

    async def _fail(self, status: int, text: str) -> None:
        await self._whole(status, "application/json", msgspec.json.encode({"error": text}))

    async def _whole(self, status: int, content_type: str, body: bytes) -> None:
        await self._head(status, content_type, [(b"content-length", str(len(body)).encode())])
        await self._body_part(body, last=True)

    async def _head(self, status: int, content_type: str, more: list[tuple[bytes, bytes]] | None = None) -> None:
        if self._head_sent:
            return
        self._head_sent = True
        kind = untrusted.name(content_type, LONGEST).encode("latin-1", "replace")
        headers = [(b"content-type", kind), *(more or [])]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body_part(self, body: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


def _whole_events(wire: bytearray, start: int) -> int:
    """Return the number of bytes in whole events. The first separator is at `start` or later."""
    lf, crlf = wire.rfind(b"\n\n", start), wire.rfind(b"\r\n\r\n", start)
    return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
