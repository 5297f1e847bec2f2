"""Answers that are written without ASGI messages, byte by byte on a real listener."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from cortex.platform.serving import listener
from cortex.platform.serving.client_connection import ClientConnection, client_of
from tests.support.stack import free_port

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
Answer = Callable[[ClientConnection], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve every request with `answer`; yield a connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope)
        while (await receive())["more_body"]:
            pass
        await answer(client.attach())

    async with serving_app(app) as connection:
        yield connection


@asynccontextmanager
async def serving_app(app: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve with an application; yield a connection."""
    port = free_port()
    server = uvicorn.Server(listener.config(app, f"127.0.0.1:{port}", lifespan="off", date_header=False))
    server.config.load()
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn reports no start)
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = server.force_exit = True
        await task


async def whole(client: ClientConnection) -> None:
    await client.send(200, [(b"x", b"y")], b"whole")


async def pieces(client: ClientConnection) -> None:
    client.start(200, [(b"x", b"y")])
    client.write(b"")
    client.write(b"one")
    client.write(b"three")
    await client.end()


class LongWork:
    """An answer that begins, and ends only when its client is lost."""

    def __init__(self) -> None:
        self.begun, self.lost = asyncio.Event(), asyncio.Event()

    async def __call__(self, client: ClientConnection) -> None:
        client.on_lost = self.lost.set
        self.begun.set()
        await self.lost.wait()


WHOLE = b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 5\r\n\r\nwhole"
PIECES = b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"


@pytest.mark.parametrize(("answer", "expected"), [(whole, WHOLE), (pieces, PIECES)])
async def test_a_connection_carries_one_answer_after_another(answer: Answer, expected: bytes) -> None:
    async with serving(answer) as (reader, writer):
        for _ in range(3):
            writer.write(REQUEST)
            assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected


async def test_requests_sent_together_are_answered_in_their_order() -> None:
    async with serving(pieces) as (reader, writer):
        writer.write(REQUEST * 3)

        assert await asyncio.wait_for(reader.readexactly(3 * len(PIECES)), 5) == 3 * PIECES


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (whole, WHOLE.replace(b"content-length: 5", b"content-length: 5\r\nconnection: close")),
        (pieces, b"HTTP/1.1 200 OK\r\nx: y\r\nconnection: close\r\n\r\nonethree"),
    ],
)
async def test_an_answer_to_http_1_0_ends_with_its_connection(answer: Answer, expected: bytes) -> None:
    async with serving(answer) as (reader, writer):
        writer.write(REQUEST.replace(b"1.1", b"1.0"))

        assert await asyncio.wait_for(reader.read(), 5) == expected


async def test_a_client_that_asks_for_it_gets_a_closed_connection() -> None:
    async with serving(whole) as (reader, writer):
        writer.write(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))

        answered = await asyncio.wait_for(reader.read(), 5)

    assert answered == WHOLE.replace(b"content-length: 5", b"content-length: 5\r\nconnection: close")


@pytest.mark.parametrize("begins", [True, False])
async def test_a_disconnect_is_reported_at_once_and_what_follows_goes_nowhere(begins: bool) -> None:
    waits, lost, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(client: ClientConnection) -> None:
        client.on_lost = lost.set
        if begins:
            client.start(200, [])
        waits.set()
        await lost.wait()
        assert client.is_lost
        if not begins:
            client.start(200, [])
        client.write(b"too late")
        await client.end()
        await client.drain()
        over.set()

    async with serving(answer) as (_, writer):
        writer.write(REQUEST)
        await asyncio.wait_for(waits.wait(), 5)
        began = asyncio.get_running_loop().time()
        writer.transport.abort()
        await asyncio.wait_for(over.wait(), 5)

        assert asyncio.get_running_loop().time() - began < 0.25


async def test_a_client_that_left_while_its_request_was_read_is_lost_although_it_sent_another() -> None:
    arrived, lost = asyncio.Event(), list[bool]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope)
        await receive()
        arrived.set()
        while not client._protocol.transport.is_closing():  # noqa: ASYNC110 (that is what is waited for)
            await asyncio.sleep(0)
        lost.append(client.attach().is_lost)

    async with serving_app(app) as (_, writer):
        writer.write(REQUEST * 2)
        await asyncio.wait_for(arrived.wait(), 5)
        writer.transport.abort()
        async with asyncio.timeout(5):
            while not lost:  # noqa: ASYNC110
                await asyncio.sleep(0)

    assert lost == [True]


