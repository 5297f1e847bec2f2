"""Write answers that are sent whole: JSON, and errors in the client's dialect. The one place that writes an error."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from msgspec import Struct

from cortex.router.dialects.core.errors import Dialect, Fault, envelope

Headers = Iterable[tuple[bytes, bytes]]


class Client(Protocol):
    """The client of one request: `platform/serving/client_connection.py` says what each member does."""

    on_lost: Callable[[], None] | None
    on_writable: Callable[[], None] | None

    @property
    def is_lost(self) -> bool: ...
    @property
    def is_full(self) -> bool: ...
    async def drain(self) -> None: ...
    def hold_back(self) -> None: ...
    async def send(self, status: int, headers: Headers, body: bytes) -> None: ...
    def start(self, status: int, headers: Headers) -> None: ...
    def write(self, data: bytes) -> None: ...
    @property
    def write_chunk(self) -> Callable[[bytes], None] | None: ...
    async def end(self) -> None: ...
    def abort(self) -> None: ...


class PassingClient:
    """A client that passes everything on to another one. Subclasses change a part of it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def on_lost(self) -> Callable[[], None] | None:
        return self._client.on_lost

    @on_lost.setter
    def on_lost(self, call: Callable[[], None] | None) -> None:
        self._client.on_lost = call

    @property
    def on_writable(self) -> Callable[[], None] | None:
        return self._client.on_writable

    @on_writable.setter
    def on_writable(self, call: Callable[[], None] | None) -> None:
        self._client.on_writable = call

    @property
    def is_lost(self) -> bool:
        return self._client.is_lost

    @property
    def is_full(self) -> bool:
        return self._client.is_full

    async def drain(self) -> None:
        await self._client.drain()

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        await self._client.send(status, headers, body)

    def start(self, status: int, headers: Headers) -> None:
        self._client.start(status, headers)

    def write(self, data: bytes) -> None:
        self._client.write(data)

    @property
    def write_chunk(self) -> Callable[[bytes], None] | None:
        return self._client.write_chunk

    async def end(self) -> None:
        await self._client.end()

    def hold_back(self) -> None:
        self._client.hold_back()

    def abort(self) -> None:
        self._client.abort()


Answering = Callable[[Client], Awaitable[None]]
"""Answers one request."""


class Whole(Struct, frozen=True):
    """An answer that is sent whole. Its length is added when it is sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    async def send(self, client: Client) -> None:
        """Send it."""
        await client.send(self.status, self.headers, self.body)


def id_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the request id's headers, one for each SDK."""
    identity = request_id.encode()
    return [(b"x-request-id", identity), (b"request-id", identity)]


def json_answer(status: int, body: bytes, request_id: str, headers: Headers = ()) -> Whole:
    """Return a JSON answer."""
    return Whole(status, [(b"content-type", b"application/json"), *id_headers(request_id), *headers], body)


def error_answer(fault: Fault, dialect: Dialect, request_id: str, headers: Headers = ()) -> Whole:
    """Return an error with the status, envelope and headers of the dialect."""
    more = [(name.encode(), value.encode()) for name, value in fault.headers().items()]
    return json_answer(fault.status(dialect), envelope(fault, dialect, request_id), request_id, [*more, *headers])
