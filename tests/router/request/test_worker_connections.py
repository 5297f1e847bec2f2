"""Connections to workers, byte by byte: what is an answer, what breaks one, and when a connection is used again."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.serving.known_heads import KnownHeads
from cortex.router.dialects.core.large_object import Body, LargeObject
from cortex.router.request.worker_connections import HEADERS, SILENT_BYTES, WorkerConnection, WorkerConnections
from cortex.router.request.worker_response import ConnectionFailed, ConnectionWasReset, NotConnected, WorkerResponse
from tests.support.stack import free_port

Talk = Callable[["Peer"], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Peer:
    """The worker's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """Read a request to its end and return it."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await self._reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> None:
        """Wait until the other end has closed the connection."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            return


class Workers:
    """A listener whose connections all talk the same way; it counts them."""

    url = ""
    connections = 0


@asynccontextmanager
async def workers(talk: Talk) -> AsyncIterator[Workers]:
    state = Workers()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        try:
            await talk(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield state


@asynccontextmanager
async def connections(*, idle_s: float = 30, read_bytes: int = 1024) -> AsyncIterator[WorkerConnections]:
    pool = WorkerConnections(idle_s=idle_s, connect_s=5, read_bytes=read_bytes)
    try:
        yield pool
    finally:
        await pool.close()


async def post(result: WorkerConnections, url: str, body: Body = b"{}") -> tuple[int, bytes]:
    response = await result.post(url, "/v1/x", body, (("Authorization", "Bearer k"),))
    return response.status, await read(response)


async def read(response: WorkerResponse) -> bytes:
    try:
        return b"".join([chunk async for chunk in response.iter_any()])
    finally:
        response.close()


def answers(*answer: bytes) -> Talk:
    """Send these bytes in answer to every request, each piece by itself, and go on."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            for piece in answer:
                await peer.send(piece)
                await asyncio.sleep(0)

    return talk


