"""Answers with a long list, sent in slices: between them the router worker serves other requests.

Ten thousand functions take up to a third of a second. Encoded at once, every stream of this worker would stop for that
time, and the answer would take its ten megabytes of memory.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import MappingProxyType

import msgspec
from litestar import MediaType
from litestar.response import Stream

SLICE_S = 0.003


def answer(
    field: str,
    entries: Iterable[object],
    others: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Stream:
    """Return the answer of an object with a list in `field`, and `others`. The entries are computed while they are
    sent, so they must follow from values that do not change."""
    return Stream(slices(field, entries, others or {}), media_type=MediaType.JSON, headers=headers)


async def slices(
    field: str,
    entries: Iterable[object],
    others: Mapping[str, object] = MappingProxyType({}),
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[bytes]:
    """Yield the JSON of an object with a list in `field`, and `others`. A tuple among the entries is JSON already, in
    pieces; an empty one is no entry, but a slice may end there: a search that finds little yields it for the rest.
    `clock` says when a slice is full."""
    encode = msgspec.json.Encoder().encode
    pieces = [b"{", *(p for name, value in others.items() for p in (encode(name), b":", encode(value), b","))]
    pieces += encode(field), b":["
    began, separator = clock(), b""
    for entry in entries:
        if entry != ():
            pieces.append(separator)
            pieces += entry if isinstance(entry, tuple) else (encode(entry),)
            separator = b","
        if clock() - began > SLICE_S:
            yield b"".join(pieces)
            pieces.clear()
            await asyncio.sleep(0)
            began = clock()
    yield b"".join(pieces) + b"]}"
