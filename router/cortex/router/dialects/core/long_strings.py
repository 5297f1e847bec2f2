"""Large JSON without its long strings. Pure.

Most of a large body is a few long strings: images in base64, documents. A parser walks through every byte of them in
one call, in which no other thread runs. So they are cut out first, at the speed of a search for the next quote; what
is left is counted, repaired and split, and each part is a view of the original again. A string with escapes or other
characters than ASCII stays: a body has little of those (`sizes.MAX_TEXT`).
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from cortex.router.dialects.core.large_object import room

_STEP = 8 * 1024
"""Bytes without a quote that are looked at as a part of a long string."""
_LOOK = 128 * 1024
"""Bytes to look at in one call; other threads run in between."""
_BEGINNING = 4096
"""Characters of a Beginning, more than in the head of a data URL."""
_PIECE = 1024 * 1024
"""Bytes to decode in one call."""
_LEVELS = 8
"""Levels of large JSON to decode separately: messages, contents, parts and their fields."""
_STRUCTURE = b"0123456789+-.eE,:[]{} \t\r\ntruefalsn"
"""What can be outside of a string in JSON."""
_DIGITS = 8
"""Digits of a long string's number."""
_split_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_skip = msgspec.json.Decoder(msgspec.Raw).decode


class Beginning(str):
    """The first characters of a long string, in place of all of it. `data` is the whole, in ASCII."""

    __slots__ = ("data",)
    data: memoryview


class Outline:
    """JSON without its long strings: `text` has a name in place of each one's content, `strings` its range."""

    def __init__(self, json: bytes | memoryview) -> None:
        self._json = memoryview(json)
        self.strings = tuple(_long_strings(self._json))
        rest = self._rest() if self.strings else []
        self._prefix = "x" + blake2b(b"".join(rest), digest_size=16).hexdigest()
        """Begins the name of each long string: no text contains its own digest, and outside of strings, a letter before
        it is no JSON."""
        self._mark = self._prefix.encode()
        names = [b"%b%0*x" % (self._mark, _DIGITS, number) for number in range(len(self.strings))]
        pieces = [piece for pair in zip(rest, (*names, b""), strict=bool(rest)) for piece in pair]
        self.text = b"".join(pieces) if pieces else bytes(json)

    def check(self) -> None:
        """Check the long strings as a parser does. Raises msgspec.DecodeError."""
        for start, end in self.strings:
            for at in range(start, end, _LOOK):
                _skip(b'"%b"' % bytes(self._json[at : min(at + _LOOK, end)]))

    def fields(self) -> dict[str, msgspec.Raw]:
        """Return the fields of an object, as parts of the text. Raises msgspec.DecodeError."""
        return {self._name(name): part for name, part in _split_fields(self.text).items()}

    def decode(self, part: bytes | msgspec.Raw, *, whole: bool = True, levels: int = _LEVELS) -> Any:
        """Decode a part of the text with its long strings, or with the Beginning of each, unless `whole`: a large part
        element by element, so that no single call takes long. Raises msgspec.DecodeError."""
        view = memoryview(part)
        if len(view) >= _PIECE and levels:
            match bytes(view[:1]):
                case b"[":
                    return [self.decode(one, whole=whole, levels=levels - 1) for one in _split_elements(part)]
                case b"{":
                    fields = _split_fields(part).items()
                    return {self._name(k): self.decode(one, whole=whole, levels=levels - 1) for k, one in fields}
        value = msgspec.json.decode(part)
        return self._fill(value, whole=whole) if self.strings and self._mark in bytes(view) else value

    def restore(self, part: msgspec.Raw) -> msgspec.Raw:
        """Return a part of the text with its long strings, as a view of the original."""
        text = bytes(part) if self.strings else b""
        first, last = text.find(self._mark), text.rfind(self._mark)
        if first < 0:
            return part
        start = self._range(text, first)[0] - first
        end = self._range(text, last)[1] + len(text) - (last + len(self._mark) + _DIGITS)
        return msgspec.Raw(self._json[start:end])

    def restore_all(self, text: bytes) -> bytes:
        """Copy a text that was made of this one's values, with its long strings. Other threads run in between."""
        whole, at = room(len(text) + sum(end - start for start, end in self.strings)), 0
        while (name := text.find(self._mark, at)) >= 0:
            whole.write(text[at:name])
            start, end = self._range(text, name)
            for piece in range(start, end, _LOOK):
                whole.write(self._json[piece : min(piece + _LOOK, end)])
            at = name + len(self._mark) + _DIGITS
        whole.write(text[at:])
        whole.truncate()
        return whole.getvalue()

    def _rest(self) -> list[memoryview]:
        """Return what is before, between and after the long strings."""
        starts = [start for start, _end in self.strings]
        ends = [end for _start, end in self.strings]
        return [self._json[end:start] for end, start in zip((0, *ends), (*starts, None), strict=True)]

    def _fill(self, value: Any, *, whole: bool) -> Any:
        """Return a decoded part of the text with its long strings."""
        if isinstance(value, str):
            return self._name(value, whole=whole)
        if isinstance(value, list):
            return [self._fill(element, whole=whole) for element in value]
        if isinstance(value, dict):
            return {self._name(name): self._fill(field, whole=whole) for name, field in value.items()}
        return value

    def _name(self, text: str, *, whole: bool = True) -> str:
        """Return a decoded string, or the long string whose name it is."""
        if not self.strings or not text.startswith(self._prefix):
            return text
        start, end = self.strings[int(text[len(self._prefix) :], 16)]
        if whole:
            return str(self._json[start:end], "ascii")
        beginning = Beginning(str(self._json[start : min(start + _BEGINNING, end)], "ascii"))
        beginning.data = self._json[start:end]
        return beginning

    def _range(self, text: bytes, at: int) -> tuple[int, int]:
        """Return the range of the string whose name is at this index of a text."""
        start = at + len(self._mark)
        return self.strings[int(text[start : start + _DIGITS], 16)]


def whole(text: str) -> str:
    """Return a string, whole if it is a Beginning."""
    return str(text.data, "ascii") if isinstance(text, Beginning) else text


def _long_strings(json: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the ranges of long strings' contents: of those in ASCII without escapes. Some of a few steps are not found.

    A range without a quote is a string's content, or outside of strings. Outside, JSON has no other characters than
    `_STRUCTURE`; JSON that has others there is invalid, and stays so with a name in their place.
    """
    at, size = 0, len(json)
    while at + _STEP <= size:
        step = bytes(json[at : at + _STEP])
        if b'"' in step:
            at += _STEP
            continue
        before = bytes(json[max(0, at - _STEP) : at])
        start = at - len(before) + before.rfind(b'"') + 1
        end, is_plain = _end_of_string(json, at)
        is_plain = is_plain and _is_plain(bytes(json[max(0, start - 2) : at]))  # with what may escape the quote
        if is_plain and b'"' in before and end < size and step.translate(None, _STRUCTURE):
            yield start, end
        at = end + 1


def _end_of_string(json: memoryview, at: int) -> tuple[int, bool]:
    """Return the index of the next quote, or the JSON's length without one; and whether what precedes it is plain."""
    is_plain = True
    while at < len(json):
        piece = bytes(json[at : at + _LOOK])
        quote = piece.find(b'"')
        is_plain = is_plain and _is_plain(piece if quote < 0 else piece[:quote])
        if quote >= 0:
            return at + quote, is_plain
        at += _LOOK
    return len(json), is_plain


def _is_plain(text: bytes) -> bool:
    """Whether a text has neither escapes nor other characters than ASCII."""
    return text.isascii() and b"\\" not in text
