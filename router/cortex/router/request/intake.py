"""Read request bodies within limits per process and per key, unpack and repair them; parse large ones on threads.

A body stays in memory from its first byte to the last byte of its answer, because the request may be sent again. Large
bodies are parsed on separate threads, piece by piece and without their long strings, so that other streams continue.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import ParamSpec, TypeVar

from cortex.router.dialects.core import lenient
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.large_object import room
from cortex.router.dialects.core.long_strings import Outline
from cortex.router.dialects.core.sizes import check_size
from cortex.router.http_answer import Answering, Client
from cortex.router.request.compression import Encoding, Unpacker, encoding_of
from cortex.router.request.holdings import Holdings
from cortex.router.request.incoming import Incoming

SMALL = 64 * 1024
"""Bytes of a body that is not counted: the limit on connections bounds these."""
LARGE = 1024 * 1024
"""Bytes from which a body is parsed on a thread."""
BODIES_OF_A_PROCESS, BODIES_OF_A_KEY = 16, 4
"""How many bodies of the largest size a process, and one key, may hold at a time."""
THREADS = 2

P = ParamSpec("P")
T = TypeVar("T")


async def no_cover(size: int) -> None:
    """Do nothing, for a request whose size costs nothing."""


class Body:
    """A request's body; its bytes count against the limits until `release()`."""

    def __init__(self, intake: "Intake", key: str) -> None:
        self.bytes, self._intake, self._key, self._counted = b"", intake, key, 0

    def count(self, more: int) -> None:
        """Count more bytes. Raises KeyHoldsTooMuch or RouterHoldsTooMuch."""
        self._intake.memory.count(self._key, more)
        self._counted += more

    def release(self) -> None:
        """Stop counting its bytes."""
        self._intake.memory.uncount(self._key, self._counted)
        self._counted = 0

    def release_after(self, answering: Answering) -> Answering:
        """Return what releases the bytes when it has answered."""
        if not self._counted:
            return answering

        async def wrapped(client: Client) -> None:
            try:
                await answering(client)
            finally:
                self.release()

        return wrapped


class Intake:
    """The bodies in one router worker's memory. `most` is the largest size to accept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.memory = Holdings(most * BODIES_OF_A_KEY, most * BODIES_OF_A_PROCESS)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bodies")
        self._unpacking = asyncio.Semaphore(THREADS)
        """Bounds the decoders, which take up to 8 MiB each."""

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def body(self, request: Incoming, cover: Callable[[int], Awaitable[None]]) -> Body:
        """Read a request's body, unpacked, with its JSON repaired. Awaits `cover` with the size so far after each
        piece; it may refuse the body.

        Raises what `cover` raises, BadRequest, KeyHoldsTooMuch, RouterHoldsTooMuch or ClientLeft."""
        packed = request.headers.get(b"content-encoding")
        encoding = encoding_of(packed.decode("latin-1")) if packed else None
        accepted = Body(self, request.caller.id)
        try:
            size = request.content_length
            whole = request.take_body() if size is not None and size <= SMALL else None
            if whole is None:
                await self._read(request, accepted, cover)
            else:
                accepted.bytes = whole  # it arrived with its head, as most do
            if encoding is not None:
                await self._unpack(accepted, encoding, cover)
            body = accepted.bytes
            accepted.bytes = repair(body) if len(body) < LARGE else await self.work(len(body), repair, body)
        except BaseException:
            accepted.release()
            raise
        return accepted

    async def _read(self, request: Incoming, accepted: Body, cover: Callable[[int], Awaitable[None]]) -> None:
        declared_size = request.content_length
        if declared_size is not None:
            self._check_size(declared_size)
            if declared_size <= SMALL:
                accepted.bytes = await request.body()
                return
        whole, size = room(declared_size or 0), 0  # joining pieces at the end would hold the loop
        async for piece in request.stream():
            size += len(piece)
            self._check_size(size)
            accepted.count(len(piece))
            whole.write(piece)
            await cover(size)
        accepted.bytes = whole.getvalue()

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise BadRequest("the body exceeds [gateway] max_body_mb of this router", kind=Kind.BODY_TOO_BIG)

    async def _unpack(self, accepted: Body, encoding: Encoding, cover: Callable[[int], Awaitable[None]]) -> None:
        """Unpack a body: the first step at once, which is all that most take, further ones on a thread."""
        unpacker, whole, size = Unpacker(encoding, accepted.bytes), BytesIO(), 0
        async with self._unpacking:
            piece = unpacker.step()
            while piece:
                size += len(piece)
                if size > self._most:
                    raise BadRequest(
                        f"the body unpacks to more than {self._most >> 20} MiB, [gateway] max_body_mb of this router",
                        kind=Kind.BODY_TOO_BIG,
                    )
                accepted.count(len(piece) if size > SMALL else 0)
                whole.write(piece)
                await cover(size)
                piece = await asyncio.get_running_loop().run_in_executor(self._threads, unpacker.step)
        accepted.bytes = whole.getvalue()

    async def work(self, size: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `do`, whose time grows with the body's size, on a thread if the body is large."""
        if size < LARGE:
            return do(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: do(*args, **kwargs))


def repair(body: bytes) -> bytes:
    """Return a request's JSON as its parsers take it. Raises BadRequest for a body of too many values or too much
    text."""
    if len(body) < LARGE:
        check_size(body)
        return lenient.repair_request(body)
    outline = Outline(body)
    check_size(outline.text, max((end - start for start, end in outline.strings), default=0))
    text = lenient.repair_request(outline.text)
    return body if text is outline.text else outline.restore_all(text)
