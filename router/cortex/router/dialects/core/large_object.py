"""A JSON object to send that is too large to copy. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO

import msgspec

LARGE = 1024 * 1024
"""Bytes from which JSON is read without its long strings, and a value is sent without a copy."""
COPIED = 64 * 1024
"""Bytes of a piece that is copied into the one before it."""
_PIECE = 1024 * 1024

Piece = bytes | memoryview
Values = dict[str, tuple[Piece, ...]]
_encode = msgspec.json.Encoder().encode


class LargeObject:
    """A request's body whose values stay where they are: `values` has the pieces of each field's JSON."""

    __slots__ = ("_more", "_size", "_values", "pieces")

    def __init__(self, values: Values, more: bytes = b"") -> None:
        """`more` is JSON of further fields, which may repeat those of `values`: the last one applies."""
        self._values, self._more = values, more
        self.pieces = tuple(_join_small(self._all()))
        """The object's bytes."""
        self._size = sum(map(len, self.pieces))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        """Copy the object. Other threads run in between."""
        whole = room(self._size)
        for piece in self.pieces:
            for at in range(0, len(piece), _PIECE):
                whole.write(piece[at : at + _PIECE])
        return whole.getvalue()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> bytes:
        """Return a field's JSON."""
        return b"".join(self._values[name])

    def select(self, names: Iterable[str]) -> bytes:
        """Return an object with those of these fields that there are."""
        return bytes(LargeObject({name: self._values[name] for name in names if name in self._values}))

    def replace(self, fields: Mapping[str, bytes]) -> "LargeObject":
        """Return the object with other values of some fields."""
        return LargeObject({**self._values, **{name: (value,) for name, value in fields.items()}}, self._more)

    def append(self, fields: bytes) -> "LargeObject":
        """Return the object with more fields at its end, as JSON without braces."""
        return LargeObject(self._values, self._more + b"," + fields)

    def _all(self) -> Iterator[Piece]:
        yield b"{"
        separator = b""
        for name, value in self._values.items():
            yield b"%b%b:" % (separator, _encode(name))
            yield from value
            separator = b","
        yield self._more + b"}"


def room(size: int) -> BytesIO:
    """Return an empty buffer with room for `size` bytes: one that grows copies its content now and then, in one call.
    Memory is used as it is filled."""
    return BytesIO(bytes(size))


Body = bytes | LargeObject
"""A request's body to send."""


def _join_small(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield the pieces, with small ones joined."""
    small: list[Piece] = []
    for piece in pieces:
        if len(piece) <= COPIED:
            small.append(piece)
            continue
        yield b"".join(small)
        small.clear()
        yield piece
    yield b"".join(small)


def with_fields(body: Body, fields: bytes) -> Body:
    """Return a body, a non-empty JSON object that the router encoded, with more fields at its end."""
    if isinstance(body, LargeObject):
        return body.append(fields)
    assert body.endswith(b"}")
    return b"".join((memoryview(body)[:-1], b",", fields, b"}"))


def head(body: Body, size: int) -> bytes:
    """Return the first bytes of a body, `size` of them at most."""
    return body[:size] if isinstance(body, bytes) else _first(body, size)


def tail(body: Body, size: int) -> bytes:
    """Return the last bytes of a body, `size` of them at most."""
    if isinstance(body, bytes):
        return body[-size:]
    pieces: list[bytes] = []
    for piece in reversed(body.pieces):
        pieces.append(bytes(piece[-size:]))
        size -= len(pieces[-1])
        if not size:
            break
    return b"".join(reversed(pieces))


def _first(body: LargeObject, size: int) -> bytes:
    pieces: list[bytes] = []
    for piece in body.pieces:
        pieces.append(bytes(piece[:size]))
        size -= len(pieces[-1])
        if not size:
            break
    return b"".join(pieces)
