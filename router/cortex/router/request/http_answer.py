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
    async def end(self) -> None: ...
    def abort(self) -> None: ...


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
