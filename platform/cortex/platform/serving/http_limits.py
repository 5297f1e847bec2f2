"""What a connection may ask of a listener before there is a request, and while an answer goes out.

uvicorn reads heads of any length for any time, keeps every trailer, goes on reading a body that was refused, and waits
for a slow reader without end. Here a head has a size and a time, a body a pace, trailers and chunk extensions a size,
and an answer a reader. From the first byte to the last a clock runs: the head's, the body's, the application's own
while it works on an answer, the reader's, and uvicorn's keep-alive between two requests. A client that does not keep a
limit loses the connection. A request that came whole, as nearly all do, costs a few comparisons and no timer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cortex.platform.serving.connections import Connections, peer_of

HEAD_BYTES = 64 * 1024
HEADERS = 128
URL_BYTES = 16 * 1024
HEAD_S = 15.0
"""For a whole head, from the connection's beginning or the head's first byte."""
BODY_S = 30.0
"""For a body, beside the time that its bytes so far take at `BODY_PACE`."""
BODY_PACE = 16 * 1024
FRAMING = 8
"""Bytes of chunk heads and extensions per byte of a chunked body, beside `HEAD_BYTES`: chunks of one byte take 5."""
UNREAD_BYTES, LARGE_PIECE = 24 * 1024 * 1024, 64 * 1024
"""Bytes of bodies that a process holds before the application reads them, which it does at once; only a piece that is
large counts those of the others."""
PIPELINED = 16
"""Requests that may wait on one connection behind the one that is served."""
READ_S = 60.0
"""How long a client may read nothing of an answer that waits for it."""
LINGER_S = 2.0
"""How long what a client still sends is thrown away, so that it finds the answer instead of a broken connection."""
LINGER_BYTES = 64 * 1024 * 1024

_IDLE, _HEAD, _BODY, _LINGER = range(4)
_TOO_LARGE = (431, "Request Header Fields Too Large")
_BUSY = (503, "Service Unavailable")


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits. Their values can be set on a subclass."""

    head_s, body_s, body_pace, read_s, linger_s = HEAD_S, BODY_S, BODY_PACE, READ_S, LINGER_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all: Connections = getattr(self.config, "connections", None) or Connections()
        self._peer: str | None = None
        self._at, self._bytes, self._body_bytes, self._began = _IDLE, 0, 0, 0.0
        self._trailers = self._trailer_bytes = self._held = 0
        self._fault: tuple[int, str] | None = None
        self._split: bool | None = None
        """Of a body that did not come with its head: whether the client wants to keep the connection."""
        self._clock: asyncio.TimerHandle | None = None
        self._reader_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self.loop.time()
        peer = peer_of(self.client[0] if self.client else "")
        if not self._all.admit(peer):
            transport.write(_answer(*_BUSY))
            transport.close()
            return
        self._peer = peer
        self._clock = self.loop.call_later(self.head_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._clock, self._reader_clock):
            if clock is not None:
                clock.cancel()
        self._clock = self._reader_clock = None
        self._hold(0)
        if self._peer is not None:
            self._all.release(self._peer)
            self._peer = None
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._at == _LINGER:
            if self._bytes > LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._at == _IDLE and self._answering():  # a whole request
            self._bytes = 0
            if self._held:
                self._hold(0)
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
            return
        self._unfinished(data)

    def _unfinished(self, data: bytes) -> None:
        """Bound what has come of a request besides its body, and start its clock."""
        if self._at == _LINGER or self.transport.is_closing():
            return
        if not self._bytes:  # counted from the end of a head that was in this very piece
            head_end = data.find(b"\r\n\r\n") if self._at == _BODY else data.rfind(b"\r\n\r\n")
            self._bytes = len(data) - head_end - 4
        beside_body = self._bytes
        if self._at == _BODY:
            beside_body = max(0, self._bytes - self._body_bytes)
            if self._split is None:
                self._split = self.cycle.keep_alive
                self.cycle.keep_alive = False
                self.cycle.transport = _Answering(self)  # type: ignore[assignment]
        if beside_body > self._most_beside_body():
            self._turn_away(*_TOO_LARGE)
            return
        if not self._hold(beside_body) or (self._at == _BODY and self._too_much_unread()):
            self._turn_away(*_BUSY)
            return
        if self._clock is None:
            if self._at == _IDLE:  # empty lines begin no request: theirs is the time of a head
                self._began = self.loop.time()
            self._clock = self.loop.call_later(self.body_s if self._at == _BODY else self.head_s, self._look)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            self._refuse(429, "Too Many Requests")
        self._at, self._began = _HEAD, self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self._refuse(414, "URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._at == _BODY:
            self._on_trailer(name, value)
            return
        if len(self.headers) == HEADERS:
            self._refuse(*_TOO_LARGE)
        super().on_header(name, value)

    def _on_trailer(self, name: bytes, value: bytes) -> None:
        """Count a trailer and drop it: nothing here reads any, and none may pass for a header."""
        self._trailers += 1
        self._trailer_bytes += len(name) + len(value)
        if self._trailers > HEADERS or self._trailer_bytes > HEAD_BYTES:
            self._refuse(*_TOO_LARGE)

    def _too_much_unread(self) -> bool:
        """Whether the application has yet to read more of all bodies than a process may hold, this one's included."""
        if len(self.cycle.body) <= LARGE_PIECE:
            return False
        cycles = (one.cycle for one in self.connections if isinstance(one, LimitedProtocol))
        return sum(len(cycle.body) for cycle in cycles if cycle is not None) > UNREAD_BYTES

    def _most_beside_body(self) -> int:
        return HEAD_BYTES + (FRAMING * self._body_bytes if self._at == _BODY else 0)

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse(*_TOO_LARGE)
        self._at, self._began, self._bytes, self._body_bytes = _BODY, self.loop.time(), 0, 0
        self._trailers, self._trailer_bytes, self._split = 0, 0, None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._at = _IDLE
        if self._split is not None:
            self.cycle.transport = self.transport
            if not self.cycle.response_started:
                self.cycle.keep_alive = self._split
            self._split = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a request that the parser gave up."""
        fault, self._fault = self._fault, None
        self._turn_away(*(fault or (400, "Bad Request")))

    def _refuse(self, status: int, phrase: str) -> None:
        """Have the parser give up, which then asks for `send_400_response`."""
        self._fault = (status, phrase)
        raise ValueError(phrase)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_clock is None:
            self._reader_clock = self.loop.call_later(self.read_s, self._give_up_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_clock is not None:
            self._reader_clock.cancel()
            self._reader_clock = None

    def _look(self) -> None:
        """Look whether the client keeps its pace:

        (1) an answer is out and its time to leave is over;
        (2) we do not read at the moment, or work on an answer: the time is ours, not the client's;
        (3) its body is slower than the pace;
        (4) it has sent nothing at all, or not the whole head, in time;
        (5) it is well: look again later.
        """
        self._clock = None
        if self.transport is None or self.transport.is_closing():
            return
        if self._at == _LINGER:  # (1)
            self.transport.abort()
            return
        now = self.loop.time()
        if self.flow.read_paused or (self._at != _BODY and self._answering()):  # (2)
            self._began = now
        late_s = self.body_s + self._body_bytes / self.body_pace if self._at == _BODY else self.head_s
        left_s = self._began + late_s - now
        if left_s <= 0.001:  # (3) (4)
            self._turn_away(408, "Request Timeout")
            return
        self._clock = self.loop.call_later(min(left_s, 5.0), self._look)  # (5)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _hold(self, held: int) -> bool:
        """Account for the bytes of this connection's unfinished head. False when all of them are too many."""
        change, self._held = held - self._held, held
        return self._all.hold(change)

    def _turn_away(self, status: int, phrase: str) -> None:
        """Say why, where no answer is due before, and close the connection."""
        if self.transport.is_closing():
            return
        if self._answering() and (self.cycle.response_started or self.pipeline):
            self.transport.close()
            return
        self.transport.write(_answer(status, phrase))
        if self._answering():  # and whoever waits for the rest of the request learns that it does not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.linger()

    def linger(self) -> None:
        """Close the connection from our side; what the client sends for a short while is thrown away."""
        if self._at == _LINGER or self.transport.is_closing():
            return
        self._at, self._bytes = _LINGER, 0
        self._hold(0)
        self.parser = None  # type: ignore[assignment]  # and with it what it holds of a half head
        if self.cycle is not None:
            self.cycle.body = bytearray()
        self._unset_keepalive_if_required()
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.loop.call_later(self.linger_s, self._look)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._at == _LINGER:
            self._unset_keepalive_if_required()

    def _give_up_reader(self) -> None:
        self._reader_clock = None
        self.transport.abort()


class _Answering:
    """The transport of an answer that goes out before the request's body is whole: it closes by lingering."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol
        self.write, self.is_closing = protocol.transport.write, protocol.transport.is_closing

    def close(self) -> None:
        """Close the connection; a client that reads its answer late still finds it."""
        if self._protocol.cycle.response_complete:
            self._protocol.linger()
        else:
            self._protocol.transport.close()


def _answer(status: int, phrase: str) -> bytes:
    return f"HTTP/1.1 {status} {phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
