"""Takes requests' bodies in: how many bytes one process and one key may hold at a time, and where large ones are read.

A body is held from its first byte to the last byte of its answer, because a request may have to be sent again. What
is large is read on threads of its own, a piece at a time, so that streams of other requests go on meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from litestar import Request
from litestar.types import ASGIApp, Receive, Scope, Send

from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.errors import KeyHoldsTooMuch, RouterHoldsTooMuch

SMALL = 64 * 1024
"""Bytes of a body that is not counted: the connections are, and each holds one."""
LARGE = 1024 * 1024
"""Bytes from which a body is read on a thread."""
BODIES_OF_A_PROCESS, BODIES_OF_A_KEY = 16, 4
"""How many bodies of the largest size a process holds at a time, and how many of them a key."""
THREADS = 2

Http = Request[Any, Any, Any]
P = ParamSpec("P")
T = TypeVar("T")


class Body:
    """A request's body, and the bytes that are counted for it until `release()`."""

    def __init__(self, intake: "Intake", key: str) -> None:
        self.bytes, self._intake, self._key, self._counted = b"", intake, key, 0

    def count(self, more: int) -> None:
        """Count more bytes. Raises KeyHoldsTooMuch or RouterHoldsTooMuch."""
        self._intake.count(self._key, more)
        self._counted += more

    def release(self) -> None:
        """Count its bytes no more."""
        self._intake.uncount(self._key, self._counted)
        self._counted = 0

    def held_by(self, app: ASGIApp) -> ASGIApp:
        """Return an application that counts the bytes until it has answered."""
        if not self._counted:
            return app

        async def holding(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                self.release()

        return holding


class Intake:
    """The bodies that one router worker holds. `most` is the size of the largest that it takes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._of_key: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bodies")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def body(self, request: Http, key: str, cover: Callable[[int], Awaitable[None]]) -> Body:
        """Read a request's body. `cover` is awaited with the bytes read so far, before more are read, and may refuse
        them. Raises what `cover` raises, BadRequest, KeyHoldsTooMuch or RouterHoldsTooMuch."""
        if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise BadRequest("compressed bodies are not taken: send it as it is", kind=Kind.UNSUPPORTED_MEDIA)
        taken = Body(self, key)
        announced = request.content_length
        if announced is not None and announced <= SMALL:
            taken.bytes = await request.body()
            return taken
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in request.stream():
                taken.count(len(piece))
                pieces.append(piece)
                size += len(piece)
                await cover(size)
        except BaseException:
            taken.release()
            raise
        taken.bytes = b"".join(pieces)
        return taken

    async def work(self, size: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what takes time in proportion to a body of some size: at once, or on a thread."""
        if size < LARGE:
            return do(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: do(*args, **kwargs))

    def count(self, key: str, more: int) -> None:
        """Count bytes that a key's request holds. Raises KeyHoldsTooMuch or RouterHoldsTooMuch."""
        if self._of_key[key] + more > self._most * BODIES_OF_A_KEY:
            raise KeyHoldsTooMuch(self._most * BODIES_OF_A_KEY)
        if self._held + more > self._most * BODIES_OF_A_PROCESS:
            raise RouterHoldsTooMuch(self._most * BODIES_OF_A_PROCESS)
        self._held += more
        self._of_key[key] += more

    def uncount(self, key: str, fewer: int) -> None:
        """Count bytes no more."""
        self._held -= fewer
        self._of_key[key] -= fewer
        if self._of_key[key] <= 0:
            del self._of_key[key]
