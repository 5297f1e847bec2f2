"""Requests as an ASGI server hands them over."""

from typing import Any, cast

from cortex.platform.api_keys import LOCAL
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
    return Incoming(cast(Any, {"headers": [*size, *headers]}), receive, LOCAL)
