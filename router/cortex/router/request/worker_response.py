"""A worker's answer: status and headers, and the body as it arrives, for one reader.

The reader iterates, takes the whole, or passes the body to a `Sink`. While it has no room, the connection is not read.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol


class ConnectionFailed(OSError):
    """The connection broke, or what the worker sent is not HTTP. The text holds nothing that the worker sent."""


class NotConnected(ConnectionFailed):
    """No connection could be made."""


class ConnectionWasReset(ConnectionFailed):
    """The connection was reset before an answer."""


class BodyTooLong(Exception):
    """The body is longer than its reader takes."""


class Sink(Protocol):
    """Takes a body piece by piece. After `take` has returned False, nothing is read until it is writable. `over`: it
    takes no more, and if `has_ended` because the worker said that its answer is complete. `take_chunk` takes one whole
    chunk of HTTP, framing included, or returns False: its body follows by `take`."""

    @property
    def over(self) -> bool: ...
    @property
    def has_ended(self) -> bool: ...
    def take(self, data: bytes) -> bool: ...
    def take_chunk(self, chunk: bytes) -> bool: ...
    def when_writable(self, resume: Callable[[], None] | None) -> None: ...


class Connection(Protocol):
    """What an answer needs of the connection that it arrives on."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def await_end(self) -> None: ...
    def abort(self) -> None: ...


class WorkerResponse:
    """An answer: status and headers, and the body as it comes."""

    __slots__ = (
        "_complete", "_connection", "_failure", "_has_ended", "_is_read_whole", "_limit", "_paused", "_pieces",
        "_sink", "_sink_error", "_size", "_waiter", "headers", "left", "status", "take_chunk",
    )  # fmt: skip

    def __init__(self, connection: Connection, limit: int, *, is_read_whole: bool = False) -> None:
        """Reading pauses while `limit` bytes are unread. `is_read_whole`: nobody waits for a part of the answer, its
        head included."""
        self._connection, self._limit, self._is_read_whole = connection, limit, is_read_whole
        self.status = 0
        self.headers: dict[str, str] = {}
        """Those of `READ_HEADERS`, by name in lower case."""
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._complete = self._paused = self._has_ended = False
        self._failure: ConnectionFailed | None = None
        self._sink: Sink | None = None
        self._sink_error: Exception | None = None
        self.left = 0
        """The most bytes that the sink may still get."""
        self.take_chunk: Callable[[bytes], bool] | None = None
        """The sink's, while it may take a chunk."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def content_length(self) -> int | None:
        """The length of the body in bytes, if the worker states it."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() else None

    @property
    def content(self) -> "WorkerResponse":
        """The body."""
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield the body: what arrived together leaves together. Raises ConnectionFailed."""
        pieces = self._pieces
        while True:
            while not pieces:
                if self._complete:
                    return
                if self._failure is not None:
                    raise self._failure
                await self._wait()
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._size = 0
            if self._paused:
                self._paused = False
                self._connection.resume_reading()
            yield chunk

    async def whole(self, most: int) -> bytes:
        """Return the body. Raises BodyTooLong for more than `most` bytes, and ConnectionFailed."""
        if self._complete and len(self._pieces) == 1 and self._size <= most:  # it came at once, as most do
            self._size = 0
            return self._pieces.pop()
        body: list[bytes] = []
        declared = self.content_length
        left = most - (declared or 0)
        while left >= 0:
            if self._pieces:
                body += self._pieces
                left -= self._size if declared is None else 0
                self._pieces.clear()
                self._size = 0
                if self._paused:
                    self._resume()
            elif self._complete:
                return body[0] if len(body) == 1 else b"".join(body)
            elif self._failure is not None:
                raise self._failure
            else:
                await self._wait()
        raise BodyTooLong

    async def pass_to(self, sink: "Sink", most: int) -> None:
        """Pass the body to a sink as it arrives, until its end or until the sink is `over`; what arrives together is
        passed together. Raises BodyTooLong for more than `most` bytes, ConnectionFailed, and what the sink raises."""
        self._sink, self.left, self.take_chunk = sink, most, sink.take_chunk
        try:
            if self._paused:
                self._resume()
            self.flush()
            while self._sink_error is None and not (self._complete or sink.over):
                if self._failure is not None:
                    raise self._failure
                await self._wait()
            if self._sink_error is not None:
                raise self._sink_error
        finally:
            self._sink = self.take_chunk = None
            sink.when_writable(None)

    def close(self) -> None:
        """Release the answer. Closes the connection unless the body has ended, or is about to."""
        if self._complete:
            return
        if self._has_ended:
            self._connection.await_end()
        else:
            self._connection.abort()

    async def head(self) -> None:
        """Wait for status and headers, or for an answer that is read whole. Raises ConnectionFailed."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # For the connection.

    def flush(self) -> None:
        """Pass on what has arrived."""
        sink, pieces = self._sink, self._pieces
        if sink is None or not pieces or self._paused:
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        self.left -= len(data)
        try:
            if self.left < 0:
                raise BodyTooLong
            has_room = sink.take(data)
        except Exception as error:
            self._sink = self.take_chunk = None
            self._sink_error = error
            self._wake()
            return
        if sink.over:
            self._sink = self.take_chunk = None
            self._has_ended = sink.has_ended
            self._wake()
        elif not (has_room or self._complete):
            self._paused, self.take_chunk = True, None
            self._connection.pause_reading()
            sink.when_writable(self._resume)

    def _resume(self) -> None:
        """Go on: the reader has room again."""
        if not self._paused:
            return
        self._paused = False
        if self._sink is not None:
            self.take_chunk = self._sink.take_chunk
        self._connection.resume_reading()
        self.flush()

    def begin(self, status: int) -> None:
        self.status = status
        if not self._is_read_whole:
            self._wake()

    def add(self, piece: bytes) -> None:
        if self._has_ended:
            return
        self._pieces.append(piece)
        if self._sink is not None:
            return  # `flush` follows
        self._size += len(piece)
        if self._size > self._limit and not self._paused:
            self._paused = True
            self._connection.pause_reading()
        if self._paused or not self._is_read_whole:
            self._wake()

    def complete(self) -> None:
        self._complete, self._paused = True, False
        self._wake()

    def fail(self, failure: ConnectionFailed) -> None:
        self._failure = failure
        self._wake()

    def ends_with_the_connection(self) -> bool:
        """Whether the body has neither a length nor chunks."""
        headers = self.headers
        return self.status > 0 and "content-length" not in headers and "transfer-encoding" not in headers

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
