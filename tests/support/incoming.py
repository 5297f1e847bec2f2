"""Requests as a server hands them over, and the clients that it answers."""

from collections.abc import Callable, Iterable
from typing import Any, cast

from cortex.platform.api_keys import LOCAL
from cortex.platform.serving.client_connection import EXTENSION
from cortex.router.request.incoming import Incoming


def an_incoming(
    body: bytes, *headers: tuple[bytes, bytes], pieces: int = 1, leaves: bool = False, length: bool = True
) -> Incoming:
    """Return a request whose body comes in so many pieces; the client leaves before the last one if it `leaves`."""
    step = max(1, -(-len(body) // pieces))
    parts = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
    messages: list[Any] = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    if leaves:
        messages[-1] = {"type": "http.disconnect"}
    left = iter(messages)

    async def receive() -> Any:
        return next(left)

    size = ((b"content-length", b"%d" % len(body)),) if length else ()
    return Incoming(cast(Any, {"query_string": b"", "headers": [*size, *headers]}), receive, LOCAL)


class ReadingClient:
    """A client that keeps what it is sent. It reads at once unless it `is_full`, and disconnects with `leave()`."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, dict[bytes, bytes](), b""
        self.more_headers = list[tuple[bytes, bytes]]()
        self.has_aborted = self.has_ended = self.is_lost = self.is_full = False
        self.on_lost: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    @property
    def has_started(self) -> bool:
        return bool(self.status)

    def attach(self) -> "ReadingClient":
        return self

    def take_body(self) -> bytes | None:
        """The body comes as messages."""
        return None

    def add_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.more_headers += headers

    async def drain(self) -> None:
        """Do nothing."""

    async def send(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        self.start(status, headers)
        self.write(body)
        await self.end()

    write_chunk: Callable[[bytes], None] | None = None

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        assert not self.status
        self.status, self.headers = status, dict([*self.more_headers, *headers])

    def write(self, data: bytes) -> None:
        assert self.status
        assert not self.has_ended
        self.body += data

    async def end(self) -> None:
        self.has_ended = True

    def hold_back(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        self.has_aborted = True

    def leave(self) -> None:
        """Disconnect."""
        self.is_lost = True
        if self.on_lost is not None:
            self.on_lost()


def with_client(app: Any) -> Any:
    """Return an application for a server whose requests have no `ClientConnection`, such as httpx's transport."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        client = ReadingClient()
        await app({**scope, "extensions": {EXTENSION: client}}, receive, send)
        if client.has_started:
            headers = [*client.headers.items()]
            await send({"type": "http.response.start", "status": client.status, "headers": headers})
            await send({"type": "http.response.body", "body": client.body, "more_body": False})

    return served
