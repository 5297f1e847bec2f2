"""Limits of HTTP connections: raw bytes to a real server with short time limits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
import uvicorn.server
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.platform.serving import http_limits
from cortex.platform.serving.connections import Connections
from cortex.platform.serving.http_limits import LimitedProtocol
from tests.support.stack import free_port
from tests.support.until import until

LONG = b"x" * 32_000_000
"""More than the kernel holds for both ends of a connection."""


class Quick(LimitedProtocol):
    head_s, body_s, body_pace, read_s, linger_s = 0.3, 0.3, 1024, 0.3, 0.3


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of what was sent; `/long` with much, `/patient` after a while, `/closed` without it."""
    length, more = 0, scope["path"] != "/closed"
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
async def serving(
    protocol: type[asyncio.Protocol] = Quick, connections: Connections | None = None
) -> AsyncIterator[int]:
    port = free_port()
    config = uvicorn.Config(app, port=port, http=protocol, lifespan="off", log_config=None, access_log=False, ws="none")
    config.connections = connections or Connections()  # type: ignore[attr-defined]
    server = uvicorn.Server(config)
    server.config.load()
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
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
async def test_a_head_over_the_size_limit_is_rejected(head: bytes, expected: int) -> None:
    async with serving(LimitedProtocol) as port:
        assert status(await talk(port, head + b"\r\n")) in (expected, 0 if expected != 200 else 200)


@pytest.mark.parametrize(
    "pieces",
    [(), (b"GET / HTTP/1.1\r\n",), (b"GET / HT", b"TP/1.1\r\nA: b\r\n", *([b"A: b\r\n"] * 6))],
    ids=["nothing", "half-a-head", "a-header-now-and-then"],
)
async def test_a_head_over_the_time_limit_is_rejected(pieces: tuple[bytes, ...]) -> None:
    async with serving(Quick) as port:
        assert status(await talk(port, *pieces, pause_s=0.08)) in (408, 0)


async def test_a_body_slower_than_the_pace_is_rejected_and_others_are_served() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 12000\r\n" + CLOSE + b"\r\n"

    async with serving(Quick) as port:
        slow, steady = await asyncio.gather(
            talk(port, head, *([b"x"] * 10), pause_s=0.1), talk(port, head, *([b"x" * 1000] * 12), pause_s=0.06)
        )

    assert status(slow) in (408, 0)
    assert (status(steady), steady[-5:]) == (200, b"12000")


async def test_a_client_waiting_for_its_answer_does_not_time_out() -> None:
    async with serving(Quick) as port:
        answer = await talk(port, b"GET /patient HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")

    assert status(answer) == 200


async def test_a_client_that_does_not_read_its_answer_is_disconnected() -> None:
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


async def test_a_long_lived_connection_serves_many_requests() -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"

    async with serving(Quick) as port:
        answers = await talk(port, request, request, request, request.replace(b"Host: x\r\n", CLOSE), pause_s=0.2)

    assert answers.count(b"200 OK") == 4


async def test_an_unused_connection_closes_after_its_time_and_one_timer_serves_all_pauses() -> None:
    timers: list[float] = []

    class Watched(Quick):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.timeout_keep_alive = 0.5  # type: ignore[assignment]  # uvicorn has whole seconds

        def _check_idle(self) -> None:
            super()._check_idle()
            timers.append(self.loop.time())

    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(Watched) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(request)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n0"), 5)
        answered = asyncio.get_running_loop().time()
        assert await asyncio.wait_for(reader.read(), 5) == b""  # closed
        writer.close()

    assert timers[-1] >= answered + 0.4
    assert len(timers) <= 2


async def test_a_connection_in_use_when_its_time_ends_is_closed_after_the_next_pause() -> None:
    class Brief(Quick):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.timeout_keep_alive = 0.2  # type: ignore[assignment]  # uvicorn has whole seconds

    async with serving(Brief) as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /patient HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer.count(b"200 OK") == 2


