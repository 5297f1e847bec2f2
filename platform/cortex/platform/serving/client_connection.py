"""The client of one request, for an application that answers without ASGI messages.

An ASGI message is a coroutine call, a dictionary and a search through every header; a disconnect is noticed by a task
that waits for it. Here an answer is written with plain calls, and a disconnect is a callback. `http_limits.py` puts the
object into each request's scope, where `client_of` finds it.
"""

import select
from collections.abc import Callable, Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION = "cortex.client"
LOOK_S = 0.1
"""How often to look whether a client that is not read has disconnected."""
Headers = Iterable[tuple[bytes, bytes]]


class ClientConnection:
    """Writes the answer to one request: `send`, or `start`, `write` any number of times, and `end`.

    After a disconnect all of them do nothing. `on_lost` is called once if the client disconnects before `end`;
    `on_writable` when a client that was `is_full` has read.
    """

    __slots__ = ("_cycle", "_looks", "_protocol", "on_lost", "on_writable", "write_chunk")

    def __init__(self, protocol: Any, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle, self._looks = protocol, cycle, False
        self.on_lost: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.write_chunk: Callable[[bytes], None] | None = None
        """Sends a piece of the body that has its framing as a chunk (RFC 9112, 7.1). None: the answer has not begun in
        chunks, or the client does not read."""

    def attach(self) -> "ClientConnection":
        """Report disconnects from now on: the request has been read."""
        protocol = self._protocol
        if protocol.transport.is_closing():  # uvicorn marks only the newest request of a connection
            self._cycle.disconnected = True
            return self
        protocol.answering = self
        if protocol.flow.read_paused:  # a connection that is not read is never seen to close
            protocol.flow.resume_reading()
        return self

    def take_body(self) -> bytes | None:
        """Take the request's body if all of it has arrived, as most do; None: it is received as ASGI messages."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.response_complete:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

    def add_headers(self, headers: Headers) -> None:
        """Add headers to the answer, whether it is sent here or as ASGI messages."""
        self._cycle.default_headers = [*self._cycle.default_headers, *headers]

    @property
    def is_lost(self) -> bool:
        """Whether the client has disconnected."""
        return self._cycle.disconnected

    @property
    def has_started(self) -> bool:
        """Whether the head has been sent."""
        return self._cycle.response_started

    @property
    def is_full(self) -> bool:
        """Whether the client reads more slowly than the application writes."""
        return bool(self._protocol.flow.write_paused)

    async def drain(self) -> None:
        """Wait until the client has read."""
        if self.is_full and not self.is_lost:
            await self._protocol.flow.drain()

    def hold_back(self) -> None:
        """Read no more of the request's body until the application receives again. A disconnect is still noticed,
        within `LOOK_S`: a connection that is not read is never seen to close."""
        self._protocol.flow.pause_reading()
        if not self._looks:
            self._looks = True
            self._protocol.loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """End the connection if the client has closed it while it is not read."""
        protocol, self._looks = self._protocol, False
        if self.is_lost or self._cycle.response_complete or not protocol.flow.read_paused:
            return
        poll = select.poll()
        poll.register(protocol.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            protocol.transport.abort()
        else:
            self.hold_back()

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer, head and body in one piece. Its length is added."""
        cycle = self._cycle
        if not cycle.disconnected:
            cycle.chunked_encoding = False
            cycle.transport.write(self._head(status, [*headers, (b"content-length", b"%d" % len(body))]) + body)
            self._complete()

    def start(self, status: int, headers: Headers) -> None:
        """Send the head of an answer in pieces."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(self._head(status, headers))
            self._look_for_chunks()

    def _head(self, status: int, headers: Headers) -> bytes:
        cycle = self._cycle
        assert not cycle.response_started
        lines = [STATUS_LINE[status]]
        number = 1
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
            number += 1
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
            number += 1
        if cycle.chunked_encoding is None:
            cycle.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
            number += 1
        lines.append(b"\r\n")
        head = b"".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == number + 1:
            raise ValueError("a header of an answer has a line break")
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        return head

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        cycle = self._cycle
        if data and not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if cycle.chunked_encoding else data)

    async def end(self) -> None:
        """End the body."""
        cycle = self._cycle
        if cycle.disconnected or cycle.response_complete:
            return
        if cycle.chunked_encoding:
            cycle.transport.write(b"0\r\n\r\n")
        self._complete()

    def abort(self) -> None:
        """Close the connection at once: what was sent of the answer is not all of it."""
        self._protocol.transport.abort()

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete, self.write_chunk = True, None
        self._protocol.answering = None
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    # For the protocol.

    def lose(self) -> None:
        """Report the disconnect."""
        self._cycle.disconnected, self.write_chunk = True, None
        if self.on_lost is not None:
            self.on_lost()

    def pause(self) -> None:
        """Note that the client does not read."""
        self.write_chunk = None

    def _look_for_chunks(self) -> None:
        cycle = self._cycle
        is_open = cycle.response_started and not (cycle.disconnected or cycle.response_complete)
        is_read = is_open and cycle.chunked_encoding is True and not self.is_full
        self.write_chunk = cycle.transport.write if is_read else None

    def resume(self) -> None:
        """Report that the client has read."""
        self._look_for_chunks()
        if self.on_writable is not None:
            self.on_writable()


def client_of(scope: Any) -> ClientConnection:
    """Take the client out of a request that this router's own server has received."""
    client: ClientConnection = scope["extensions"].pop(EXTENSION)  # else it would be a cycle of references
    return client
