"""Heads of HTTP messages that come again: a client, or a worker, sends the same lines with another length. Pure.

A whole message whose head differs from one that a parser has accepted in nothing but the digits of Content-Length means
the same as that one, so it needs no parser: that costs a call for each header.
"""

import re
from typing import Generic, NamedTuple, TypeVar

Meaning = TypeVar("Meaning")
Head = tuple[bytes, bytes]
"""A head before and after the digits of its length."""

_END = b"\r\n\r\n"
_DIGITS = 9
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d{1,%d})\r\n" % _DIGITS)
MOST = 64
"""Heads to remember."""
MISSES, PAUSE = 16, 1000
"""So many messages in a row with an unknown head show that heads differ: the next ones, so many, are not compared."""


class Split(NamedTuple):
    """A whole message: its head without the digits of its length, these digits, and its body."""

    head: Head
    length: bytes
    body: bytes


def split(data: bytes) -> Split | None:
    """Split a piece that is one whole message with a stated length; None: it is not."""
    end = data.find(_END)
    length = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if length is None:
        return None
    body_at = end + len(_END)
    if body_at + int(length[1]) != len(data):
        return None
    start, stop = length.span(1)
    return Split((data[:start], data[stop:body_at]), length[1], data[body_at:])


def match(data: bytes, head: Head) -> tuple[bytes, bytes] | None:
    """Return the digits of the length and the body of a piece that is one whole message with this head; None: it is
    not. Agrees with `split`, and costs less than half of it."""
    before, after = head
    start = len(before)
    stop = data.find(b"\r\n", start, start + _DIGITS + 2)
    length = data[start:stop]
    if stop < 0 or not length.isdigit() or not (data.startswith(before) and data.startswith(after, stop)):
        return None
    body_at = stop + len(after)
    return (length, data[body_at:]) if body_at + int(length) == len(data) else None


def has_lines(head: Head, headers: int) -> bool:
    """Whether a head is one message's with so many headers, a line each. A parser that takes other line ends, empty
    lines or folded headers may have read several messages in a piece that `split` takes for one."""
    before, after = head
    lines = headers + 2  # the first one, and the empty one
    return before.count(b"\n") + after.count(b"\n") == before.count(b"\r") + after.count(b"\r") == lines


class KnownHeads(Generic[Meaning]):
    """Heads that a parser has read, with what they mean."""

    def __init__(self) -> None:
        self._meanings: dict[Head, Meaning] = {}
        self._misses = self._pause = 0

    def split(self, data: bytes) -> Split | None:
        """Split a message, unless heads are not compared for now."""
        if self._pause:
            self._pause -= 1
            return None
        return split(data)

    def find(self, head: Head) -> Meaning | None:
        """Return what a head means; None: it has not been read yet, or long ago."""
        meaning = self._meanings.get(head)
        if meaning is not None:
            self._misses = 0
            return meaning
        self._misses += 1
        if self._misses >= MISSES:
            self._misses, self._pause = 0, PAUSE
        return None

    def learn(self, head: Head, meaning: Meaning) -> None:
        """Remember a head that the parser has accepted."""
        if len(self._meanings) >= MOST:
            self._meanings.clear()
        self._meanings[head] = meaning
