"""What a listener bears of a connection: raw bytes against a real server with short clocks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from cortex.platform.serving import http_limits
from cortex.platform.serving.http_limits import LimitedProtocol
from tests.support.stack import free_port

LONG = b"x" * 4_000_000


class Quick(LimitedProtocol):
    head_s, body_s, body_pace, read_s = 0.3, 0.3, 1024, 0.3


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of what was sent; `/long` with much, `/patient` after a while."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    if scope["path"] == "/patient":
        await asyncio.sleep(0.8)
    body = LONG if scope["path"] == "/long" else str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(protocol: type[asyncio.Protocol]) -> AsyncIterator[int]:
    port = free_port()
    config = uvicorn.Config(app, port=port, http=protocol, lifespan="off", log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    server.config.load()
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn tells nobody)
        await asyncio.sleep(0)
    try:
        yield port
    finally:
        server.should_exit = server.force_exit = True
        await task


async def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send pieces, and return all that comes back until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(asyncio.wait_for(reader.read(), 5))
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        return await answer
    except ConnectionError:
        return b""  # cut while we were still sending: the last words may be lost
    finally:
        writer.close()


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


CLOSE = b"Connection: close\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE, 200),
        (b"GET /" + b"a" * (http_limits.URL_BYTES + 1) + b" HTTP/1.1\r\nHost: x\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * (http_limits.HEADERS + 1), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * (http_limits.HEAD_BYTES + 1) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 300_000, 431),
        (b"GET / HTTP/1.1\r\nA\x00b: c\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=["fine", "long-url", "many-headers", "long-header", "endless-header", "nul", "tls-to-a-plain-port"],
)
async def test_a_head_has_a_size(head: bytes, expected: int) -> None:
    async with serving(LimitedProtocol) as port:
        assert status(await talk(port, head + b"\r\n")) in (expected, 0 if expected != 200 else 200)


@pytest.mark.parametrize(
    "pieces",
    [(), (b"GET / HTTP/1.1\r\n",), (b"GET / HT", b"TP/1.1\r\nA: b\r\n", *([b"A: b\r\n"] * 6))],
    ids=["nothing", "half-a-head", "a-header-now-and-then"],
)
async def test_a_head_has_a_time(pieces: tuple[bytes, ...]) -> None:
    async with serving(Quick) as port:
        assert status(await talk(port, *pieces, pause_s=0.08)) in (408, 0)


async def test_a_body_has_a_pace_and_who_keeps_it_is_served() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 12000\r\n" + CLOSE + b"\r\n"

    async with serving(Quick) as port:
        slow, steady = await asyncio.gather(
            talk(port, head, *([b"x"] * 10), pause_s=0.1), talk(port, head, *([b"x" * 1000] * 12), pause_s=0.06)
        )

    assert status(slow) in (408, 0)
    assert (status(steady), steady[-5:]) == (200, b"12000")


async def test_a_client_that_waits_for_its_answer_is_not_called_slow() -> None:
    async with serving(Quick) as port:
        answer = await talk(port, b"GET /patient HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")

    assert status(answer) == 200


async def test_a_client_that_does_not_read_its_answer_loses_it() -> None:
    async with serving(Quick) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.8)
        got = b""
        with pytest.raises(ConnectionError):
            while piece := await asyncio.wait_for(reader.read(65536), 5):
                got += piece
            raise ConnectionResetError
        writer.close()

    assert len(got) < len(LONG)


async def test_one_connection_serves_many_requests_however_long_it_lives() -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"

    async with serving(Quick) as port:
        answers = await talk(port, request, request, request, request.replace(b"Host: x\r\n", CLOSE), pause_s=0.2)

    assert answers.count(b"200 OK") == 4
