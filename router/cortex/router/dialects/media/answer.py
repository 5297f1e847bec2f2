"""Pass on a worker's answer to a request for audio or images, and read its usage. Pure.

JSON is read as a whole; audio, text and events pass through. An error in a stream of events is one more event. Any
other broken answer ends with its connection, so that it never looks complete.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from cortex.router.dialects.core import lenient
from cortex.router.dialects.core.chunks import Plain, Tokens, count, map_json_errors
from cortex.router.dialects.core.errors import BadAnswer, Dialect, Fault, openai_error
from cortex.router.dialects.core.stream import EVENTS
from cortex.router.dialects.core.worker_errors import fault_from_error

JSON = "application/json"
OTHER = b"application/octet-stream"
"""The content type in place of one that no client of audio or images expects: a browser does not render it."""
_EXPECTED = re.compile(
    r"audio/[a-z0-9.+-]+|image/(png|jpeg|webp|gif)|video/mp4|text/(plain|vtt|srt)|application/(x-subrip|ogg)"
)
_PARAMETERS = re.compile(r"(; ?(charset|codecs|rate|channels|bitrate)=[A-Za-z0-9._-]{1,40})*")
_LONGEST_EVENT = 256 * 1024
"""Bytes of the longest event that is read for its usage. Events with whole images are longer and only pass through."""
MOST_S = 1e7
"""Largest duration of audio to accept from a worker, in seconds."""


class _Usage(msgspec.Struct):
    """OpenAI's: of tokens, or of seconds."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    duration: float | str | None = None
    data: list[msgspec.Raw] | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class Reply(msgspec.Struct, frozen=True):
    """Converts the answer. `characters`: the length of the text to speak."""

    kind: Dialect
    characters: int = 0

    def plain(self, body: bytes) -> Plain:
        """Return an answer in JSON. Raises `BadAnswer`."""
        with map_json_errors():
            answer, body = lenient.decode(body, _decoder)
        if answer.error:
            fault = fault_from_error(answer.error)
            raise BadAnswer(fault.message, fault)
        return Plain(body, self._tokens(answer))

    def stream(self, content_type: str) -> "MediaStream | None":
        """Return the stream for an answer of a content type; None for JSON."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind == JSON:
            return None
        return MediaStream(self, _media_type(kind, content_type), Tokens(characters=self.characters))

    def _tokens(self, answer: _Answer) -> Tokens:
        usage = answer.usage or _Usage()
        seconds = usage.seconds if usage.seconds is not None else _seconds(answer.duration)
        is_image = self.kind in ("images", "image_edits")
        return Tokens(
            input=count(usage.input_tokens or usage.prompt_tokens),
            output=count(usage.output_tokens or usage.completion_tokens),
            audio_s=min(max(0.0, seconds), MOST_S),
            characters=self.characters,
            images=len(answer.data or ()) if is_image else 0,
        )


class MediaStream:
    """The `Stream` of an answer that is not JSON."""

    rough_tokens = 0
    feed_chunk: Callable[[bytes], bytes] | None = None
    """Only the body is read."""

    def __init__(self, reply: Reply, media_type: bytes, tokens: Tokens) -> None:
        self.fault: Fault | None = None
        self.over = False
        self.media_type, self.tokens = media_type, tokens
        self.tells_errors = media_type == EVENTS
        self._reply = reply
        self._line = b""
        self._skips = False

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        """Do nothing: there is no limit of tokens."""

    def open(self) -> bytes:
        return b""

    def ping(self, reason: str = "") -> bytes:
        return b""

    def feed(self, data: bytes) -> bytes:
        """Pass on a piece of the answer."""
        if self.over:
            return b""
        if self.tells_errors:
            self._read(data)
        return data

    def close(self) -> bytes:
        """End the answer: the worker's body has ended."""
        self.over = True
        return b""

    def fail(self, fault: Fault) -> bytes:
        """End it with an error, if its format has one."""
        if self.over:
            return b""
        self.over, self.fault = True, fault
        if not self.tells_errors:
            return b""
        error = {"type": "error", **msgspec.to_builtins(openai_error(fault))}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error)

    def _read(self, data: bytes) -> None:
        """Read the usage in events, line by line; a line that is too long is skipped."""
        first, *others = data.split(b"\n")
        for piece, ends in ((first, bool(others)), *((line, True) for line in others[:-1])):
            self._add(piece)
            if ends:
                self._end_line()
        if others:
            self._add(others[-1])

    def _add(self, piece: bytes) -> None:
        self._skips = self._skips or len(self._line) + len(piece) > _LONGEST_EVENT
        self._line = b"" if self._skips else self._line + piece

    def _end_line(self) -> None:
        line, self._line = self._line, b""
        self._skips = False
        if not line.startswith(b"data:") or b'"usage"' not in line:
            return
        try:
            answer = _decoder.decode(line[5:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if answer.usage is not None:
            self.tokens = self._reply._tokens(answer)


def _media_type(kind: str, whole: str) -> bytes:
    """Return the content type for the client. A worker cannot choose one that a browser would execute."""
    if kind == "text/event-stream":
        return EVENTS
    if not _EXPECTED.fullmatch(kind):
        return OTHER
    rest = whole.partition(";")
    parameters = (rest[1] + rest[2]).strip()
    return f"{kind}{parameters if _PARAMETERS.fullmatch(parameters) else ''}".encode()


def _seconds(duration: float | str | None) -> float:
    try:
        return float(duration or 0.0)
    except ValueError:
        return 0.0
