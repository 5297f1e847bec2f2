"""Two small servers for the benchmark, each a process: a worker that answers at once, and a proxy that does nothing.

python -m tests.bench.servers worker PORT
python -m tests.bench.servers proxy PORT UPSTREAM
"""

import asyncio
import sys
from typing import Any

import aiohttp
import uvicorn

CHUNKS = 100
HOLD = b"hold this stream"
"""A prompt whose stream does not end before its client leaves."""
PAUSE_S = 0.002
"""Between two chunks, so that each is read and written by itself."""
_PIECE = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'  # noqa: E501
_USAGE = b'{"prompt_tokens":10,"completion_tokens":100,"total_tokens":110}'
STREAM = [
    _PIECE % (b'{"role":"assistant","content":""}', b"null"),
    *[_PIECE % (b'{"content":" word"}', b"null")] * (CHUNKS - 2),
    _PIECE % (b"{}", b'"stop"'),
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":%b}\n\n' % _USAGE,
    b"data: [DONE]\n\n",
]
PLAIN = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"a word or two"},"finish_reason":"stop"}],"usage":%b}' % _USAGE
)
MODELS = b'{"data":[{"id":"bench/model"}]}'
"""A router that has just started wants a worker proved before its first request."""


async def worker(scope: Any, receive: Any, send: Any) -> None:
    """Answer at once, chunk by chunk when a stream is asked for."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    streams = b'"stream":true' in body.replace(b" ", b"")
    if not streams:
        answer = MODELS if scope["method"] == "GET" else PLAIN
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for chunk in STREAM:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if HOLD in body:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await asyncio.sleep(PAUSE_S)
    await send({"type": "http.response.body", "body": b""})


class Proxy:
    """ASGI in, aiohttp out, nothing in between."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._http: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {"Content-Type": "application/json"}
        async with self._http.post(self._upstream + scope["path"], data=body, headers=headers) as answer:
            lines = [(b"content-type", answer.content_type.encode())]
            await send({"type": "http.response.start", "status": answer.status, "headers": lines})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    app: Any = worker if sys.argv[1] == "worker" else Proxy(sys.argv[3])
    uvicorn.run(
        app, port=int(sys.argv[2]), log_level="error", access_log=False, lifespan="off", ws="none", interface="asgi3"
    )
