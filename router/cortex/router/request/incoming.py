"""One inference request as it arrives: headers, caller, id, and a body that is read once."""

import random
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from litestar.types import Receive, Scope

from cortex.platform.api_keys import Principal

_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ClientLeft(Exception):
    """The client disconnected before its body was complete."""


class Incoming:
    """A request of an authorized caller."""

    __slots__ = (
        "_receive", "caller", "content_length", "headers", "id", "is_read", "name", "query", "take_body", "unique",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, receive: Receive, caller: Principal, take_body: Callable[[], bytes | None] = lambda: None
    ) -> None:
        """`take_body` takes the whole body if it has arrived."""
        self._receive, self.take_body, self.caller = receive, take_body, caller
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """By name in lower case."""
        self.query: bytes = scope["query_string"]
        self.name = ""
        """The function's name, if the path has it."""
        self.is_read = False
        """Whether `stream()` has yielded the whole body."""
        self.unique = unique_id()
        """Part of the ids that this router gives the request and its answer."""
        self.id = request_id(self.headers.get(b"x-request-id"), self.unique)
        length = self.headers.get(b"content-length")
        self.content_length = None if length is None else int(length)
        """The size of the body in bytes, if the client states it."""

    async def body(self) -> bytes:
        """Return the whole body. Raises ClientLeft."""
        message = await self._receive()
        if message["type"] == "http.request" and not message["more_body"]:
            return message["body"]  # it came in one piece, as most do
        pieces = [_piece(message)]
        pieces += [piece async for piece in self.stream()]
        return b"".join(pieces)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body, or the rest of it, as it arrives. Raises ClientLeft."""
        more = True
        while more:
            message: Any = await self._receive()
            piece = _piece(message)
            more = message.get("more_body", False)
            self.is_read = not more
            if piece:
                yield piece


def _piece(message: Any) -> bytes:
    """Return the bytes of a message. Raises ClientLeft."""
    if message["type"] != "http.request":
        raise ClientLeft
    piece: bytes = message["body"]
    return piece


def request_id(value: bytes | None, unique: str = "") -> str:
    """Return the request id that a client sent, if it is valid, else a new one, with the `unique` part if given."""
    if value and _CLIENT_ID.fullmatch(id := value.decode("latin-1")):
        return id
    return f"req_{unique or unique_id()}"


def unique_id() -> str:
    """Return 24 hexadecimal digits that no other request has. They are no secret, so they cost no system call."""
    return f"{random.getrandbits(96):024x}"
