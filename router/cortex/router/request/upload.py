"""Stream a form from a client to a worker, without holding all of it.

The form is read until its function is known. A `model` field that comes first, as in OpenAI's SDKs, costs nothing; a
file before it is held, in memory and then in an unnamed file, which the system removes with the process. From then on
the router reads from the client only as fast as a worker takes the form, so a client waits for a cold function.

A request may be sent again as long as everything that was read of the form is held.
"""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import IO

from msgspec import Struct

from cortex.functions.passing import Passing
from cortex.router.dialects.core.errors import BadRequest, Dialect, Kind
from cortex.router.dialects.engine import model_in
from cortex.router.dialects.media.form import Form, boundary_of
from cortex.router.errors import NoDisk
from cortex.router.http_answer import Answering, Client
from cortex.router.request.holdings import Holdings
from cortex.router.request.incoming import Incoming
from cortex.router.request.suspects import EDGE

SMALL = 256 * 1024
"""Bytes of a form that is read whole before it is sent, so that it can be sent again."""
MEMORY = 1024 * 1024
"""Bytes of a file before `model` that are held in memory; the rest is held on the disk."""
PIECE = 256 * 1024
UPLOADS_OF_A_PROCESS, UPLOADS_OF_A_KEY = 8, 2
"""How many forms of the largest size a process, and one key, may hold on the disk at a time."""


class Uploads:
    """The uploads of one router worker: the largest size in bytes, and the counts of what they hold."""

    def __init__(self, most: int, memory: Holdings) -> None:
        self.most, self.memory = most, memory
        self.disk = Holdings(most * UPLOADS_OF_A_KEY, most * UPLOADS_OF_A_PROCESS, " on the disk")

    async def begin(self, request: Incoming, kind: Dialect) -> "Upload":
        """Read a form until its function is known. Raises BadRequest, NoDisk, KeyHoldsTooMuch, RouterHoldsTooMuch, or
        ClientLeft."""
        if request.headers.get(b"content-encoding", b"identity") != b"identity":
            raise BadRequest("a form must be sent uncompressed", "content-encoding", Kind.UNSUPPORTED_MEDIA)
        self.check(request.content_length or 0)
        boundary = boundary_of(request.headers.get(b"content-type", b"").decode("latin-1"))
        form = Form(kind, boundary, secrets.token_hex(16).encode(), model=model_in(request.query))
        upload = Upload(self, request, form)
        try:
            await upload.begin()
        except BaseException:
            await upload.release()
            raise
        return upload

    def check(self, size: int) -> None:
        """Raise BadRequest for a form that is too large."""
        if size > self.most:
            raise BadRequest(
                f"the form has {size / 2**20:.1f} MiB; [gateway] max_upload_mb of this router is {self.most >> 20}",
                kind=Kind.BODY_TOO_BIG,
            )


