"""Bounds on a body's contents, checked before it is decoded. Pure.

A JSON element of a few bytes becomes an object of a hundred, and decoding a long string with escapes is one long call.
So large bodies are counted first, in pieces of one or two milliseconds that let other threads run in between. A body
that is mostly one image or one plain string is only counted.
"""

from msgspec import Struct

from cortex.router.dialects.core.errors import BadRequest

SMALL = 128 * 1024
"""Bytes of a body that is too small to exceed a bound."""
MAX_CONTAINERS = 100_000
"""Objects and lists in a body."""
MAX_VALUES = 1_000_000
"""Values in a body, counted by commas."""
MAX_TEXT = 8 * 1024 * 1024
"""Bytes of strings with escapes or non-ASCII characters in a body; base64 images have neither."""
MAX_STRING = 32 * 1024 * 1024
"""Bytes of one string, or of one image in base64."""
_PIECE = 256 * 1024
_SHORT = 256
_MARKS = (b",", b"[", b"{", b"\\")
_OTHERS = bytes(set(range(256)) - set(b"".join(_MARKS)))
"""What is not counted. To remove it first costs one pass; to count each mark among it costs four."""


class Bounds(Struct, frozen=True):
    """Limits on a body's structure, outside of strings."""

    containers: int = MAX_CONTAINERS
    values: int = MAX_VALUES


BOUNDS = Bounds()


def check_size(body: bytes, longest: int = 0) -> None:
    """Raise BadRequest for a body that exceeds the bounds of this module. `longest`: the length of the longest string
    that was cut out of it, in bytes."""
    if longest > MAX_STRING:
        raise _too_long_string()
    size = len(body)
    if size <= SMALL:
        return
    containers = values = escapes = 0
    for at in range(0, size, _PIECE):
        piece = body[at : at + _PIECE]
        if not any(mark in piece for mark in _MARKS):
            continue
        marks = piece.translate(None, _OTHERS)
        containers += marks.count(b"{") + marks.count(b"[")
        values += marks.count(b",")
        escapes += marks.count(b"\\")
    if escapes > MAX_TEXT:
        raise too_much_text()
    # These counts include the contents of strings, so they are upper bounds.
    large = size > MAX_TEXT and (escapes or not body.isascii())
    if large or size > MAX_STRING or containers > MAX_CONTAINERS or values > MAX_VALUES:
        count_exactly(body)


def count_exactly(body: bytes, bounds: Bounds = BOUNDS) -> None:
    """Count exactly, string by string. Raises BadRequest."""
    containers = values = text = outside = 0
    opening = body.find(b'"')
    while True:
        until = opening if opening >= 0 else len(body)
        for at in range(outside, until, _PIECE):
            piece = body[at : min(at + _PIECE, until)]
            containers += piece.count(b"{") + piece.count(b"[")
            values += piece.count(b",")
            if containers > bounds.containers:
                raise BadRequest(f"the body holds more than {bounds.containers} objects and lists")
            if values > bounds.values:
                raise BadRequest(f"the body holds more than {bounds.values} values")
        if opening < 0:
            return
        closing = _end_of_string(body, opening + 1)
        length = closing - opening - 1
        if length > MAX_STRING:
            raise _too_long_string()
        if length > _SHORT and _is_text(body, opening + 1, closing):
            text += length
            if text > MAX_TEXT:
                raise too_much_text()
        outside = closing + 1
        opening = body.find(b'"', outside)


def _end_of_string(body: bytes, start: int) -> int:
    """Return the index of a string's closing quote, or the body's length if it has none."""
    at = start
    while (quote := body.find(b'"', at)) >= 0:
        slashes = quote
        while slashes > start and body[slashes - 1] == 0x5C:
            slashes -= 1
        if (quote - slashes) % 2 == 0:
            return quote
        at = quote + 1
    return len(body)


def _is_text(body: bytes, start: int, end: int) -> bool:
    for at in range(start, end, _PIECE):
        piece = body[at : min(at + _PIECE, end)]
        if b"\\" in piece or not piece.isascii():
            return True
    return False


def _too_long_string() -> BadRequest:
    return BadRequest(f"a string in the body is longer than {MAX_STRING >> 20} MiB")


def too_much_text() -> BadRequest:
    """Return the error for more text than `MAX_TEXT`."""
    return BadRequest(f"the body holds more than {MAX_TEXT >> 20} MiB of text; images in base64 do not count")
