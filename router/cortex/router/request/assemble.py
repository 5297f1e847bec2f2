"""A whole answer from a stream of chunks, as the worker would have given it. Pure.

llama.cpp's server notices that its client has left only when it streams; a plain request runs on to its end
with nobody there. So plain requests are streamed from it and put together here. Chunks are merged by what
they are, not by what they are called: texts and lists of a delta grow, calls are merged by index, everything
else is replaced. A field a newer server adds is so carried along. What grows has a bound: a stream may be wrong, or
without end.
"""

from io import StringIO
from typing import Any

import msgspec

from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.sse import Event, SSEDecoder

ASSEMBLED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""The worker's paths whose streams can be put together here."""

MOST_BYTES = 64 * 1024 * 1024
"""Of a stream. One of 250000 tokens has as many."""
MOST_CHOICES = 1024
MOST_CALLS = 1024
MOST_PARTS = 100_000
"""Of one list or object in an answer."""

_TAGS = frozenset({"role", "id", "type", "name"})
"""Texts that name something: said again, they replace; they do not grow."""


class BadStream(Exception):
    """The stream ended too early, or is not one. `error` is the worker's own error object, if it sent one."""

    def __init__(self, message: str, error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = error


def asked_to_stream(body: bytes) -> bytes | None:
    """Return a plain request's body as a streaming one, or None where the worker would not stream the same.

    llama.cpp leaves the end token's log-probability out of streams, and refuses to stream them beside tools.
    """
    fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if "logprobs" in fields or "n_probs" in fields:
        return None
    fields["stream"] = True
    fields["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(fields)


class Assembly:
    """Feed it the stream, then take the whole."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._frames = SSEDecoder()
        self._left = self._most_bytes = most_bytes
        self._whole: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._finished = False

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream. Raises BadStream for the worker's own error, BadAnswer for too long a stream."""
        self._left -= len(data)
        if self._left < 0:
            raise BadAnswer(f"the worker's answer is longer than {self._most_bytes} bytes")
        for event in self._frames.feed(data):
            self._take(event)

    def close(self) -> bytes:
        """Return the whole answer. Raises BadStream when the stream had not ended."""
        for event in self._frames.close():
            self._take(event)
        if not self._finished or not self._choices:
            raise BadStream("its stream ended without an end marker")
        kind = str(self._whole.get("object", "")).replace(".chunk", "")
        choices = [self._choices[index] for index in sorted(self._choices)]
        try:
            return msgspec.json.encode({**self._whole, "object": kind, "choices": choices}, enc_hook=_written)
        except (RecursionError, ValueError, OverflowError):
            raise _nonsense() from None

    def _take(self, event: Event) -> None:
        if event.data == b"[DONE]":
            self._finished = True
            return
        try:
            self._merge(msgspec.json.decode(event.data, type=dict[str, Any]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BadStream("its stream holds something that is not JSON, or too deep") from None

    def _merge(self, chunk: dict[str, Any]) -> None:
        if isinstance(error := chunk.get("error"), dict):
            raise BadStream("the worker failed", error)
        for choice in _listed(chunk.pop("choices", None)):
            self._merge_choice(choice)
        self._whole.update(chunk)
        _bound(self._whole)

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        known = self._choices.setdefault(_index(choice, 0, MOST_CHOICES), {})
        if "delta" in choice:
            message = known.setdefault("message", {"role": "assistant", "content": None})
            _grow(_object(message), _object(choice.pop("delta")))
        if "text" in choice:
            text = choice.pop("text") or ""
            if not isinstance(text, str):
                raise _nonsense()
            known.setdefault("text", "")
            _grow(known, {"text": text})
        known.update(choice)
        _bound(known)


def _grow(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = whole.get(key)
        if value is None:
            whole.setdefault(key, None)
        elif key == "tool_calls":
            _grow_calls(whole, value)
        elif isinstance(known, str | StringIO) and isinstance(value, str) and key not in _TAGS:
            if isinstance(known, str):  # a string that grows by each token is copied by each token
                whole[key] = StringIO()
                whole[key].write(known)
            whole[key].write(value)
        elif isinstance(known, list) and isinstance(value, list):
            known.extend(value)
            _bound(known)
        elif isinstance(known, dict) and isinstance(value, dict):
            _grow(known, value)
        else:
            whole[key] = value
    _bound(whole)


def _grow_calls(message: dict[str, Any], deltas: object) -> None:
    """A call's deltas carry its index; the whole answer's calls do not."""
    calls = message["tool_calls"] = _listed(message.get("tool_calls"))
    for delta in _listed(deltas):
        index = _index(delta, max(0, len(calls) - 1), MOST_CALLS)
        delta.pop("index", None)
        while len(calls) <= index:
            calls.append({})
        _grow(calls[index], delta)


# What a chunk must be like.


def _written(text: Any) -> str:
    """Return a text that has grown."""
    assert isinstance(text, StringIO)
    return text.getvalue()


def _object(value: object) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise _nonsense()
    return value or {}


def _listed(values: object) -> list[dict[str, Any]]:
    """Return a list of objects; none for null."""
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise _nonsense()
    return values


def _index(entry: dict[str, Any], otherwise: int, most: int) -> int:
    index = entry.get("index")
    if index is None:
        return otherwise
    if type(index) is not int or not 0 <= index < most:
        raise _nonsense()
    return index


def _bound(values: dict[str, Any] | list[Any]) -> None:
    if len(values) > MOST_PARTS:
        raise _nonsense()


def _nonsense() -> BadStream:
    return BadStream("its stream holds a chunk that is no part of an answer")