async def test_a_long_head_behind_another_request_is_rejected() -> None:
    first, lines = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (b"A: " + b"b" * 1000 + b"\r\n") * 70
    async with serving(Quick) as port:
        answer = await talk(port, first + b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + CLOSE + b"\r\n")

    assert b"200 OK" not in answer.partition(b"200 OK")[2]


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (b"2\r\nhi\r\n0\r\n\r\n", 200),
        (b"2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n", 200),
        (b"2;a=b\r\nhi\r\n0\r\n\r\n", 200),
        (b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n", 200),
        (b"0\r\n" + b"a: b\r\n" * (http_limits.HEADERS + 1) + b"\r\n", 431),
        (b"0\r\na: " + b"b" * (http_limits.HEAD_BYTES + 1) + b"\r\n\r\n", 431),
        (b"0\r\na: " + b"b" * 1_000_000, 431),
        (b"2;" + b"a" * 1_000_000 + b"\r\nhi\r\n0\r\n\r\n", 431),
        ((b"1;" + b"a" * 5000 + b"\r\nx\r\n") * 100 + b"0\r\n\r\n", 431),
    ],
    ids=[
        "fine", "a-trailer", "an-extension", "chunks-of-one-byte",
        "many-trailers", "long-trailer", "endless-trailer", "long-extension", "many-extensions",
    ],
)  # fmt: skip
async def test_the_framing_of_a_chunked_body_is_bounded(end: bytes, expected: int) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED + end)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.close()

    assert status(answer) == expected


async def test_a_trailer_never_becomes_a_header() -> None:
    readings: list[list[tuple[bytes, bytes]]] = []

    class Watching(Quick):
        def on_message_complete(self) -> None:
            readings.append(list(self.scope["headers"]))
            super().on_message_complete()

    async with serving(Watching) as port:
        await talk(port, CHUNKED.replace(b"Host: x\r\n", CLOSE) + b"0\r\nauthorization: Bearer x\r\n\r\n")

    assert [name for name, _ in readings[0]] == [b"connection", b"transfer-encoding"]


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\r\n",),
        tuple([b"\r\n"] * 12),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *([b"\r\n"] * 12)),
        (CHUNKED, b"2\r\nh", *([b""] * 5)),
        (CHUNKED, b"2;", *([b"a"] * 12)),
        (CHUNKED, b"2\r\nhi\r\n0\r\na: ", *([b"b"] * 12)),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", *([b""] * 5)),
    ],
    ids=["one-empty-line", "empty-lines", "after-an-answer", "chunk", "extension", "trailer", "pipelined-half-head"],
)
async def test_the_clock_runs_until_a_request_is_complete(pieces: tuple[bytes, ...]) -> None:
    async with serving() as port:
        answer = await talk(port, *pieces, pause_s=0.08)

    assert answer.count(b"HTTP/1.1 408") == 1


async def test_endless_empty_lines_time_out() -> None:
    async with serving(LimitedProtocol) as port:
        assert status(await talk(port, b"\r\n" * http_limits.HEAD_BYTES)) in (431, 0)


async def test_a_connection_with_an_unread_body_is_closed_after_the_answer() -> None:
    head = b"POST /closed HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"

    async with serving() as port:
        answer = await talk(port, head + b"x" * 1000, *([b"x"] * 20), pause_s=0.01)
        fast = await talk(port, head + b"x" * 9_000_000)

    for one in (answer, fast):
        assert status(one) == 200
        assert b"connection: close" in one


async def test_a_body_sent_after_its_head_keeps_the_connection_open() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"

    async with serving() as port:
        answers = await talk(port, head, b"hi", head.replace(b"Host: x\r\n", CLOSE), b"hi", pause_s=0.1)

    assert answers.count(b"200 OK") == 2


