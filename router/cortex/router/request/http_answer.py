"""Write answers that are sent whole: JSON, and errors in the client's dialect. The one place that writes an error."""

from collections.abc import Iterable

from litestar.types import Send

from cortex.router.dialects.core.errors import Dialect, Fault, envelope

Headers = Iterable[tuple[bytes, bytes]]


def id_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the request id's headers, one for each SDK."""
    identity = request_id.encode()
    return [(b"x-request-id", identity), (b"request-id", identity)]


async def send_json(send: Send, status: int, body: bytes, request_id: str, headers: Headers = ()) -> None:
    """Send a whole JSON answer."""
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *id_headers(request_id),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, fault: Fault, dialect: Dialect, request_id: str, headers: Headers = ()) -> None:
    """Send an error with the status, envelope and headers of the dialect."""
    status, body = fault.status(dialect), envelope(fault, dialect, request_id)
    more = [(name.encode(), value.encode()) for name, value in fault.headers().items()]
    await send_json(send, status, body, request_id, [*more, *headers])
