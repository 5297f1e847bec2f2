"""HTTP/1.1 connections to workers, for requests on the warm path: httptools on asyncio's own protocols.

A general client costs several times as much for each request. This one does only what a request to a worker needs: one
POST at a time on each connection, bodies as they come, back-pressure, and bounds on what a worker may send. Redirects,
cookies and compressed bodies are nothing to it: the caller sees the status and the bytes.
"""

import asyncio
import functools
import select
from collections.abc import AsyncIterator
from typing import cast
from urllib.parse import urlsplit

import httptools

from cortex.platform.serving.known_heads import Head, KnownHeads, has_lines, match
from cortex.router.dialects.core.large_object import Body, LargeObject, Piece
from cortex.router.request.worker_response import (
    ConnectionFailed,
    ConnectionWasReset,
    NotConnected,
    WorkerResponse,
)

HEADERS = 128
"""The most headers and trailers of an answer."""
SILENT_BYTES = 64 * 1024
"""The most bytes that a worker may send without a header's end or a byte of the body among them."""
READ_HEADERS = {
    name.encode(): name
    for name in ("content-encoding", "content-length", "content-type", "retry-after", "transfer-encoding")
}
"""The headers that an answer keeps."""
JOIN_BYTES = 64 * 1024
"""A body up to this size goes out in one piece with its head."""
SLICE_BYTES = 512 * 1024
"""Bytes of a large body to write at a time."""
PAUSE_S = 1.0
"""A server closes connections that it keeps only after a longer pause."""
Headers = tuple[tuple[str, str], ...]
"""The headers of a request, by name, in their order."""
END_S = 1.0
"""How long to wait for the last bytes of HTTP after the last event of an answer."""