async def test_the_number_of_pipelined_requests_is_bounded() -> None:
    request = b"GET /patient HTTP/1.1\r\nHost: x\r\n\r\n"

    async with serving(LimitedProtocol) as port:
        many = await talk(port, request * (http_limits.PIPELINED + 5))
        few = await talk(port, request + request.replace(b"Host: x\r\n", CLOSE))

    assert many.count(b"200 OK") == 0
    assert few.count(b"200 OK") == 2


async def test_a_connection_over_the_limit_gets_503_and_is_served_after_one_closes() -> None:
    connections = Connections(most=2)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"

    async with serving(LimitedProtocol, connections) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        refused = await talk(port)
        for _, writer in held:
            writer.close()
        await until(lambda: not connections.total)
        served = await talk(port, request)

    assert (status(refused), status(served)) == (503, 200)
    assert connections.total == 0


async def test_unfinished_heads_over_all_connections_are_bounded_and_released() -> None:
    connections = Connections(heads_bytes=50_000)
    half = b"GET / HTTP/1.1\r\nA: " + b"b" * 30_000

    async with serving(Quick, connections) as port:
        first = asyncio.create_task(talk(port, half))
        second = asyncio.create_task(talk(port, half))
        statuses = sorted([status(await first), status(await second)])

    assert statuses == [408, 503]
    assert connections.heads == 0


# Heads that come again


LINES = st.lists(
    st.sampled_from(
        [b"Connection: keep-alive", b"X: 1", b"X: 2", b"content-type: application/json", b"Upgrade: h2c", b"A:\tb "]
    ),
    max_size=3,
)
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([b"POST /a", b"POST /b?c=%20d", b"PUT /a", b"GET /a"]),
        LINES,
        st.sampled_from([b"Content-Length: %d", b"content-length: %d", b"content-length:%d"]),
        st.binary(max_size=12),
        st.integers(1, 3),
    ),
    max_size=4,
)


@given(REQUESTS, st.data())
@settings(max_examples=60)
async def test_a_request_is_the_same_with_and_without_the_parser(requests: list[Any], data: st.DataObject) -> None:
    pieces: list[bytes] = []
    for line, headers, length, body, times in requests:
        head = b"\r\n".join([line + b" HTTP/1.1", b"Host: x", *headers, length % len(body), b"", b""])
        for _ in range(times):
            pieces.append(head + body)
            if data.draw(st.booleans(), label="another body"):
                body = data.draw(st.binary(max_size=12))
                head = b"\r\n".join([line + b" HTTP/1.1", b"Host: x", *headers, length % len(body), b"", b""])

    together = await received(pieces, on_one_connection=True)

    assert together == await received(pieces, on_one_connection=False)


async def received(pieces: list[bytes], *, on_one_connection: bool) -> list[Any]:
    """Return what an application gets of requests that each arrive in one piece."""
    requests: list[Any] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        names = ("method", "path", "raw_path", "query_string", "http_version", "headers")
        requests.append([*(scope[name] for name in names), message["body"], message["more_body"]])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(note, lifespan="off", log_config=None, access_log=False, ws="none", interface="asgi3")
    config.load()
    protocol: LimitedProtocol | None = None
    for piece in pieces:
        if protocol is None or not on_one_connection:
            protocol = LimitedProtocol(config, uvicorn.server.ServerState(), {}, asyncio.get_running_loop())
            transport = Mock(spec=asyncio.Transport)
            transport.is_closing.return_value = False
            protocol.connection_made(transport)
        number = len(requests)
        protocol.data_received(piece)
        while len(requests) == number or not protocol.cycle.response_complete:  # noqa: ASYNC110 (its task has no event)
            await asyncio.sleep(0)
    return requests


async def test_a_request_with_the_head_of_the_last_one_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    on_header = LimitedProtocol.on_header

    def note(self: LimitedProtocol, name: bytes, value: bytes) -> None:
        parsed.append(name)
        on_header(self, name, value)

    monkeypatch.setattr(LimitedProtocol, "on_header", note)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

    await received([head % n + b"x" * n for n in range(5)], on_one_connection=True)

    assert parsed == [b"Host", b"Content-Length"] * 2