class Upload:
    """One form. `release()` it when its request is over."""

    def __init__(self, uploads: Uploads, request: Incoming, form: Form) -> None:
        self._uploads, self.form = uploads, form
        self._request, self._pieces = request, request.stream()
        self._held = Held(uploads.memory, uploads.disk, request.caller.id)
        self._size = 0
        self._client: Client | None = None
        self._is_begun = False
        """Whether some of what was read is not held."""
        self.cover: Callable[[int], Awaitable[None]] = _no_cover
        """Called with the number of answers when a field after the file raises it. It may refuse the form."""

    @property
    def may_be_sent_again(self) -> bool:
        """Whether all that was read of the form is held."""
        return not self._is_begun

    @property
    def sample(self) -> bytes:
        """The beginning of the form's files, as far as it is held in memory."""
        return self._held.sample

    async def begin(self) -> None:
        """Read until the function is known, and to the end if the form is small or has arrived whole. Raises what
        `Uploads.begin` raises."""
        is_small = self._request.content_length is not None and self._request.content_length <= SMALL
        while not self.form.is_whole and (is_small or not self.form.model or self._request.is_read):
            await self._held.add(await self._read())

    def hold_back(self, client: Client) -> None:
        """Read no more from the client until a worker takes it."""
        self._client = client
        if not self._request.is_read:
            client.hold_back()

    def to(self, model: str, passing: Passing) -> "OutgoingForm":
        """Return the form for a worker, with its name of the model and the fields that pass to it."""
        return OutgoingForm(self, model, passing)

    def size(self, model: str, passing: Passing) -> int | None:
        """Return the size of the worker's form in bytes; None: it is not known yet."""
        return len(self.form.head(model, passing)) + self._held.size if self._is_whole_held else None

    async def pieces(self, model: str, passing: Passing) -> AsyncIterator[bytes]:
        """Yield the form for a worker with its name of the model. Raises BadRequest or ClientLeft for what the client
        sends, or does not send, and what `cover` raises."""
        yield self.form.head(model, passing)
        async for piece in self._held.pieces():
            yield piece
        while not self.form.is_whole:
            self._is_begun = True
            piece = await self._read()
            if self._client is not None:
                self.hold_back(self._client)
            yield piece

    async def release(self) -> None:
        """Release what is held."""
        await self._held.release()

    def release_after(self, answering: Answering) -> Answering:
        """Return what releases the form when it has answered."""

        async def wrapped(client: Client) -> None:
            self.hold_back(client)
            try:
                await answering(client)
            finally:
                await asyncio.shield(self.release())

        return wrapped

    @property
    def _is_whole_held(self) -> bool:
        return self.form.is_whole and not self._is_begun

    async def _read(self) -> bytes:
        """Read a piece of the client's form, and return the bytes for the worker."""
        piece = await anext(self._pieces, b"")
        if not piece:
            return self.form.close()
        self._size += len(piece)
        self._uploads.check(self._size)
        answers = self.form.answers
        out = self.form.feed(piece)
        self._held.reserve(self.form.text_size)
        if self.form.answers > answers:
            await self.cover(self.form.answers)
        return out


async def _no_cover(answers: int) -> None:
    """Do nothing, until the form's function is known."""


class OutgoingForm(Struct, frozen=True):
    """A form for one worker."""

    upload: Upload
    model: str
    passing: Passing

    @property
    def content_type(self) -> str:
        """Its content type."""
        return self.upload.form.content_type

    @property
    def size(self) -> int | None:
        """Its size in bytes; None: it is not known yet."""
        return self.upload.size(self.model, self.passing)

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield its bytes."""
        return self.upload.pieces(self.model, self.passing)


class Held:
    """Bytes in memory, up to `MEMORY`, and the rest on the disk."""

    def __init__(self, memory: Holdings, disk: Holdings, key: str) -> None:
        self._memory, self._disk, self._key = memory, disk, key
        self._pieces: list[bytes] = []
        self._in_memory = self._on_disk = self._reserved = 0
        self._file: IO[bytes] | None = None

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._in_memory + self._on_disk

    @property
    def sample(self) -> bytes:
        """The first bytes."""
        return b"".join(self._pieces[:1])[:EDGE]

    async def add(self, data: bytes) -> None:
        """Add bytes. Raises NoDisk, KeyHoldsTooMuch or RouterHoldsTooMuch."""
        if not data:
            return
        if self._file is None and self._in_memory + len(data) <= MEMORY:
            self._memory.count(self._key, len(data))
            self._in_memory += len(data)
            self._pieces.append(data)
            return
        self._disk.count(self._key, len(data))
        self._on_disk += len(data)
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            raise NoDisk(error.strerror or type(error).__name__) from None

    def reserve(self, size: int) -> None:
        """Count bytes of memory that the form's text fields take. Raises KeyHoldsTooMuch or RouterHoldsTooMuch."""
        if size > self._reserved:
            self._memory.count(self._key, size - self._reserved)
            self._reserved = size

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all bytes."""
        for piece in self._pieces:
            yield piece
        at = 0
        while self._file is not None and at < self._on_disk:
            piece = await asyncio.to_thread(self._read, at)
            at += len(piece)
            yield piece

    async def release(self) -> None:
        """Release all bytes."""
        file, self._file = self._file, None
        if file is not None:
            await asyncio.to_thread(file.close)
        self._pieces.clear()
        self._memory.uncount(self._key, self._in_memory + self._reserved)
        self._disk.uncount(self._key, self._on_disk)
        self._in_memory = self._on_disk = self._reserved = 0

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (`release` closes it)
        rest = memoryview(data)
        while rest:  # an unbuffered file may take a part, as on a disk that is almost full
            rest = rest[self._file.write(rest) :]

    def _read(self, at: int) -> bytes:
        assert self._file is not None
        self._file.seek(at)
        return self._file.read(PIECE)
