"""Limits of HTTP connections: size and time of heads, pace of bodies and of readers.

uvicorn reads heads of any size for any time, keeps all trailers, reads on after it has rejected a body, and waits
without limit for a slow reader. LimitedProtocol bounds the size and time of a head, the pace of a body, the size of
trailers and chunk extensions, and the time that an answer waits for its reader. One timer is always active: for the
head, the body, the application's answer, the reader, or uvicorn's keep-alive. A client over a limit is disconnected. A
request that arrives in one piece, as most do, costs a few comparisons and no timer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cortex.platform.serving.client_connection import EXTENSION, ClientConnection
from cortex.platform.serving.connections import Connections, peer_of
from cortex.platform.serving.http_methods import AnyLength
from cortex.platform.serving.known_heads import MISSES, Head, has_lines, match, split

HEAD_BYTES = 64 * 1024
HEADERS = 128
URL_BYTES = 16 * 1024
HEAD_S = 15.0
"""For a complete head, from the start of the connection or the head's first byte."""
BODY_S = 30.0
"""For a body, in addition to the time that its bytes so far take at `BODY_PACE`."""
BODY_PACE = 16 * 1024
FRAMING = 8
"""Bytes of chunk framing per byte of a chunked body, in addition to `HEAD_BYTES`: chunks of one byte take 5."""
UNREAD_BYTES, LARGE_PIECE = 24 * 1024 * 1024, 64 * 1024
"""Limit of body bytes in a process that the application has not read yet; checked only when a body exceeds the second
number."""
PIPELINED = 16
"""Waiting requests per connection."""
READ_S = 60.0
"""How long a client may leave an answer unread."""
LINGER_S = 2.0
"""How long to discard a client's input after the answer, so that it reads the answer and not a reset."""
LINGER_BYTES = 64 * 1024 * 1024

