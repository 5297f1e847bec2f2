"""HEAD, and clients of HTTP/1.0, on a real listener."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from cortex.platform.serving import listener
from tests.support.stack import free_port


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers GET: `/stream` in pieces of no known length, `/endless` until the client leaves, else at once."""
    status = 200 if scope["method"] == "GET" else 405
    if scope["path"] not in ("/stream", "/endless"):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"whole"})
        return
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/event-stream")]})
    more = True
    while more:
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        more = scope["path"] == "/endless"
        if more and (await receive())["type"] == "http.disconnect":
            return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    port = free_port()
    server = uvicorn.Server(listener.config(app, f"127.0.0.1:{port}", lifespan="off"))
    server.config.load()
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn reports no start)
        await asyncio.sleep(0)
    try:
        yield port
    finally:
        server.should_exit = server.force_exit = True
        await task


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of an answer, which ends with its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("path", [b"/", b"/stream", b"/endless"])
async def test_head_is_answered_as_get_without_a_body(path: bytes) -> None:
    async with serving() as port:
        head, body = await ask(port, b"HEAD %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)

    assert head.startswith(b"http/1.1 200")
    assert body == b""


async def test_head_has_the_length_that_get_has() -> None:
    async with serving() as port:
        head, _ = await ask(port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert b"content-length: 5" in head


@pytest.mark.parametrize(("path", "expected"), [(b"/", b"whole"), (b"/stream", b"data: x\n\n")])
async def test_an_answer_to_http_1_0_is_unframed_and_ends_with_its_connection(path: bytes, expected: bytes) -> None:
    async with serving() as port:
        head, body = await ask(port, b"GET %b HTTP/1.0\r\nHost: x\r\n\r\n" % path)

    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == expected


async def test_a_stream_to_http_1_1_is_framed_as_before() -> None:
    async with serving() as port:
        head, body = await ask(port, b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert b"transfer-encoding: chunked" in head
    assert body == b"9\r\ndata: x\n\n\r\n0\r\n\r\n"
