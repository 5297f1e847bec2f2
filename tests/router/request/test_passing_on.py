"""A worker's body that is passed to a sink as it arrives: whole, in order, and no faster than the sink takes it."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.serving.known_heads import KnownHeads
from cortex.router.request import worker_connections
from cortex.router.request.worker_connections import WorkerConnection, WorkerConnections
from cortex.router.request.worker_response import BodyTooLong, ConnectionFailed
from tests.router.dialects.examples import examples
from tests.router.request.test_worker_connections import (
    WHOLE,
    LargeAnswer,
    Peer,
    answers,
    answers_once,
    connections,
    post,
    workers,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOST = 1 << 30


class Reader:
    """Keeps what it takes. It is over after `wanted` bytes, and takes `room` bytes until it has `read()`. It takes
    whole chunks that have no more than `chunk` bytes with their framing."""

    def __init__(self, *, wanted: int = MOST, room: int = MOST, chunk: int = 0) -> None:
        self.pieces: list[bytes] = []
        self.most, self.chunks = chunk, 0
        self.wanted, self.room, self._resume = wanted, room, None  # type: int, int, Callable[[], None] | None
        self.full = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def over(self) -> bool:
        return len(self.body) >= self.wanted

    @property
    def has_ended(self) -> bool:
        return self.over

    def take(self, data: bytes) -> bool:
        assert not self.over
        self.pieces.append(data)
        if sum(map(len, self.pieces)) < self.room:
            return True
        self.full.set()
        return False

    def take_chunk(self, chunk: bytes) -> bool:
        size, _, rest = chunk.partition(b"\r\n")
        if len(chunk) > self.most or size == b"0" or size != b"%x" % (len(rest) - 2) or rest[-2:] != b"\r\n":
            return False
        self.chunks += 1
        self.pieces.append(rest[:-2])
        return True

    def when_writable(self, resume: Callable[[], None] | None) -> None:
        self._resume = resume

    def read(self) -> None:
        """Make room without limit."""
        self.room = MOST
        if self._resume is not None:
            self._resume()


async def passed(url: str, sink: Reader, most: int = MOST) -> None:
    async with connections(read_bytes=64) as pool:
        response = await pool.post(url, "/", b"{}", ())
        try:
            await asyncio.wait_for(response.pass_to(sink, most), 10)
        finally:
            response.close()


@given(st.binary(min_size=1, max_size=300), st.sets(st.integers(1, 400), max_size=8), st.booleans())
@examples(50)
async def test_a_body_is_passed_on_whole_however_its_bytes_arrive(body: bytes, cuts: set[int], chunked: bool) -> None:
    frames = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = CHUNKED if chunked else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = head + (frames if chunked else body)
    places = [0, *sorted(c for c in cuts if c < len(answer)), len(answer)]
    async with workers(answers(*(answer[a:b] for a, b in pairwise(places)))) as there:
        sink = Reader()
        await passed(there.url, sink)

    assert sink.body == body


@given(
    st.lists(st.binary(min_size=1, max_size=12) | st.just(b"0\r\n\r\n"), max_size=8),
    st.sets(st.integers(1, 120), max_size=12),
    st.integers(0, 20),
)
@examples(50)
async def test_whole_chunks_are_passed_on_in_order_among_others(texts: list[bytes], cuts: set[int], chunk: int) -> None:
    frames = [b"%x\r\n%b\r\n" % (len(text), text) for text in texts]
    answer = CHUNKED + b"".join(frames) + b"0\r\n\r\n"
    ends = [len(CHUNKED) + len(b"".join(frames[:n])) for n in range(len(frames) + 1)]
    places = sorted({0, *ends, *(c for c in cuts if c < len(answer)), len(answer)})
    async with workers(answers(*(answer[a:b] for a, b in pairwise(places)))) as there:
        sink = Reader(chunk=chunk)
        await passed(there.url, sink)

    assert sink.body == b"".join(texts)


async def test_a_chunk_that_the_sink_takes_is_not_parsed() -> None:
    connection = WorkerConnection("http://w", Mock(spec=WorkerConnections, heads=KnownHeads()), 1 << 18)
    connection.connection_made(Mock(spec=asyncio.Transport))
    response = connection.send(b"", b"")
    connection.data_received(CHUNKED + b"1\r\na\r\n")
    sink = Reader(chunk=100)
    passing = asyncio.ensure_future(response.pass_to(sink, 100))
    await asyncio.sleep(0)

    for data in (b"1\r\nb\r\n", b"1\r\nc\r\n1", b"\r\nd\r\n", b"1\r\ne\r\n"):
        connection.data_received(data)
    assert (sink.body, sink.chunks) == (b"abcde", 2)
    connection.data_received(b"0\r\n\r\n")

    await asyncio.wait_for(passing, 5)


async def test_chunks_that_arrive_together_are_passed_on_together() -> None:
    chunks = b"".join(b"3\r\n%03d\r\n" % n for n in range(5))
    async with workers(answers_once(CHUNKED + chunks + b"0\r\n\r\n")) as there:
        sink = Reader()
        await passed(there.url, sink)

    assert sink.pieces == [b"000001002003004"]


async def test_a_sink_without_room_stops_the_worker_and_gets_the_rest_later() -> None:
    large = LargeAnswer()

    async with workers(large) as there, connections() as pool:
        sink = Reader(room=100_000)
        response = await pool.post(there.url, "/", b"{}", ())
        passing = asyncio.create_task(response.pass_to(sink, MOST))
        await asyncio.wait_for(sink.full.wait(), 10)
        await large.stops()
        held, usage = large.sent, len(sink.body)
        sink.read()
        await asyncio.wait_for(passing, 20)
        response.close()
        after = await post(pool, there.url)

    assert held < large.total / 2
    assert usage < 1_000_000
    assert len(sink.body) == large.total
    assert after == (200, b"hello")
    assert there.connections == 1


async def test_a_sink_that_is_full_at_the_end_does_not_stop_the_connections_next_answer() -> None:
    async with workers(answers(WHOLE)) as there, connections() as pool:
        sink = Reader(room=1)
        response = await pool.post(there.url, "/", b"{}", ())
        await asyncio.wait_for(response.pass_to(sink, MOST), 10)
        response.close()
        after = await asyncio.wait_for(post(pool, there.url), 10)

    assert (sink.body, after, there.connections) == (b"hello", (200, b"hello"), 1)


async def test_a_sink_that_wants_no_more_ends_the_passing_and_the_connection() -> None:
    closed = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\none\r\n")
        await peer.closed()
        closed.set()

    async with workers(talk) as there:
        sink = Reader(wanted=3)
        await passed(there.url, sink)
        await asyncio.wait_for(closed.wait(), 10)

    assert sink.body == b"one"


async def test_a_connection_that_breaks_after_the_sink_had_enough_is_no_failure() -> None:
    async with workers(answers_once(CHUNKED + b"3\r\none\r\nnonsense\r\n")) as there:
        sink = Reader(wanted=3)
        await passed(there.url, sink)

    assert sink.body == b"one"


async def test_an_error_of_the_sink_is_raised_where_the_body_is_awaited() -> None:
    class Broken(Reader):
        def take(self, data: bytes) -> bool:
            raise KeyError(data)

    async with workers(answers_once(WHOLE)) as there:
        with pytest.raises(KeyError, match="hello"):
            await passed(there.url, Broken())


async def test_a_body_above_the_limit_is_refused() -> None:
    async with workers(answers_once(WHOLE)) as there:
        with pytest.raises(BodyTooLong):
            await passed(there.url, Reader(), most=4)


@pytest.mark.parametrize(
    "rest", [b"", b"3\r\ntw", b"3\r\ntwo\r\nnonsense\r\n"], ids=["closed", "within a chunk", "no chunk"]
)
async def test_a_body_that_breaks_off_is_a_failure_after_what_arrived(rest: bytes) -> None:
    async with workers(answers_once(CHUNKED + b"3\r\none\r\n" + rest)) as there:
        sink = Reader()
        with pytest.raises(ConnectionFailed):
            await passed(there.url, sink)

    assert sink.body == b"one" + {b"3\r\ntw": b"tw", b"": b""}.get(rest, b"two")


# A body that is read whole


@pytest.mark.parametrize(
    "answer",
    [WHOLE, CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"],
    ids=["length", "chunks", "end of the connection"],
)
async def test_a_body_is_read_whole_up_to_a_limit(answer: bytes) -> None:
    async with workers(answers_once(answer)) as there, connections(read_bytes=2) as pool:
        response = await pool.post(there.url, "/", b"{}", ())
        assert await asyncio.wait_for(response.whole(5), 10) == b"hello"
        response.close()

        response = await pool.post(there.url, "/", b"{}", ())
        with pytest.raises(BodyTooLong):
            await asyncio.wait_for(response.whole(4), 10)
        response.close()


async def test_a_whole_body_that_breaks_off_is_a_failure() -> None:
    async with workers(answers_once(WHOLE[:-1])) as there, connections() as pool:
        response = await pool.post(there.url, "/", b"{}", ())
        with pytest.raises(ConnectionFailed):
            await asyncio.wait_for(response.whole(MOST), 10)
        response.close()


async def test_a_large_whole_body_is_read_although_it_exceeds_what_is_held_unread() -> None:
    body = bytes(5_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n"
    async with workers(answers(head, body)) as there, connections(read_bytes=1000) as pool:
        response = await pool.post(there.url, "/", b"{}", ())
        assert await asyncio.wait_for(response.whole(MOST), 20) == body
        response.close()


async def test_a_connection_whose_answer_is_complete_is_used_again_when_http_has_ended_it() -> None:
    pool = Mock(spec=WorkerConnections, heads=KnownHeads())
    connection = WorkerConnection("http://w", pool, 1 << 18)
    connection.connection_made(Mock(spec=asyncio.Transport))
    response = connection.send(b"", b"", keeps_chunked=True)
    connection.data_received(CHUNKED + b"3\r\nend\r\n")
    await response.pass_to(Reader(wanted=3), MOST)
    response.close()

    pool.await_end.assert_called_once_with(connection)
    pool.release.assert_not_called()
    for data in (b"1\r\n\n\r\n", b"0\r\n", b"\r\n"):
        connection.data_received(data)

    pool.release.assert_called_once_with(connection)
    assert connection.is_open


@pytest.mark.parametrize(
    "more", [b"", b"0\r\n\r\n" + CHUNKED, b"0\r\n\r\nx"], ids=["nothing", "another answer", "no HTTP"]
)
async def test_a_connection_whose_answer_http_does_not_end_is_closed(
    more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_connections, "END_S", 0.02 if not more else 60)
    closed = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\nend\r\n")
        await peer.send(more)
        await peer.closed()
        closed.set()

    async with workers(talk) as there, connections() as pool:
        response = await pool.post(there.url, "/", b"{}", (), keeps_chunked=True)
        await response.pass_to(Reader(wanted=3), MOST)
        response.close()

        await asyncio.wait_for(closed.wait(), 10)
