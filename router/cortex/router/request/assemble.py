"""A whole answer from a stream of chunks, as the worker would have given it. Pure.

llama.cpp's server notices that its client has left only when it streams; a plain request runs on to its end
with nobody there. So plain requests are streamed from it and put together here. Chunks are merged by what
they are, not by what they are called: texts and lists of a delta grow, calls are merged by index, everything
else is replaced. A field a newer server adds is so carried along.
"""

from typing import Any

import msgspec

from cortex.router.dialects.sse import Event, SSEDecoder

ASSEMBLED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""The worker's paths whose streams can be put together here."""

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

    def __init__(self) -> None:
        self._frames = SSEDecoder()
        self._whole: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._finished = False

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream. Raises BadStream for the worker's own error."""
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
        return msgspec.json.encode({**self._whole, "object": kind, "choices": choices})

    def _take(self, event: Event) -> None:
        if event.data == b"[DONE]":
            self._finished = True
            return
        try:
            chunk = msgspec.json.decode(event.data, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise BadStream("its stream holds something that is not JSON") from None
        if isinstance(error := chunk.get("error"), dict):
            raise BadStream(str(error.get("message", "the worker failed")), error)
        for choice in chunk.pop("choices", None) or ():
            self._merge_choice(choice)
        self._whole.update(chunk)

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        known = self._choices.setdefault(choice.get("index", 0), {})
        if "delta" in choice:
            message = known.setdefault("message", {"role": "assistant", "content": None})
            _grow(message, choice.pop("delta") or {})
        if "text" in choice:
            known["text"] = known.get("text", "") + (choice.pop("text") or "")
        known.update(choice)


def _grow(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        known = whole.get(key)
        if value is None:
            whole.setdefault(key, None)
        elif key == "tool_calls":
            _grow_calls(whole.setdefault(key, []), value)
        elif isinstance(known, str) and isinstance(value, str) and key not in _TAGS:
            whole[key] = known + value
        elif isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        elif isinstance(known, dict) and isinstance(value, dict):
            _grow(known, value)
        else:
            whole[key] = value


def _grow_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """A call's deltas carry its index; the whole answer's calls do not."""
    for delta in deltas:
        index = delta.pop("index", max(0, len(calls) - 1))
        while len(calls) <= index:
            calls.append({})
        _grow(calls[index], delta)
