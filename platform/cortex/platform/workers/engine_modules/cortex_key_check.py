"""ASGI middleware for vLLM that requires the worker's key on every path, including those that vLLM leaves open.

vLLM checks a key of its own below `/v1`, `/v2` and `/inference` only, and serves `/invocations`, `/tokenize`,
`/metrics` and more to every client that reaches the port. This class runs before all of its routes: `--middleware
cortex_key_check.RequireKey`. It reads the keys from a file, because vLLM hashes the variables that it knows into the
key of its compile cache.

The file has two lines: the worker's key, which routers have, and the control key, which only the host's agent has. With
its sleep mode vLLM serves routes for developers that can do anything to an engine, so every path outside `ORDINARY`
needs the control key.

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
ORDINARY = frozenset(
    {
        "/health", "/load", "/metrics", "/ping", "/version", "/tokenize", "/detokenize", "/pooling", "/classify",
        "/score", "/rerank", "/invocations",
    }
)  # fmt: skip
"""vLLM's paths for clients, in addition to those below `/v1` and `/v2`."""
_REJECTION = b'{"error":{"message":"the key of this worker is needed","type":"authentication_error","code":401}}'
_POLICY_VIOLATION = 1008


class RequireKey:
    """Passes on requests that have the key of their path as their bearer token, and rejects all others.

    Raises RuntimeError without a key, which ends the worker instead of serving without a check.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key, self._control_key = _read_keys(os.environ.get(VARIABLE, ""))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket or lifespan."""
        if scope["type"] == "lifespan" or self._has_key(scope["path"], scope["headers"]):
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

    def _has_key(self, path: str, headers: list[tuple[bytes, bytes]]) -> bool:
        value = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = value.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        if self._control_key and hmac.compare_digest(key.strip(), self._control_key):
            return True
        is_ordinary = path in ORDINARY or path.startswith(("/v1/", "/v2/"))
        return is_ordinary and hmac.compare_digest(key.strip(), self._key)


def _read_keys(path: str) -> tuple[bytes, bytes]:
    """Return the worker's key and the control key in a file; b"" for a missing control key. Raises RuntimeError without
    a worker's key."""
    if not path:
        raise RuntimeError(f"{VARIABLE} is not set: cortex starts a vLLM worker with its own key")
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (the module is imported before the engine; pathlib is not needed)
            lines = file.read().split()
    except OSError as error:
        raise RuntimeError(f"the worker's key cannot be read: {path}: {error.strerror}") from None
    if not lines:
        raise RuntimeError(f"the worker's key cannot be read: {path} is empty")
    return lines[0], lines[1] if len(lines) > 1 else b""
