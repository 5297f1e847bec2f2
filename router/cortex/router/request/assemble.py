"""Assemble a whole answer from a stream of chunks. Pure.

llama.cpp's server notices a disconnect only while it streams; a plain request runs to its end without a client. So
plain requests are streamed from it and assembled here. Chunks are merged by type, not by name: strings and lists of a
delta are concatenated, calls are merged by index, other values are replaced, so fields of newer servers pass. All sizes
are bounded: a stream may be invalid or endless.
"""

from collections.abc import Iterable
from io import StringIO
from typing import Any

import msgspec

from cortex.router.dialects.core import lenient
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.sse import Event, SSEDecoder
from cortex.router.dialects.core.stream import DONE, is_empty

ASSEMBLED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""The worker's paths whose streams can be assembled."""

MOST_BYTES = 64 * 1024 * 1024
"""Largest size of a stream; about 250000 tokens."""
MOST_CHOICES = 1024
MOST_CALLS = 1024
MOST_PARTS = 100_000
"""Largest number of members in one list or object."""

_TAGS = frozenset({"role", "id", "type", "name"})
"""Strings that are replaced when repeated, not concatenated."""


_decoder = msgspec.json.Decoder(dict[str, Any])


class BadStream(Exception):
    """The stream is invalid or incomplete. `error` is the worker's error object, if it sent one."""

    def __init__(self, message: str, error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = error


def streaming_request(body: Body) -> Body | None:
    """Return a plain request's body as a streaming one, or None if the stream would differ from the plain answer.

    llama.cpp omits the end token's log-probability in streams, and does not stream log-probabilities with tools.
    """
    if not isinstance(body, bytes):
        if "logprobs" in body or "n_probs" in body:
            return None
        return body.replace({"stream": b"true", "stream_options": b'{"include_usage":true}'})
    fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if "logprobs" in fields or "n_probs" in fields:
        return None
    fields["stream"] = True
    fields["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(fields)


class CutStream(BadStream):
    """The stream ended before its end marker: the worker may have died."""


class Assembly:
    """Feed it the stream, then call `close` for the whole answer."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._frames = SSEDecoder()
        self._left = self._most_bytes = most_bytes
        self._whole: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usages: dict[int, dict[str, Any]] = {}
        """Of the choices of a completion: llama.cpp counts each prompt by itself."""
        self._finished = False

    def feed(self, data: bytes) -> None:
        """Add a piece of the stream. Raises BadStream for the worker's own error, BadAnswer for a too long stream."""
        self._left -= len(data)
        if self._left < 0:
            raise BadAnswer(f"the worker's answer is longer than {self._most_bytes} bytes")
        for event in self._frames.feed(data):
            self._read(event)

    def close(self) -> bytes:
        """Return the whole answer. Raises CutStream when the stream is incomplete."""
        for event in self._frames.close():
            self._read(event)
        if not self._finished or not self._choices:
            raise CutStream("its stream ended without an end marker")
        kind = str(self._whole.get("object", "")).replace(".chunk", "")
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            _fill_in_text(choice)
        if len(self._usages) > 1:
            self._whole["usage"] = _sum(self._usages.values())
        try:
            return msgspec.json.encode({**self._whole, "object": kind, "choices": choices}, enc_hook=_text)
        except (RecursionError, ValueError, OverflowError):
            raise _invalid_chunk() from None

    def _read(self, event: Event) -> None:
        if event.data == DONE:
            self._finished = True
            return
        if is_empty(event.data):
            return
        try:
            self._merge(lenient.decode(event.data, _decoder)[0])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BadStream("its stream holds invalid or too deeply nested JSON") from None

    def _merge(self, chunk: dict[str, Any]) -> None:
        if isinstance(error := chunk.get("error"), dict):
            raise BadStream("the worker failed", error)
        for choice in _objects(chunk.pop("choices", None)):
            if "text" in choice and isinstance(chunk.get("usage"), dict):
                self._usages[_index(choice, 0, MOST_CHOICES)] = chunk["usage"]
            self._merge_choice(choice)
        self._whole.update(chunk)
        _bound(self._whole)

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        current = self._choices.setdefault(_index(choice, 0, MOST_CHOICES), {})
        if "delta" in choice:
            message = current.setdefault("message", {"role": "assistant", "content": None})
            _append(_object(message), _object(choice.pop("delta")))
        if "text" in choice:
            text = choice.pop("text") or ""
            if not isinstance(text, str):
                raise _invalid_chunk()
            current.setdefault("text", "")
            _append(current, {"text": text})
        current.update(choice)
        _bound(current)


def _fill_in_text(choice: dict[str, Any]) -> None:
    """Set "" as the text of a message that has neither text nor calls, as the engine's own plain answers do."""
    message = choice.get("message")
    if isinstance(message, dict) and message.get("content") is None and not message.get("tool_calls"):
        message["content"] = ""


def _sum(usages: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the usage of several prompts together."""
    total: dict[str, Any] = {}
    for usage in usages:
        for name, value in usage.items():
            current = total.get(name)
            if type(value) is int and not isinstance(current, dict):
                total[name] = (current or 0) + value
            elif isinstance(value, dict) and not isinstance(current, int):
                total[name] = _sum((current or {}, value))
    return total


def _append(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        current = whole.get(key)
        if value is None:
            whole.setdefault(key, None)
        elif key == "tool_calls":
            _append_calls(whole, value)
        elif isinstance(current, str | StringIO) and isinstance(value, str) and key not in _TAGS:
            if isinstance(current, str):  # appending to a str would copy it for every token
                whole[key] = StringIO()
                whole[key].write(current)
            whole[key].write(value)
        elif isinstance(current, list) and isinstance(value, list):
            current.extend(value)
            _bound(current)
        elif isinstance(current, dict) and isinstance(value, dict):
            _append(current, value)
        else:
            whole[key] = value
    _bound(whole)


def _append_calls(message: dict[str, Any], deltas: object) -> None:
    """A call's deltas carry its index; the whole answer's calls do not."""
    calls = message["tool_calls"] = _objects(message.get("tool_calls"))
    for delta in _objects(deltas):
        index = _index(delta, max(0, len(calls) - 1), MOST_CALLS)
        delta.pop("index", None)
        while len(calls) <= index:
            calls.append({})
        _append(calls[index], delta)


# Validation of chunks.


def _text(text: Any) -> str:
    """Return a concatenated string."""
    assert isinstance(text, StringIO)
    return text.getvalue()


def _object(value: object) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise _invalid_chunk()
    return value or {}


def _objects(values: object) -> list[dict[str, Any]]:
    """Return a list of objects; none for null."""
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise _invalid_chunk()
    return values


def _index(entry: dict[str, Any], default: int, most: int) -> int:
    index = entry.get("index")
    if index is None:
        return default
    if type(index) is not int or not 0 <= index < most:
        raise _invalid_chunk()
    return index


def _bound(values: dict[str, Any] | list[Any]) -> None:
    if len(values) > MOST_PARTS:
        raise _invalid_chunk()


def _invalid_chunk() -> BadStream:
    return BadStream("its stream holds an invalid chunk")