def answers_once(answer: bytes) -> Talk:
    """Send these bytes in answer to the first request, and close."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    return talk


async def test_a_request_is_sent_whole_and_a_connection_is_used_again() -> None:
    requests: list[bytes] = []

    async def talk(peer: Peer) -> None:
        while True:
            requests.append(await peer.request())
            await peer.send(WHOLE)

    async with workers(talk) as there, connections() as pool:
        results = [await post(pool, there.url, body) for body in (b"{}", b"x" * 300_000)]

    assert results == [(200, b"hello")] * 2
    assert there.connections == 1
    host = there.url.removeprefix("http://").encode()
    assert requests[0] == (
        b"POST /v1/x HTTP/1.1\r\nHost: %b\r\nAuthorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}" % host
    )
    assert requests[1].endswith(b"\r\n\r\n" + b"x" * 300_000)


async def test_an_object_in_pieces_is_sent_whole() -> None:
    text = b'"%b"' % (b"word " * 1_000_000)
    sent = LargeObject({"model": (b'"m"',), "messages": (b"[", memoryview(text), b"]")})
    read: list[bytes] = []

    async def talk(peer: Peer) -> None:
        read.append(await peer.request())
        await peer.send(WHOLE)

    async with workers(talk) as there, connections() as pool:
        assert await post(pool, there.url, sent) == (200, b"hello")

    assert read[0].partition(b"\r\n\r\n")[2] == bytes(sent)


@given(st.data())
async def test_an_answer_split_anywhere_is_the_same(data: st.DataObject) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    async with workers(answers(*pieces)) as there, connections() as pool:
        results = [await post(pool, there.url) for _ in range(2)]

    assert results == [(200, b"hello world")] * 2
    assert there.connections == 2  # after chunks a server may close its end unannounced


@pytest.mark.parametrize(("header", "connections_made"), [(b"", 1), (b"Connection: close\r\n", 2)])
async def test_after_chunks_a_connection_is_used_again_if_the_worker_keeps_it(
    header: bytes, connections_made: int
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % header
    async with workers(answers(answer)) as there, connections() as pool:
        for _ in range(2):
            assert await read(await pool.post(there.url, "/v1/x", b"{}", (), keeps_chunked=True)) == b"hello"

    assert there.connections == connections_made


async def test_an_answer_that_is_read_whole_wakes_its_reader_once() -> None:
    connection = WorkerConnection("http://w", Mock(spec=WorkerConnections, heads=KnownHeads()), 1 << 18)
    connection.connection_made(Mock(spec=asyncio.Transport))
    response = connection.send(b"", b"", is_read_whole=True)
    reading = asyncio.ensure_future(response.head())
    await asyncio.sleep(0)

    for data in (WHOLE[:-5], WHOLE[-5:-2]):
        connection.data_received(data)
        await asyncio.sleep(0)
        assert not reading.done()
    connection.data_received(WHOLE[-2:])

    await asyncio.wait_for(reading, 5)
    assert (response.status, await response.whole(10)) == (200, b"hello")


@pytest.mark.parametrize("size", [100, 5000], ids=["breaks off", "is large"])
async def test_an_answer_that_is_read_whole_wakes_its_reader_when_it(size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    async with workers(answers_once(head + b"x" * size)) as there, connections(read_bytes=1024) as pool:
        response = await asyncio.wait_for(pool.post(there.url, "/", b"{}", (), is_read_whole=True), 10)

        assert response.status == 200
        with pytest.raises(ConnectionFailed):
            await response.whole(1 << 20)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["until the end", "HTTP/1.0", "close"],
)
async def test_a_connection_that_the_worker_closes_is_not_used_again(answer: bytes) -> None:
    async with workers(answers_once(answer)) as there, connections() as pool:
        results = [await post(pool, there.url) for _ in range(2)]

    assert results == [(200, b"hello")] * 2
    assert there.connections == 2


async def test_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n"
    async with workers(answers(interim + WHOLE)) as there, connections() as pool:
        result = await post(pool, there.url)

    assert result == (200, b"hello")


@pytest.mark.parametrize("extra", [WHOLE, b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"])
async def test_bytes_after_an_answer_never_begin_the_next_one(extra: bytes) -> None:
    async with workers(answers(WHOLE + extra)) as there, connections() as pool:
        results = [await post(pool, there.url) for _ in range(3)]

    assert results == [(200, b"hello")] * 3
    assert there.connections == 3


async def test_a_connection_that_closed_in_a_pause_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.router.request.worker_connections.PAUSE_S", 0.0)
    closed = threading.Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            peer, _address = listener.accept()
            peer.recv(65536)
            peer.sendall(WHOLE)
            peer.close()
            closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        async with connections() as pool:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            first = await post(pool, url)
            assert closed.wait(10)  # blocks the loop, which must not see the end of the connection
            second = await post(pool, url)

    assert (first, second) == ((200, b"hello"), (200, b"hello"))


async def test_bytes_on_an_unused_connection_close_it() -> None:
    late = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(WHOLE)
        await late.wait()
        await peer.send(WHOLE)
        await peer.closed()
        closed.set()

    closed = asyncio.Event()
    async with workers(talk) as there, connections() as pool:
        await post(pool, there.url)
        late.set()

        await asyncio.wait_for(closed.wait(), 10)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["short", "no last chunk", "no chunk"],
)
async def test_a_body_that_breaks_off_is_a_failure(answer: bytes) -> None:
    async with workers(answers_once(answer)) as there, connections() as pool:
        response = await pool.post(there.url, "/", b"{}", ())

        with pytest.raises(ConnectionFailed, match=r"its answer .* not HTTP"):
            await read(response)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"SSH-2.0-x\r\n", b"HTTP/1.1 101 Up\r\n\r\n"]
)
async def test_no_answer_or_none_in_http_is_a_failure(answer: bytes) -> None:
    async with workers(answers_once(answer)) as there, connections() as pool:
        with pytest.raises(ConnectionFailed):
            await post(pool, there.url)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (8 * SILENT_BYTES),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (HEADERS + 2),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * (8 * SILENT_BYTES),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * (HEADERS + 2),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * (8 * SILENT_BYTES),
    ],
    ids=["header", "headers", "trailer", "trailers", "chunk extension"],
)
async def test_what_never_ends_is_cut_off(answer: bytes) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.closed()

    async with workers(talk) as there, connections() as pool:
        with pytest.raises(ConnectionFailed):
            await asyncio.wait_for(post(pool, there.url), 10)


async def test_a_reset_before_an_answer_is_told_from_an_orderly_end() -> None:
    async def reset(peer: Peer) -> None:
        await peer.request()
        peer.writer.transport.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
        peer.writer.close()

    async def end(peer: Peer) -> None:
        await peer.request()

    async with workers(reset) as there, connections() as pool:
        with pytest.raises(ConnectionWasReset):
            await post(pool, there.url)
    async with workers(end) as there, connections() as pool:
        with pytest.raises(ConnectionFailed, match="Server disconnected"):
            await post(pool, there.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "https://127.0.0.1:{port}", "http://", "?"])
async def test_where_nobody_listens_there_is_no_connection(url: str) -> None:
    async with connections() as pool:
        with pytest.raises(NotConnected):
            await post(pool, url.format(port=free_port()))


async def test_a_request_that_is_cancelled_closes_its_connection() -> None:
    received, closed = asyncio.Event(), asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        received.set()
        await peer.closed()
        closed.set()

    async with workers(talk) as there, connections() as pool:
        task = asyncio.create_task(post(pool, there.url))
        await received.wait()
        task.cancel()

        await asyncio.wait_for(closed.wait(), 10)


async def test_an_answer_that_is_closed_before_its_end_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
        await peer.closed()
        closed.set()

    async with workers(talk) as there, connections() as pool:
        response = await pool.post(there.url, "/", b"{}", ())
        response.close()

        await asyncio.wait_for(closed.wait(), 10)


class LargeAnswer:
    """A worker's answer of `total` bytes, of which `sent` have left, and a small one to the next request."""

    def __init__(self) -> None:
        self.total, self.sent = 20_000_000, 0

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.total)
        while self.sent < self.total:
            await peer.send(b"x" * 10_000)
            self.sent += 10_000
        await peer.request()
        await peer.send(WHOLE)

    async def stops(self) -> None:
        """Wait until nothing more leaves: the buffers of the kernel are full."""
        before = -1
        while self.sent != before:
            before = self.sent
            for _ in range(100):
                await asyncio.sleep(0)


