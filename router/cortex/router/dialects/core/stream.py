"""Translate a worker's stream into a client's: the part that all dialects share. Bytes in, bytes out.

A `Machine` produces one dialect's events. `TranslatedStream` decodes the worker's frames, encodes the events, and
guarantees that a truncated stream never ends like a complete one. A stream ends once, completely or in a fault; later
input is ignored.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Chunk, Tokens
from cortex.router.dialects.core.errors import BadAnswer, Fault
from cortex.router.dialects.core.sse import Event as Frame
from cortex.router.dialects.core.sse import SSEDecoder, comment
from cortex.router.dialects.core.template import ChunkForm, Template, template_of

DONE = b"[DONE]"
EVENTS = b"text/event-stream; charset=utf-8"
"""The content type of server-sent events."""
TEMPLATES = 8
"""So many templates that never matched show that the worker's chunks differ in more than their text."""


def is_empty(data: bytes) -> bool:
    """Whether an event holds nothing: llama.cpp sends `data: null` before the chunks of several prompts."""
    return data in (b"null", b"")


class Machine(Protocol):
    """Call `open` first; `feed` and `close` may raise `BadAnswer`; an event's tag is its name."""

    @property
    def tokens(self) -> Tokens: ...
    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None: ...
    def open(self) -> Sequence[msgspec.Struct]: ...
    def feed(self, chunk: Chunk) -> Sequence[msgspec.Struct]: ...
    def close(self) -> Sequence[msgspec.Struct]: ...
    def ping(self) -> Sequence[msgspec.Struct]: ...
    def fail(self, fault: Fault) -> Sequence[msgspec.Struct]: ...


class Stream(Protocol):
    """A stream to a client.

    Call `fit()` when the prompt was counted, `open()` and `ping()` while waiting (with the reason, if it is known),
    `feed()` per piece of the worker's body, `close()` at its end, `fail()` when the worker is lost. `feed_chunk()`,
    where there is one, takes a piece in HTTP's chunk framing and returns it as framed for the client; it returns
    nothing, and has no effect, if the piece has to be fed without its framing. `fault`: the error
    that ended it; `over`: no bytes follow; `tokens`: the worker's usage; `rough_tokens`: an estimate of the output so
    far, for a stream that ends without usage; `media_type`: its content type; `tells_errors`: whether `fail` returns
    an error that a client reads, else a failed stream ends with its connection.
    """

    fault: Fault | None
    over: bool
    media_type: bytes
    tells_errors: bool
    feed_chunk: Callable[[bytes], bytes] | None

    @property
    def rough_tokens(self) -> int: ...
    @property
    def tokens(self) -> Tokens: ...
    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None: ...
    def open(self) -> bytes: ...
    def feed(self, data: bytes) -> bytes: ...
    def close(self) -> bytes: ...
    def ping(self, reason: str = "") -> bytes: ...
    def fail(self, fault: Fault) -> bytes: ...


