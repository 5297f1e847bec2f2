"""ASGI middleware for vLLM that requires the worker's key on every path, including those that vLLM leaves open.

vLLM checks a key of its own below `/v1`, `/v2` and `/inference` only, and serves `/invocations`, `/tokenize`,
`/metrics` and more to every client that reaches the port. This class runs before all of its routes: `--middleware
cortex_key_check.RequireKey`. It reads the keys from a file, because vLLM hashes the variables that it knows into the
key of its compile cache.

The file has two lines: the worker's key, which routers have, and the control key, which only the host's agent has. With
its sleep mode vLLM serves routes for developers that can do anything to an engine, so every path outside `ORDINARY`
needs the control key; so do the routes that load adapters, which are below `/v1`. While the engine sleeps its weights
are not on the device, and it would compute with what is there instead: requests for it get 503 until it is awake. No
router sends it any, but one that has lost the record may.

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
ADAPTERS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Paths below `/v1` that change the engine: they read any path of the host."""
SLEEP, WAKE_UP = "/sleep", "/wake_up"
WHILE_ASLEEP = frozenset({"/health", "/load", "/metrics", "/ping", "/version"})
"""Those of them that need no weights."""
_NO_KEY = b'{"error":{"message":"the key of this worker is needed","type":"authentication_error","code":401}}'
_ASLEEP = b'{"error":{"message":"this worker sleeps","type":"service_unavailable","code":503}}'
_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013


class RequireKey:
    """Passes on requests that have the key of their path as their bearer token, and rejects all others.

    Raises RuntimeError without a key, which ends the worker instead of serving without a check.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key, self._control_key = _read_keys(os.environ.get(VARIABLE, ""))
        self._asleep = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket or lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not self._has_key(path, scope["headers"]):
            await _reject(scope, send, 401, _NO_KEY, _POLICY_VIOLATION)
        elif self._asleep and (_is_ordinary(path) or path in ADAPTERS) and path not in WHILE_ASLEEP:
            await _reject(scope, send, 503, _ASLEEP, _TRY_AGAIN_LATER)
        elif path in (SLEEP, WAKE_UP):
            await self._move(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _move(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass on a request to sleep or to wake up: it counts as asleep from the beginning of the one to the end of the
        other."""
        before, status = self._asleep, 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._asleep = before or scope["path"] == SLEEP
        try:
            await self._app(scope, receive, watch)
        finally:
            self._asleep = scope["path"] == SLEEP if status == 200 else before

    def _has_key(self, path: str, headers: list[tuple[bytes, bytes]]) -> bool:
        value = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = value.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        if self._control_key and hmac.compare_digest(key.strip(), self._control_key):
            return True
        return _is_ordinary(path) and hmac.compare_digest(key.strip(), self._key)


def _is_ordinary(path: str) -> bool:
    """Return whether a path is for clients."""
    return path in ORDINARY or (path.startswith(("/v1/", "/v2/")) and path not in ADAPTERS)


async def _reject(scope: MutableMapping[str, Any], send: Send, status: int, body: bytes, close_code: int) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": close_code})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