class WorkerConnection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self, origin: str, pool: "WorkerConnections", read_bytes: int) -> None:
        """`pool` takes the connection back when its request is answered."""
        self.origin, self._pool, self._read_bytes = origin, pool, read_bytes
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._response: WorkerResponse | None = None
        self._headers = self._silent = 0
        self._keeps_chunked = False
        """Whether the connection can carry another request after an answer in chunks."""
        self._is_between_chunks = False
        """Whether the next byte of the answer begins a chunk."""
        self._is_new = False
        """Whether nothing of the answer has arrived."""
        self._new_head: Head | None = None
        """The head of the answer, if it was not known and the answer arrived in one piece."""
        self._known_head: tuple[Head, dict[str, str]] | None = None
        """The last head that was known, with its `READ_HEADERS`."""
        self._poll: select.poll | None = None
        self.is_open = False
        self.idle_since = 0.0
        self._is_sending = False
        self._room: asyncio.Future[None] | None = None
        """Done when the worker has read what was sent; None: it has."""

    def send(
        self, head: bytes, body: bytes, *, keeps_chunked: bool = False, is_read_whole: bool = False
    ) -> WorkerResponse:
        """Send a request; its answer arrives in what this returns. `keeps_chunked`: the worker takes another request
        on the connection if the answer comes in chunks."""
        response = self._response = WorkerResponse(self, self._read_bytes, is_read_whole=is_read_whole)
        self._headers = self._silent = 0
        self._keeps_chunked, self._is_between_chunks = keeps_chunked, False
        self._is_new, self._new_head = True, None
        if len(body) <= JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return response

    async def send_pieces(
        self,
        head: bytes,
        pieces: AsyncIterator[Piece],
        *,
        chunked: bool = False,
        keeps_chunked: bool = False,
        is_read_whole: bool = False,
    ) -> WorkerResponse:
        """Send a request whose body comes in pieces, no faster than the worker reads, and return its answer after the
        head. If the worker refuses the request early, the rest of it is not sent.

        Raises ConnectionFailed, and what the pieces raise.
        """
        response = self.send(head, b"", keeps_chunked=keeps_chunked, is_read_whole=is_read_whole)
        self._is_sending = True
        sending = asyncio.ensure_future(self._send_pieces(pieces, chunked=chunked))
        answered = asyncio.ensure_future(response.head())
        try:
            await asyncio.wait((sending, answered), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and sending.exception() is not None and not answered.done():
                await sending
            await answered
            if response.status < 400:
                await sending
            return response
        finally:
            for task in (sending, answered):
                task.cancel()
            await asyncio.gather(sending, answered, return_exceptions=True)

    async def _send_pieces(self, pieces: AsyncIterator[Piece], *, chunked: bool) -> None:
        async for piece in pieces:
            if not self.is_open:
                return  # the answer has the reason
            if piece:
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if chunked else piece)
            if self._room is not None:
                await self._room
        if chunked and self.is_open:
            self._transport.write(b"0\r\n\r\n")
        self._is_sending = False

    def is_usable(self) -> bool:
        """Whether a connection that was unused for a while can carry a request.

        One with anything to read cannot: the worker closed it, and the loop has not come to that yet.
        """
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def await_end(self) -> None:
        """Take another request when HTTP's end of the answer has arrived, if that is soon: its content is complete."""
        if self._keeps_chunked:
            self._pool.await_end(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self._transport.abort()

    def pause_reading(self) -> None:
        if self.is_open:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_open:
            self._transport.resume_reading()

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nothing was requested
            self.abort()
            return
        take_chunk = response.take_chunk
        if (
            take_chunk is not None
            and self._is_between_chunks
            and (left := response.left - len(data)) >= 0
            and take_chunk(data)
        ):
            response.left = left
            return  # the parser stays between chunks
        if self._is_new:
            self._is_new = False
            if self._take_known(response, data):
                return
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            response.flush()
            self._fail(ConnectionFailed("its answer is not HTTP"))
        else:
            if data[-1:] != b"\n":  # perhaps the beginning of the next chunk's size
                self._is_between_chunks = False
            response.flush()
            if self._silent > SILENT_BYTES or self._headers > HEADERS:
                self._fail(ConnectionFailed("its answer has too long a head"))

    def _take_known(self, response: WorkerResponse, data: bytes) -> bool:
        """Take a whole answer whose head is known. False: the parser has to read it."""
        if self._is_sending:
            return False
        known = self._known_head
        message = None if known is None else match(data, known[0])
        if known is None or message is None:
            heads = self._pool.heads
            whole = heads.split(data)
            if whole is None:
                return False
            headers = heads.find(whole.head)
            if headers is None:
                self._new_head = whole.head
                return False
            known = self._known_head = whole.head, headers
            message = whole.length, whole.body
        length, body = message
        response.headers = {**known[1], "content-length": length.decode()}
        response.begin(200)
        if body:
            response.add(body)
        self._response = None
        response.complete()
        self._pool.release(self)
        return True

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self.resume_writing()
        response = self._response
        if response is None:
            return
        self._response = None
        if response.ends_with_the_connection() and error is None:
            response.complete()
        elif response.status:
            response.fail(ConnectionFailed("its answer broke off or is not HTTP"))
        elif error is None:
            response.fail(ConnectionFailed("Server disconnected"))
        else:
            # The kernel resets a connection whose process ends with bytes unread, and closes any other in order.
            response.fail(ConnectionWasReset(str(error) or type(error).__name__))

    def _fail(self, failure: ConnectionFailed) -> None:
        response, self._response = self._response, None
        self.abort()
        if response is not None:
            response.fail(failure)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._response is None:  # more than was requested
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._silent = 0
        self._headers += 1
        response, key = self._response, READ_HEADERS.get(name.lower())
        if key is not None and response is not None and not response.status:
            response.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._silent = 0
        status = self._parser.get_status_code()
        if self._response is not None and status >= 200:
            self._response.begin(status)

    def on_chunk_header(self) -> None:
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        self._is_between_chunks = True

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        if self._response is not None:
            self._response.add(body)

    def on_message_complete(self) -> None:
        response = self._response
        if response is None:
            return
        if not response.status:  # an interim answer, such as "100 Continue"
            response.headers.clear()
            return
        self._response = None
        response.complete()
        keeps = "content-length" in response.headers or self._keeps_chunked
        if self._is_sending or not (self.is_open and keeps and self._parser.should_keep_alive()):
            self.abort()
            return
        head = self._new_head
        if head is not None and response.status == 200 and has_lines(head, self._headers):
            self._pool.heads.learn(head, response.headers)  # 204 and 304 have no body, whatever their length
        self._transport.resume_reading()
        self._pool.release(self)


class WorkerConnections:
    """Connections to all workers. Belongs to one event loop."""

    def __init__(self, *, idle_s: float, connect_s: float, read_bytes: int) -> None:
        """An unused connection closes after `idle_s`; reading pauses while `read_bytes` of an answer are unread."""
        self._idle_s, self._connect_s, self._read_bytes = idle_s, connect_s, read_bytes
        self.heads = KnownHeads[dict[str, str]]()
        """Heads of status 200, after whose answer a connection can carry another request, with their `READ_HEADERS`."""
        self._idle: dict[str, list[WorkerConnection]] = {}
        self._ending: dict[WorkerConnection, float] = {}
        """Connections with the last bytes of an answer to come, by the time when they began to wait."""
        self._sweep: asyncio.TimerHandle | None = None
        self._end_sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def post(
        self,
        origin: str,
        path: str,
        body: Body,
        headers: Headers,
        *,
        keeps_chunked: bool = False,
        is_read_whole: bool = False,
    ) -> WorkerResponse:
        """Send a POST to `http://host:port` and return its answer after the head, or when all of it has arrived if it
        `is_read_whole`: that wakes the task once. The caller closes it. `keeps_chunked`: the worker takes another
        request on the connection after an answer in chunks.

        Raises NotConnected, ConnectionWasReset or ConnectionFailed. Cancellation closes the connection.
        """
        connection = self._take(origin) or await self._connect(origin)
        head = b"%bContent-Length: %d\r\n\r\n" % (_head(origin, path, headers), len(body))
        try:
            if not isinstance(body, bytes):
                return await connection.send_pieces(
                    head, _slices(body), keeps_chunked=keeps_chunked, is_read_whole=is_read_whole
                )
            response = connection.send(head, body, keeps_chunked=keeps_chunked, is_read_whole=is_read_whole)
            await response.head()
        except BaseException:
            connection.abort()
            raise
        return response

    async def upload(
        self, origin: str, path: str, pieces: AsyncIterator[bytes], size: int | None, headers: Headers
    ) -> WorkerResponse:
        """Do the same with a body in pieces, of `size` bytes if that is known; over a new connection, because the body
        may not be readable twice. Also raises what the pieces raise."""
        connection = await self._connect(origin)
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if size is None else b"Content-Length: %d\r\n\r\n" % size
        head = _head(origin, path, headers) + framing
        try:
            return await connection.send_pieces(head, pieces, chunked=size is None)
        except BaseException:
            connection.abort()
            raise

    async def close(self) -> None:
        """Close the unused connections; those in use close after their answers."""
        self._closed = True
        for sweep in (self._sweep, self._end_sweep):
            if sweep is not None:
                sweep.cancel()
        for connections in (*self._idle.values(), self._ending):
            for connection in connections:
                connection.abort()
        self._idle.clear()
        self._ending.clear()

    def await_end(self, connection: WorkerConnection) -> None:
        """Close a connection whose answer does not end within `END_S`."""
        if self._closed:
            connection.abort()
            return
        self._ending[connection] = self._loop.time()
        if self._end_sweep is None:
            self._end_sweep = self._loop.call_later(END_S, self._close_ending)

    def release(self, connection: WorkerConnection) -> None:
        """Take a connection back for the next request."""
        self._ending.pop(connection, None)
        if self._closed:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._idle_s, self._close_stale)

    def _take(self, origin: str) -> WorkerConnection | None:
        """Return the connection that was used last, if one is fresh."""
        connections = self._idle.get(origin)
        now = self._loop.time()
        while connections:
            connection = connections.pop()
            idle_s = now - connection.idle_since
            if connection.is_open and (idle_s < PAUSE_S or (idle_s < self._idle_s and connection.is_usable())):
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: str) -> WorkerConnection:
        address = urlsplit(origin)
        if address.scheme != "http" or not address.hostname:
            raise NotConnected(f"{origin} is not the address of a worker")
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: WorkerConnection(origin, self, self._read_bytes),
                    address.hostname,
                    address.port or 80,
                )
        except TimeoutError:
            raise NotConnected(f"no connection to {address.netloc} within {self._connect_s:g} s") from None
        except OSError as error:
            raise NotConnected(str(error) or type(error).__name__) from error
        return connection

    def _close_ending(self) -> None:
        """Close what has waited for its end too long, and look again while there are others."""
        late = self._loop.time() - END_S
        for connection, since in list(self._ending.items()):
            if since <= late or not connection.is_open:
                connection.abort()
                del self._ending[connection]
        self._end_sweep = self._loop.call_later(END_S / 4, self._close_ending) if self._ending else None

    def _close_stale(self) -> None:
        """Close what was unused for too long, and look again while there are others."""
        stale = self._loop.time() - self._idle_s
        for origin, connections in list(self._idle.items()):
            for connection in connections:
                if connection.idle_since <= stale:
                    connection.abort()
            connections[:] = [c for c in connections if c.is_open]
            if not connections:
                del self._idle[origin]
        self._sweep = self._loop.call_later(self._idle_s, self._close_stale) if self._idle else None


async def _slices(body: LargeObject) -> AsyncIterator[Piece]:
    """Yield a body in pieces that each hold the loop for a millisecond at most."""
    for piece in body.pieces:
        for at in range(0, len(piece), SLICE_BYTES):
            yield piece[at : at + SLICE_BYTES]


@functools.lru_cache(1024)
def _head(origin: str, path: str, headers: Headers) -> bytes:
    """Return the head of a request but for its length: an instance's requests share it."""
    lines = [f"POST {path} HTTP/1.1\r\nHost: {origin[7:]}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    text = "".join(lines)
    if not text.count("\n") == text.count("\r") == len(headers) + 2:
        raise ValueError("a header of a request to a worker has a line break")
    return text.encode("latin-1")
