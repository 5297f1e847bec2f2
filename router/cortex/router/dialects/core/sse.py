"""Server-sent events: bytes in, a list of events out. No `async`, no sockets.

A piece may end anywhere: inside a line, a CRLF or a character. Data stays bytes, because the JSON decoder takes bytes,
so split characters need no handling. `close()` returns an event without its final blank line: some servers omit it.
"""

import msgspec

from cortex.router.dialects.core.errors import BadAnswer

LIMIT = 8 * 1024 * 1024


class Event(msgspec.Struct, frozen=True):
    data: bytes
    event: bytes = b""


def comment(text: str) -> bytes:
    """Return a line that clients ignore, with `text` in it; an event or a blank line must follow."""
    return b": %b\n" % " ".join(text.split()).encode("utf-8", "replace")


class SSEDecoder:
    """`limit` bounds one event: a worker that never ends a line must not fill the router's memory."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._event = b""
        self._after_cr = False
        self._at_start = True

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins an event."""
        return not (self._tail or self._data or self._event or self._after_cr or self._at_start)

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this piece completes."""
        if self._after_cr and chunk:
            # The last piece ended in CR; a leading LF belongs to the same line end.
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk[-1:] == b"\r"
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        if self._tail and len(lines) > 1:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        if rest := lines.pop():
            self._tail += rest
            if len(self._tail) > self._limit:
                raise self._too_long()
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        return events

    def close(self) -> list[Event]:
        """Return the last, unterminated event, if it has data."""
        events: list[Event] = []
        if self._tail:
            self._line(bytes(self._tail), events)
            self._tail.clear()
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line[:5] == b"data:":
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._append(value)
        elif not line:
            if self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(Event(data, self._event))
                self._data.clear()
                self._size = 0
            self._event = b""
        elif line[:6] == b"event:":
            self._event = line[6:].removeprefix(b" ")
        elif line == b"data":
            self._append(b"")
        # comments, `id:`, `retry:` and unknown fields are ignored

    def _append(self, value: bytes) -> None:
        self._data.append(value)
        self._size += len(value) + 1
        if self._size > self._limit:
            raise self._too_long()

    def _too_long(self) -> BadAnswer:
        return BadAnswer(f"the worker sent one event of more than {self._limit} bytes")


def encode_data(data: bytes) -> bytes:
    """Encode an unnamed event, the form of the chat dialect."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"data: " + data + b"\n\n"