async def test_a_reader_that_stops_stops_the_worker_and_the_rest_is_whole() -> None:
    large = LargeAnswer()

    async with workers(large) as there, connections(read_bytes=65536) as pool:
        response = await pool.post(there.url, "/", b"{}", ())
        await large.stops()
        held = large.sent
        body = await read(response)
        after = await post(pool, there.url)

    assert held < large.total / 2
    assert len(body) == large.total
    assert after == (200, b"hello")
    assert there.connections == 1


async def test_an_unused_connection_closes_after_its_time() -> None:
    closed = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(WHOLE)
        await peer.closed()
        closed.set()

    async with workers(talk) as there, connections(idle_s=0.05) as pool:
        await post(pool, there.url)

        await asyncio.wait_for(closed.wait(), 10)


async def test_a_connection_in_use_when_all_are_closed_ends_with_its_answer() -> None:
    go_on, closed = asyncio.Event(), asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(WHOLE[:-2])
        await go_on.wait()
        await peer.send(WHOLE[-2:])
        await peer.closed()
        closed.set()

    async with workers(talk) as there, connections() as pool:
        response = await pool.post(there.url, "/", b"{}", ())
        await pool.close()
        go_on.set()
        body = await read(response)

        await asyncio.wait_for(closed.wait(), 10)

    assert body == b"hello"


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rX: y"])
async def test_a_header_with_a_line_break_is_never_sent(value: str) -> None:
    async with workers(answers(WHOLE)) as there, connections() as pool:
        with pytest.raises(ValueError, match="line break"):
            await pool.post(there.url, "/", b"{}", (("traceparent", value),))


class Slow(Peer):
    """Reads heads, and bodies only when its test does."""

    async def head(self) -> bytes:
        return await self._reader.readuntil(b"\r\n\r\n")

    async def body(self) -> bytes:
        """Read a chunked body to its end."""
        pieces: list[bytes] = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            pieces.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(pieces)


async def upload(
    pool: WorkerConnections, url: str, pieces: AsyncIterator[bytes], size: int | None = None
) -> WorkerResponse:
    return await pool.upload(url, "/v1/x", pieces, size, (("Authorization", "Bearer k"),))