async def test_a_client_that_leaves_with_a_second_request_in_line_is_lost_at_once() -> None:
    work = LongWork()

    async with serving(work) as (_, writer):
        writer.write(REQUEST)
        await asyncio.wait_for(work.begun.wait(), 5)
        writer.write(REQUEST)
        await writer.drain()
        writer.close()

        await asyncio.wait_for(work.lost.wait(), 5)


async def test_what_is_not_http_after_a_request_ends_its_work_at_once() -> None:
    work = LongWork()

    async with serving(work) as (reader, writer):
        writer.write(REQUEST)
        await asyncio.wait_for(work.begun.wait(), 5)
        writer.write(b"\x00garbage\r\n\r\n")

        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 400")
        assert work.lost.is_set()


async def test_a_request_and_its_client_are_no_cycle_of_references() -> None:
    clients: list[weakref.ref[Any]] = []

    async def answer(client: ClientConnection) -> None:
        clients.append(weakref.ref(client._cycle))
        await whole(client)

    gc.disable()
    try:
        async with serving(answer) as (reader, writer):
            for _ in range(2):  # the connection has its newest request
                writer.write(REQUEST)
                await asyncio.wait_for(reader.readexactly(len(WHOLE)), 5)
            await asyncio.sleep(0)
            first = clients[0]()
    finally:
        gc.enable()

    assert first is None


async def test_an_answer_that_has_ended_reports_no_disconnect() -> None:
    lost: list[int] = []
    clients: list[ClientConnection] = []

    async def answer(client: ClientConnection) -> None:
        client.on_lost = lambda: lost.append(len(clients))
        clients.append(client)
        if len(clients) == 1:
            await whole(client)

    async with serving(answer) as (reader, writer):
        writer.write(REQUEST)
        await asyncio.wait_for(reader.readexactly(len(WHOLE)), 5)
        writer.write(REQUEST)  # which gets no answer, so the server closes the connection
        await asyncio.wait_for(reader.read(), 5)

    assert len(clients) == 2
    assert lost in ([], [2])


async def test_a_client_that_does_not_read_is_full_and_says_when_it_has_read() -> None:
    full, readable = asyncio.Event(), asyncio.Event()

    async def answer(client: ClientConnection) -> None:
        client.on_writable = readable.set
        client.start(200, [])
        while not client.is_full:
            client.write(b"x" * 65536)
            await asyncio.sleep(0)
        full.set()
        await client.drain()
        await client.end()

    async with serving(answer) as (reader, writer):
        writer.write(REQUEST)
        await asyncio.wait_for(full.wait(), 20)
        assert not readable.is_set()
        answered = b""
        while not answered.endswith(b"0\r\n\r\n"):
            answered = answered[-8:] + await asyncio.wait_for(reader.read(1 << 20), 20)

        assert readable.is_set()


async def test_a_header_with_a_line_break_is_never_sent() -> None:
    error: list[Exception] = []

    async def answer(client: ClientConnection) -> None:
        try:
            client.start(200, [(b"x", b"y\r\nset-cookie: z")])
        except ValueError as broken:
            error.append(broken)
            raise

    async with serving(answer) as (reader, writer):
        writer.write(REQUEST)
        answered = await asyncio.wait_for(reader.read(), 5)

    assert len(error) == 1
    assert b"set-cookie" not in answered


UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n"


async def test_a_client_that_is_held_back_is_not_read_and_its_disconnect_is_noticed() -> None:
    lost, held, sizes = asyncio.Event(), asyncio.Event(), list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope)
        sizes.append(len((await receive())["body"]))
        client.attach()
        client.on_lost = lost.set
        client.hold_back()
        held.set()
        await lost.wait()

    async with serving_app(app) as (_, writer):
        writer.write(UPLOAD + b"x" * 100)
        await asyncio.wait_for(held.wait(), 5)
        writer.close()
        await asyncio.wait_for(lost.wait(), 5)

    assert sizes == [100]


async def test_a_client_that_is_received_from_again_is_read_on() -> None:
    held, bodies = asyncio.Event(), list[bytes]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope)
        bodies.append((await receive())["body"])
        client.attach()
        client.hold_back()
        held.set()
        bodies.append((await receive())["body"])
        await client.send(200, [], b"read")

    async with serving_app(app) as (reader, writer):
        writer.write(UPLOAD + b"one")
        await asyncio.wait_for(held.wait(), 5)
        writer.write(b"two")
        assert await asyncio.wait_for(reader.readuntil(b"read"), 5)

    assert bodies == [b"one", b"two"]