_IDLE, _HEAD, _BODY, _LINGER = range(4)
_SPECIAL = frozenset({b"expect", b"transfer-encoding", b"upgrade"})
_TOO_LARGE = (431, "Request Header Fields Too Large")
_BUSY = (503, "Service Unavailable")


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits. Their values can be set on a subclass."""

    head_s, body_s, body_pace, read_s, linger_s = HEAD_S, BODY_S, BODY_PACE, READ_S, LINGER_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all: Connections = getattr(self.config, "connections", None) or Connections()
        self._peer: str | None = None
        self._at, self._bytes, self._body_bytes, self._started = _IDLE, 0, 0, 0.0
        self._trailers = self._trailer_bytes = self._head_bytes = 0
        self._fault: tuple[int, str] | None = None
        self._client_keep_alive: bool | None = None
        """While a body arrives in pieces: the client's keep-alive setting."""
        self._clock: asyncio.TimerHandle | None = None
        self._reader_clock: asyncio.TimerHandle | None = None
        self._idle_clock: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        """When the last answer ended; None: a request has begun."""
        self._head: Head | None = None
        """The head of the last request, if the next one may have the same."""
        self._new_head: Head | None = None
        """The head of the request that the parser reads."""
        self._scope: dict[str, Any] = {}
        """Of the request with `_head`, before an application has seen it."""
        self._length_at = self._misses = 0
        """Which header of `_head` is the length, and how many requests in a row had a new head."""
        self.answering: ClientConnection | None = None
        """The client of the request that is served now, if its application answers without ASGI messages."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn says so
        super().connection_made(transport)
        self._started = self.loop.time()
        peer = peer_of(self.client[0] if self.client else "")
        if not self._all.admit(peer):
            transport.write(_answer(*_BUSY))
            transport.close()
            return
        self._peer = peer
        self._clock = self.loop.call_later(self.head_s, self._check_pace)

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._clock, self._reader_clock, self._idle_clock):
            if clock is not None:
                clock.cancel()
        self._clock = self._reader_clock = self._idle_clock = None
        self._hold(0)
        if self._peer is not None:
            self._all.release(self._peer)
            self._peer = None
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        answering, self.answering = self.answering, None
        if answering is not None:
            answering.lose()

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._at == _LINGER:
            if self._bytes > LINGER_BYTES:
                self.transport.abort()
            return
        if self._at != _IDLE or self._bytes != len(data) or not self._take_known(data):
            self._head = None
            super().data_received(data)
        cycle = self.cycle
        if self._at == _IDLE and cycle is not None and not cycle.response_complete:  # a whole request
            if self._new_head is not None:
                self._learn_head()
            self._bytes = 0
            if self._head_bytes:
                self._hold(0)
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
            return
        self._unfinished(data)

    def _unfinished(self, data: bytes) -> None:
        """Check the size of an unfinished request without its body, and start its timer."""
        if self._at == _LINGER or self.transport.is_closing():
            return
        if not self._bytes:  # count from the end of a head within this piece
            head_end = data.find(b"\r\n\r\n") if self._at == _BODY else data.rfind(b"\r\n\r\n")
            self._bytes = len(data) - head_end - 4
        overhead = self._bytes
        if self._at == _BODY:
            overhead = max(0, self._bytes - self._body_bytes)
            if self._client_keep_alive is None:
                self._client_keep_alive = self.cycle.keep_alive
                self.cycle.keep_alive = False
                self.cycle.transport = _EarlyAnswer(self)  # type: ignore[assignment]  # it has what a cycle uses
        if overhead > self._overhead_limit():
            self._reject(*_TOO_LARGE)
            return
        if not self._hold(overhead) or (self._at == _BODY and self._too_much_unread()):
            self._reject(*_BUSY)
            return
        if self._clock is None:
            if self._at == _IDLE:  # empty lines start no request: the head's time applies
                self._started = self.loop.time()
            self._clock = self.loop.call_later(self.body_s if self._at == _BODY else self.head_s, self._check_pace)

    def _take_known(self, data: bytes) -> bool:
        """Take a whole request that has the head of the connection's last one: what the parser and uvicorn know of that
        one applies to it. False: the parser has to read it."""
        last = self.cycle
        if last is None or not last.response_complete or self._misses >= MISSES:
            return False
        request = None if self._head is None else match(data, self._head)
        if request is None:
            whole = split(data)
            if whole is not None:
                self._new_head = whole.head
                self._misses += 1
            return False
        self._misses = 0
        self._begin_again(*request)
        return True

    def _begin_again(self, length: bytes, body: bytes) -> None:
        """Start serving a request that has the last one's head: what uvicorn does at the parser's callbacks."""
        self._idle_since = None
        headers = self.headers.copy()
        headers[self._length_at] = (b"content-length", length)
        scope: Any = {**self._scope, "headers": headers, "state": self.app_state.copy()}
        cycle = RequestResponseCycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = False
        cycle.message_event.set()
        scope["extensions"] = {EXTENSION: ClientConnection(self, cycle)}
        self.headers, self.scope, self.cycle = headers, scope, cycle
        self._start_asgi_task(cycle, self.app)

    def _learn_head(self) -> None:
        """Remember the head of the request that was read, unless it asks for more than an answer."""
        head, self._new_head = self._new_head, None
        names = [name for name, _ in self.headers]
        is_plain = self.scope["http_version"] == "1.1" and _SPECIAL.isdisjoint(names)
        if is_plain and self.cycle.keep_alive and head is not None and has_lines(head, len(names)):
            self._head, self._length_at = head, names.index(b"content-length")
            self._scope = {name: value for name, value in self.scope.items() if name != "extensions"}

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            self._refuse(429, "Too Many Requests")
        self._at, self._started = _HEAD, self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > URL_BYTES:
            self._refuse(414, "URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._at == _BODY:
            self._on_trailer(name, value)
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def _on_trailer(self, name: bytes, value: bytes) -> None:
        """Count and drop a trailer: it must not become a header."""
        self._trailers += 1
        self._trailer_bytes += len(name) + len(value)
        if self._trailers > HEADERS or self._trailer_bytes > HEAD_BYTES:
            self._refuse(*_TOO_LARGE)

    def _too_much_unread(self) -> bool:
        """Return whether the unread bytes of all bodies exceed the process's limit."""
        if len(self.cycle.body) <= LARGE_PIECE:
            return False
        cycles = (protocol.cycle for protocol in self.connections if isinstance(protocol, LimitedProtocol))
        return sum(len(cycle.body) for cycle in cycles if cycle is not None) > UNREAD_BYTES

    def _overhead_limit(self) -> int:
        return HEAD_BYTES + (FRAMING * self._body_bytes if self._at == _BODY else 0)

    def on_headers_complete(self) -> None:
        # `_bytes` is at least the head's size, unless another head ended in the same piece: then it is 0.
        is_counted = 0 < self._bytes <= HEAD_BYTES
        is_too_large = not is_counted and sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES
        if is_too_large or len(self.headers) > HEADERS:
            self._refuse(*_TOO_LARGE)
        self._at, self._started, self._bytes, self._body_bytes = _BODY, self.loop.time(), 0, 0
        self._trailers, self._trailer_bytes, self._client_keep_alive = 0, 0, None
        super().on_headers_complete()
        if len(self.pipeline) == 1:  # uvicorn pauses; a connection that is not read is never seen to close
            self.flow.resume_reading()
        if self.scope["http_version"] == "1.0":  # knows no chunks (RFC 9112 7.1): a body ends with its connection
            self.cycle.chunked_encoding, self.cycle.expected_content_length = False, AnyLength()
        scope: Any = self.scope
        scope["extensions"] = {EXTENSION: ClientConnection(self, self.cycle)}

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._at = _IDLE
        if self._client_keep_alive is not None:
            self.cycle.transport = self.transport
            if not self.cycle.response_started:
                self.cycle.keep_alive = self._client_keep_alive
            self._client_keep_alive = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Reject a request after a parser error."""
        fault, self._fault = self._fault, None
        self._reject(*(fault or (400, "Bad Request")))

    def _refuse(self, status: int, phrase: str) -> None:
        """Make the parser fail, which leads to `send_400_response`."""
        self._fault = (status, phrase)
        raise ValueError(phrase)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.answering is not None:
            self.answering.pause()
        if self._reader_clock is None:
            self._reader_clock = self.loop.call_later(self.read_s, self._give_up_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.answering is not None:
            self.answering.resume()
        if self._reader_clock is not None:
            self._reader_clock.cancel()
            self._reader_clock = None

    def _check_pace(self) -> None:
        """Check the client's pace:

        (1) the linger time after an answer is over: abort;
        (2) reading is paused or an answer is in progress: the time does not count;
        (3) the body is slower than the pace: reject;
        (4) the head is not complete in time: reject;
        (5) otherwise: check again later.
        """
        self._clock = None
        if self.transport is None or self.transport.is_closing():
            return
        if self._at == _LINGER:  # (1)
            self.transport.abort()
            return
        now = self.loop.time()
        if self.flow.read_paused or (self._at != _BODY and self._answering()):  # (2)
            self._started = now
        late_s = self.body_s + self._body_bytes / self.body_pace if self._at == _BODY else self.head_s
        left_s = self._started + late_s - now
        if left_s <= 0.001:  # (3) (4)
            self._reject(408, "Request Timeout")
            return
        self._clock = self.loop.call_later(min(left_s, 5.0), self._check_pace)  # (5)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _hold(self, size: int) -> bool:
        """Account for this connection's unfinished head. False when all heads together exceed their limit."""
        change, self._head_bytes = size - self._head_bytes, size
        return self._all.hold(change)

    def _reject(self, status: int, phrase: str) -> None:
        """Send an error, unless an earlier answer is due first, and close the connection."""
        if self.transport.is_closing():
            return
        if self._answering() and (self.cycle.response_started or self.pipeline):
            self.transport.close()
            return
        self.transport.write(_answer(status, phrase))
        if self._answering():  # wake the application: the rest will not arrive
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.answering is not None:
                self.answering.lose()
        self.linger()

    def linger(self) -> None:
        """Close the sending side, and discard the client's input for LINGER_S."""
        if self._at == _LINGER or self.transport.is_closing():
            return
        self._at, self._bytes = _LINGER, 0
        self._hold(0)
        self.parser = None  # type: ignore[assignment]  # frees its partial head
        if self.cycle is not None:
            self.cycle.body = bytearray()
        self._unset_keepalive_if_required()
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.loop.call_later(self.linger_s, self._check_pace)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def on_response_complete(self) -> None:
        """Start the next request that waits, or the time that a connection may stay open without one.

        One timer serves all pauses of a connection: one of its own for each costs a request more than its routing.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._at != _LINGER:
            self._idle_since = self.loop.time()
            if self._idle_clock is None:
                self._idle_clock = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _check_idle(self) -> None:
        """Close a connection without a request for `timeout_keep_alive`, or look again when it may be one."""
        self._idle_clock = None
        if self._idle_since is None:
            return  # the next answer starts the timer
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0.001:
            self._idle_clock = self.loop.call_later(left_s, self._check_idle)
        else:
            self.transport.close()

    def _give_up_reader(self) -> None:
        self._reader_clock = None
        self.transport.abort()


class _EarlyAnswer:
    """The transport of an answer sent before the request's body is complete: closing it lingers."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol
        self.write, self.is_closing = protocol.transport.write, protocol.transport.is_closing

    def close(self) -> None:
        """Close the connection so that a slow client can still read its answer."""
        if self._protocol.cycle.response_complete:
            self._protocol.linger()
        else:
            self._protocol.transport.close()


def _answer(status: int, phrase: str) -> bytes:
    return f"HTTP/1.1 {status} {phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
