"""What a connection may ask of a listener before there is a request, and while an answer goes out.

uvicorn reads heads of any length for any time, and waits for a slow reader for ever. Here a head has a size and a time,
a body a pace, and an answer a reader: whoever does not keep them loses the connection. A request that came whole, as
nearly all do, costs a few comparisons and no timer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
HEADERS = 128
URL_BYTES = 16 * 1024
HEAD_S = 15.0
"""For a whole head, from the connection's beginning or the head's first byte."""
BODY_S = 30.0
"""For a body, beside the time that its bytes so far take at `BODY_PACE`."""
BODY_PACE = 16 * 1024
READ_S = 60.0
"""How long a client may read nothing of an answer that waits for it."""

_IDLE, _HEAD, _BODY = range(3)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits. Their values can be set on a subclass."""

    head_s, body_s, body_pace, read_s = HEAD_S, BODY_S, BODY_PACE, READ_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at, self._bytes, self._began = _IDLE, 0, 0.0
        self._clock: asyncio.TimerHandle | None = None
        self._reader_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self.loop.time()
        self._clock = self.loop.call_later(self.head_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._clock, self._reader_clock):
            if clock is not None:
                clock.cancel()
        self._clock = self._reader_clock = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        super().data_received(data)
        if self._at == _IDLE:
            self._bytes = 0
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
            return
        if self._at == _HEAD and self._bytes > HEAD_BYTES:
            self._turn_away(431, "Request Header Fields Too Large")
        elif self._clock is None:
            self._clock = self.loop.call_later(self.head_s if self._at == _HEAD else self.body_s, self._look)

    def on_message_begin(self) -> None:
        self._at, self._began = _HEAD, self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._too_large():
            raise ValueError("the head is too large")  # the parser gives up, and asks for `send_400_response`
        self._at, self._began, self._bytes = _BODY, self.loop.time(), 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._at = _IDLE
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that a head is too large, where that is what is wrong."""
        if self._at == _HEAD and (large := self._too_large()):
            self._turn_away(*large)
        else:
            super().send_400_response(msg)

    def _too_large(self) -> tuple[int, str] | None:
        if len(self.url) > URL_BYTES:
            return 414, "URI Too Long"
        if len(self.headers) > HEADERS or sum(len(n) + len(v) for n, v in self.headers) > HEAD_BYTES:
            return 431, "Request Header Fields Too Large"
        return None

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

        (1) it has sent nothing at all, or not the whole head, in time;
        (2) we do not read at the moment: the time is ours, not the client's;
        (3) its body is slower than the pace;
        (4) it is well: look again later.
        """
        self._clock = None
        if self.transport is None or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._at != _BODY and not self._answering():  # (1)
            self._turn_away(408, "Request Timeout")
            return
        if self.flow.read_paused or self._at != _BODY:  # (2)
            self._began = now
        elif now - self._began > self.body_s + self._bytes / self.body_pace:  # (3)
            self._turn_away(408, "Request Timeout")
            return
        self._clock = self.loop.call_later(min(self.body_s, 5.0), self._look)  # (4)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _turn_away(self, status: int, phrase: str) -> None:
        """Say why, where no answer has begun, and close the connection."""
        if not self.transport.is_closing() and not (self._answering() and self.cycle.response_started):
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()

    def _give_up_reader(self) -> None:
        self._reader_clock = None
        self.transport.abort()