async def some(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_body_in_pieces_is_sent_in_chunks_or_with_its_length() -> None:
    heads: list[bytes] = []

    async def talk(peer: Peer) -> None:
        slow = Slow(peer._reader, peer.writer)
        heads.append(await slow.head())
        heads.append(await (slow.body() if b"chunked" in heads[-1] else peer._reader.readexactly(6)))
        await peer.send(WHOLE)

    async with workers(talk) as state, connections() as pool:
        first = await read(await upload(pool, state.url, some(b"one", b"", b"two")))
        second = await read(await upload(pool, state.url, some(b"one", b"two"), 6))

    assert (first, second) == (b"hello", b"hello")
    assert heads[1] == heads[3] == b"onetwo"
    assert b"Content-Length: 6\r\n" in heads[2]


async def test_a_worker_that_does_not_read_takes_no_more_pieces() -> None:
    taken, released = 0, asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(400):
            taken += 1
            yield b"x" * 65536

    async def talk(peer: Peer) -> None:
        slow = Slow(peer._reader, peer.writer)
        await slow.head()
        await released.wait()
        assert len(await slow.body()) == 400 * 65536
        await peer.send(WHOLE)

    async with workers(talk) as state, connections() as pool:
        task = asyncio.ensure_future(upload(pool, state.url, pieces()))
        before = -1
        while before != taken:  # until the sockets' buffers are full
            before = taken
            for _ in range(200):
                await asyncio.sleep(0)
        assert taken < 300
        released.set()
        assert await read(await task) == b"hello"

    assert taken == 400


async def test_a_worker_that_refuses_early_gets_no_more_and_its_connection_is_not_used_again() -> None:
    left = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def talk(peer: Peer) -> None:
        await Slow(peer._reader, peer.writer).head()
        await peer.send(WHOLE.replace(b"200 OK", b"413 Too Large"))
        await peer.closed()

    async with workers(talk) as state, connections() as pool:
        response = await upload(pool, state.url, pieces())

        assert (response.status, await read(response)) == (413, b"hello")
        await asyncio.wait_for(left.wait(), 5)
        assert pool._idle == {}


@pytest.mark.parametrize("breaks", ["the source", "the worker"])
async def test_an_upload_that_breaks_closes_its_connection(breaks: str) -> None:
    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        if breaks == "the source":
            raise KeyError
        await asyncio.Event().wait()

    async def talk(peer: Peer) -> None:
        await Slow(peer._reader, peer.writer).head()
        if breaks == "the source":
            await peer.closed()
            closed.set()

    async with workers(talk) as state, connections() as pool:
        with pytest.raises(KeyError if breaks == "the source" else ConnectionFailed):
            await upload(pool, state.url, pieces())
        if breaks == "the source":
            await asyncio.wait_for(closed.wait(), 5)


async def test_an_upload_that_is_cancelled_closes_its_connection() -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def talk(peer: Peer) -> None:
        await Slow(peer._reader, peer.writer).head()
        arrived.set()
        await peer.closed()
        closed.set()

    async with workers(talk) as state, connections() as pool:
        task = asyncio.ensure_future(upload(pool, state.url, pieces()))
        await asyncio.wait_for(arrived.wait(), 5)
        task.cancel()
        await asyncio.wait_for(closed.wait(), 5)
        assert task.done()


HEADS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ndate: now\r\n\r\n",
        b"HTTP/1.1 429 Busy\r\nRetry-After: 3\r\ncontent-length: %d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nConnection: close\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: %d\r\n\r\n",
    ]
)


@given(st.lists(st.tuples(HEADS, st.binary(max_size=12), st.booleans()), max_size=12))
async def test_an_answer_is_the_same_with_and_without_the_parser(answers: list[tuple[bytes, bytes, bool]]) -> None:
    shared = KnownHeads[dict[str, str]]()

    for head, body, is_read_whole in answers:
        data = head % len(body) + body
        with_known = arrived(data, shared, is_read_whole=is_read_whole)

        assert with_known == arrived(data, KnownHeads(), is_read_whole=is_read_whole)


def arrived(data: bytes, heads: KnownHeads[dict[str, str]], *, is_read_whole: bool) -> object:
    """Return what became of an answer that arrived in one piece, and of its connection."""
    pool = Mock(spec=WorkerConnections, heads=heads)
    connection = WorkerConnection("http://w", pool, 1 << 18)
    connection.connection_made(Mock(spec=asyncio.Transport))
    response = connection.send(b"", b"", is_read_whole=is_read_whole)
    connection.data_received(data)
    state = response.status, response.headers, b"".join(response._pieces), response._complete, response._failure
    return state, connection.is_open, pool.release.call_count


def test_an_answer_with_a_known_head_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    on_header = WorkerConnection.on_header

    def note(self: WorkerConnection, name: bytes, value: bytes) -> None:
        parsed.append(name)
        on_header(self, name, value)

    monkeypatch.setattr(WorkerConnection, "on_header", note)
    heads = KnownHeads[dict[str, str]]()
    for body in (b"hello", b"world!", b""):
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        arrived(answer + body, heads, is_read_whole=True)

    assert parsed == [b"Content-Length"]