class FrameStream(ABC):
    """The loop over a worker's frames, which every `Stream` has. A subclass says what one frame becomes.

    A subclass that calls `_learn` for each chunk is given the chunks that differ from it in their text only as
    `_relay_texts`, without a frame.
    """

    media_type = EVENTS
    tells_errors = True

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.over = False
        self.feed_chunk: Callable[[bytes], bytes] | None = None
        self._rough_tokens = 0
        """Without those of `_chunk_form`."""
        self._frames = SSEDecoder()
        self._is_between = True
        """Whether the next byte begins a frame."""
        self._template: Template | None = None
        self._templates = 0
        """Templates since one last matched."""
        self._chunk_form: ChunkForm | None = None
        """Relays a chunk of HTTP as it is framed, if a template has the event in it."""

    @property
    def rough_tokens(self) -> int:
        return self._rough_tokens + (self._chunk_form.rough_tokens if self._chunk_form else 0)

    def feed(self, data: bytes) -> bytes:
        """Relay the frames that a piece of the worker's body completes."""
        if self.over:
            return b""
        out: list[bytes] = []
        template = self._template
        try:
            if template is not None and self._is_between and (texts := template.texts(data)):
                self._templates = 0
                self._relay_texts(template, texts, data, out)
                return b"".join(out)
            for frame in self._frames.feed(data):
                self._relay(frame, out)
                if self.over:
                    break
            self._is_between = self._frames.is_between
        except BadAnswer as error:
            out.append(self.fail(error.fault()))
        form = self._chunk_form
        self.feed_chunk = None if form is None or self.over or not self._is_between else form.pass_on
        return b"".join(out)

    def close(self) -> bytes:
        """End the stream: the worker's body has ended."""
        self.feed_chunk = None
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.close():
                self._relay_last(frame, out)
            if not self.over:
                self._end(out)
        except BadAnswer as error:
            out.append(self.fail(error.fault()))
        return b"".join(out)

    def fail(self, fault: Fault) -> bytes:
        """End the stream with an error."""
        if self.over:
            return b""
        self.over, self.fault, self.feed_chunk = True, fault, None
        return self._encode_fault(fault)

    def _learn(self, chunk: Chunk, data: bytes) -> Template | None:
        """Take a chunk that was decoded as the template of those that follow, and return it. None: the chunk cannot be
        one, or too many before it never matched."""
        form, self._chunk_form = self._chunk_form, None
        if form is not None and form.rough_tokens:
            self._templates = 0
            self._rough_tokens += form.rough_tokens
        if self._templates >= TEMPLATES:
            return None
        self._templates += 1
        self._template = template_of(chunk, data)
        return self._template

    def _relay_texts(self, template: Template, texts: list[bytes], data: bytes, out: list[bytes]) -> None:
        """Append what the chunks of a template become, which `data` is made of. Raises BadAnswer."""
        raise NotImplementedError

    @abstractmethod
    def _relay(self, frame: Frame, out: list[bytes]) -> None:
        """Append what a frame becomes. Raises BadAnswer."""

    @abstractmethod
    def _relay_last(self, frame: Frame, out: list[bytes]) -> None:
        """Do the same for the rest of the body, which may be half a frame. Raises BadAnswer."""

    @abstractmethod
    def _end(self, out: list[bytes]) -> None:
        """Append the end of a body that ended without an end marker. Raises BadAnswer when it is incomplete."""

    @abstractmethod
    def _encode_fault(self, fault: Fault) -> bytes:
        """Return an error as the dialect ends a stream with it."""


class TranslatedStream(FrameStream):
    """The `Stream` of a dialect that a `Machine` writes: as named events, unless a subclass encodes them otherwise."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    @property
    def tokens(self) -> Tokens:
        return self._machine.tokens

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        """Take the output limit that the worker gets, and the prompt's tokens if they were counted."""
        self._machine.fit(max_tokens, input_tokens)

    def open(self) -> bytes:
        return b"" if self.over else self._encode_events(self._machine.open())

    def ping(self, reason: str = "") -> bytes:
        if self.over:
            return b""
        return (comment(reason) if reason else b"") + self._encode_events(self._machine.ping())

    def _relay(self, frame: Frame, out: list[bytes]) -> None:
        if frame.data == DONE:
            self._end(out)
        elif not is_empty(frame.data):
            chunk = chunks.decode(frame.data)
            self._relay_chunk(chunk, out)
            self._learn(chunk, frame.data)

    def _relay_texts(self, template: Template, texts: list[bytes], data: bytes, out: list[bytes]) -> None:
        for text in texts:
            self._relay_chunk(template.chunk(text), out)

    def _relay_chunk(self, chunk: Chunk, out: list[bytes]) -> None:
        self._rough_tokens += chunks.rough_tokens(chunk)
        if opening := self._machine.open():
            out.append(self._encode_events(opening))
        out.append(self._encode_events(self._machine.feed(chunk)))

    def _relay_last(self, frame: Frame, out: list[bytes]) -> None:
        """Relay the last frame. It may be half a chunk, which is ignored."""
        if frame.data == DONE or is_empty(frame.data):
            return
        try:
            chunk = chunks.decode(frame.data)
        except chunks.UnreadableAnswer:
            return
        self._relay_chunk(chunk, out)

    def _end(self, out: list[bytes]) -> None:
        out.append(self._encode_events(self._machine.close()))
        self.over = True

    def _encode_fault(self, fault: Fault) -> bytes:
        return self._encode_events(self._machine.fail(fault))

    def _encode_events(self, events: Sequence[msgspec.Struct]) -> bytes:
        return b"".join([_prefix(type(event)) + _encode(event) + b"\n\n" for event in events])


_encode = msgspec.json.Encoder().encode


@functools.cache
def _prefix(event: type[msgspec.Struct]) -> bytes:
    """SDKs ignore an event without a name."""
    return b"event: %b\ndata: " % str(event.__struct_config__.tag).encode()
