"""Recognise the chunks of a stream that differ from an earlier one in one piece of text only. Pure.

A worker writes the same chunk for every token but for the text. Once one chunk has been decoded and passed on, a chunk
with the same bytes around a valid JSON string has the same meaning, and needs no decoding: what was read from the first
one (no role, no call, no usage, no end, the name of the model) holds for it. Anything else is decoded.
"""

import re

import msgspec

from cortex.router.dialects.core.chunks import CHARACTERS_PER_TOKEN, Chunk

_TEXTS = ("content", "reasoning_content")
_HEAD, _END = b"data: ", b"\n\n"
_STRING = re.compile(rb'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*')
"""The inside of a JSON string. Escapes by number are decoded: half a surrogate pair has to be repaired."""
_ESCAPE = re.compile(rb"\\.")
_encode = msgspec.json.Encoder().encode


class Template:
    """The bytes around the text of a worker's chunk, with its frame, and those that the client gets instead."""

    __slots__ = ("_after", "_before", "_least", "_output")

    def __init__(self, around: tuple[bytes, bytes], output: tuple[bytes, bytes]) -> None:
        self._before, self._after = around
        self._least = len(self._before) + len(self._after)
        self._output = None if output == around else output

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Return a piece of a stream as the client gets it, and an estimate of its tokens: at least one per frame; 0
        for a piece that is not made of whole frames of this form."""
        before, after, output = self._before, self._after, self._output
        frames: list[bytes] = []
        tokens = at = 0
        while at < len(data):
            end = data.find(_END, at) + len(_END)
            if end < at + self._least or not data.startswith(before, at) or not data.endswith(after, at, end):
                return b"", 0
            text = data[at + len(before) : end - len(after)]
            if not text or _STRING.fullmatch(text) is None or not (text.isascii() or _is_utf8(text)):
                return b"", 0
            tokens += max(1, _characters(text) // CHARACTERS_PER_TOKEN)
            if output is not None:
                frames += (output[0], text, output[1])
            at = end
        return data if output is None else b"".join(frames), tokens


def template_of(chunk: Chunk, data: bytes, output: bytes) -> Template | None:
    """Return the template of a chunk that was passed on as `output`; None if it has no single piece of text."""
    if chunk.usage is not None or chunk.stopping_word or not chunk.choices or len(chunk.choices) != 1:
        return None
    choice = chunk.choices[0]
    delta = choice.delta
    if choice.finish_reason or choice.message is not None:
        return None
    if delta is None:
        texts = {"text": choice.text} if isinstance(choice.text, str) else {}
    elif delta.role or delta.tool_calls or delta.reasoning or choice.text is not None:
        return None
    else:
        texts = {name: text for name in _TEXTS if (text := getattr(delta, name))}
    if len(texts) != 1:
        return None
    ((name, text),) = texts.items()
    if not text:
        return None
    around, outputs = (_around(json, name.encode(), _encode(text)) for json in (data, output))
    return Template(around, outputs) if around and outputs else None


def _around(json: bytes, name: bytes, text: bytes) -> tuple[bytes, bytes] | None:
    """Return the frame of a chunk before and after a text; None unless the text is there once."""
    for member in (b'"%b":%b' % (name, text), b'"%b": %b' % (name, text)):
        if json.count(member) == 1 and b"\n" not in json:
            end = json.index(member) + len(member) - 1
            return _HEAD + json[: end - len(text) + 2], json[end:] + _END
    return None


def _characters(text: bytes) -> int:
    """Return the number of characters of a JSON string without escapes by number."""
    if b"\\" in text:
        text = _ESCAPE.sub(b"x", text)
    return len(text) if text.isascii() else len(text.decode("utf-8", "replace"))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
