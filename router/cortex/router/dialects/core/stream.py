"""Bytes of a worker's stream in, bytes of the client's stream out: the part that every translation shares.

A `Machine` knows one dialect's events. The relay decodes the worker's frames for it, encodes what it says, and
keeps the one promise that matters most: a stream that was cut off never ends the way a whole one does. It ends
once, in an end or in a fault; what comes after is ignored.
"""

import functools
from collections.abc import Sequence
from typing import Protocol

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Chunk, Tokens
from cortex.router.dialects.core.errors import BadAnswer, Fault
from cortex.router.dialects.core.sse import Event as Frame
from cortex.router.dialects.core.sse import SSEDecoder

DONE = b"[DONE]"


class Machine(Protocol):
    """`open` comes first; `feed` and `close` may raise `BadAnswer`; the tag of an event is its name."""

    @property
    def tokens(self) -> Tokens: ...
    def open(self) -> Sequence[msgspec.Struct]: ...
    def feed(self, chunk: Chunk) -> Sequence[msgspec.Struct]: ...
    def close(self) -> Sequence[msgspec.Struct]: ...
    def ping(self) -> Sequence[msgspec.Struct]: ...
    def fail(self, fault: Fault) -> Sequence[msgspec.Struct]: ...


class Stream(Protocol):
    """A stream to a client, as the edge drives it.

    `open()` and `ping()` while waiting; `feed()` per piece of the worker's body; `close()` at its end; `fail()`
    when the worker is lost. `fault` is what ended it badly, `tokens` what it cost, `over` that nothing follows;
    `rough_tokens` is about how many came so far, for a stream that is cut before its worker has counted.
    """

    fault: Fault | None
    over: bool
    rough_tokens: int

    @property
    def tokens(self) -> Tokens: ...
    def open(self) -> bytes: ...
    def feed(self, data: bytes) -> bytes: ...
    def close(self) -> bytes: ...
    def ping(self) -> bytes: ...
    def fail(self, fault: Fault) -> bytes: ...


class TranslatedStream:
    """The `Stream` of a dialect that has named events."""

    def __init__(self, machine: Machine) -> None:
        self.fault: Fault | None = None
        self.over = False
        self.rough_tokens = 0
        self._machine = machine
        self._frames = SSEDecoder()

    @property
    def tokens(self) -> Tokens:
        return self._machine.tokens

    def open(self) -> bytes:
        return b"" if self.over else self._said(self._machine.open())

    def ping(self) -> bytes:
        return b"" if self.over else self._said(self._machine.ping())

    def feed(self, data: bytes) -> bytes:
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.feed(data):
                if self.over:
                    break
                self._take(frame, out)
        except BadAnswer as error:
            out.append(self.fail(error.fault))
        return b"".join(out)

    def close(self) -> bytes:
        """The worker's body has ended."""
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.close():
                self._take_last(frame, out)
            if not self.over:
                self._end(out)
        except BadAnswer as error:
            out.append(self.fail(error.fault))
        return b"".join(out)

    def fail(self, fault: Fault) -> bytes:
        if self.over:
            return b""
        self.over, self.fault = True, fault
        return self._said(self._machine.fail(fault))

    def _take(self, frame: Frame, out: list[bytes]) -> None:
        if frame.data == DONE:
            self._end(out)
        else:
            self._tell(chunks.decode(frame.data), out)

    def _tell(self, chunk: Chunk, out: list[bytes]) -> None:
        self.rough_tokens += chunks.rough_tokens(chunk)
        if begun := self._machine.open():
            out.append(self._said(begun))
        out.append(self._said(self._machine.feed(chunk)))

    def _take_last(self, frame: Frame, out: list[bytes]) -> None:
        """What the end cut off may be half a chunk, which says nothing; the machine knows whether it was done."""
        if frame.data == DONE:
            return
        try:
            chunk = chunks.decode(frame.data)
        except chunks.Garbled:
            return
        self._tell(chunk, out)

    def _end(self, out: list[bytes]) -> None:
        out.append(self._said(self._machine.close()))
        self.over = True

    def _said(self, events: Sequence[msgspec.Struct]) -> bytes:
        return b"".join([_prefix(type(event)) + _encode(event) + b"\n\n" for event in events])


_encode = msgspec.json.Encoder().encode


@functools.cache
def _prefix(event: type[msgspec.Struct]) -> bytes:
    """Without its name the SDKs ignore an event."""
    return b"event: %b\ndata: " % str(event.__struct_config__.tag).encode()
