"""ASGI middleware for vLLM that requires the worker's key on every path, including those that vLLM leaves open.

vLLM checks a key of its own below `/v1`, `/v2` and `/inference` only, and serves `/invocations`, `/tokenize`,
`/metrics` and more to every client that reaches the port. This class runs before all of its routes: `--middleware
cortex_key_check.RequireKey`. It reads the key from a file, because vLLM hashes the variables that it knows into the key
of its compile cache.

The engine's own Python imports this module and has no cortex, so it uses the standard library only. The folder holds no
other module, because it is on the engine's PYTHONPATH and each name in it hides the engine's.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

VARIABLE = "CORTEX_WORKER_KEY_FILE"
_REJECTION = b'{"error":{"message":"the key of this worker is needed","type":"authentication_error","code":401}}'
_POLICY_VIOLATION = 1008


class RequireKey:
    """Passes on requests that have the key as their bearer token, and rejects all others.

    Raises RuntimeError without a key, which ends the worker instead of serving without a check.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = _read_key(os.environ.get(VARIABLE, ""))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket or lifespan."""
        if scope["type"] == "lifespan" or self._has_key(scope["headers"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(_REJECTION)).encode()),
                (b"www-authenticate", b"Bearer"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REJECTION})

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        value = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = value.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


def _read_key(path: str) -> bytes:
    """Return the key in a file. Raises RuntimeError when there is none."""
    if not path:
        raise RuntimeError(f"{VARIABLE} is not set: cortex starts a vLLM worker with its own key")
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (the module is imported before the engine; pathlib is not needed)
            key = file.read().strip()
    except OSError as error:
        raise RuntimeError(f"the worker's key cannot be read: {path}: {error.strerror}") from None
    if not key:
        raise RuntimeError(f"the worker's key cannot be read: {path} is empty")
    return key
