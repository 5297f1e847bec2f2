"""What every listener owes HTTP beyond its routes: HEAD wherever there is GET, and streams that HTTP/1.0 can read."""

from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


def with_head(app: App) -> App:
    """Return the application with HEAD answered as GET, without a body: a stream ends at once."""

    def answer(scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            return head(scope, receive, send)
        return app(scope, receive, send)

    async def head(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        ended = False

        async def send_head(message: Message) -> None:
            nonlocal ended
            if ended:
                return
            if message["type"] == "http.response.body":
                ended = True
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        async def receive_until_ended() -> Message:
            return {"type": "http.disconnect"} if ended else await receive()

        await app({**scope, "method": "GET"}, receive_until_ended, send_head)

    return answer


class AnyLength(int):
    """The length of a body that ends with its connection: uvicorn counts down from it and finds nothing missing."""

    def __sub__(self, other: int) -> "AnyLength":
        return self

    def __lt__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__
