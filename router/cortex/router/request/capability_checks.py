"""Check a request against the capabilities of the function's server. Pure.

The checks refuse, with a clear error, requests that a worker would answer with an obscure error or a wrong answer.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from cortex.functions.servers import Server, server_of
from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.large_object import Body
from cortex.router.errors import CannotServe, RouteNotFound

_ENDPOINT: dict[Dialect, str] = {
    "chat": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "ollama_chat": "chat",
    "ollama_generate": "chat",
    "ollama_embed": "embeddings",
    "ollama_embeddings": "embeddings",
    "transcriptions": "transcriptions",
    "translations": "translations",
    "speech": "speech",
    "images": "images",
    "image_edits": "image_edits",
}
_LABELS = {
    "chat": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "transcriptions": "transcriptions",
    "translations": "translations of audio",
    "speech": "speech",
    "images": "images",
    "image_edits": "edits of images",
}
MOST_NAMES = 5
"""Functions that an error names."""


class _Tools(msgspec.Struct, frozen=True):
    """The fields of a worker's body that request tool calls."""

    tools: list[msgspec.Raw] | None = None
    tool_choice: Any = None


def check_dialect(function: Function, dialect: Dialect, others: Callable[[], Iterable[Function]] = tuple) -> None:
    """Raise CannotServe for a dialect that the function's server does not support. The error names those of the
    caller's `others` that do."""
    endpoint, serves = _ENDPOINT[dialect], server_of(function).dialects
    if endpoint in serves:
        return
    kinds = ", ".join(label for name, label in _LABELS.items() if name in serves) or "nothing"
    able = (f"'{other.id}'" for other in others() if endpoint in server_of(other).dialects)
    names = ", ".join(islice(able, MOST_NAMES))
    hint = f": use {names}" if names else "; no function of the catalogue that this key may use does"
    raise CannotServe(f"'{function.id}' serves {kinds}, not {_LABELS[endpoint]}{hint}", param="model")


def check_route(function: Function, path: str, ready: Sequence[Instance]) -> Server:
    """Return the function's server. Raises RouteNotFound for a path of its own that clients may not call, or that it
    does not have."""
    server = server_of(function, ready[0].server if ready else "")
    if path not in server.own:
        raise RouteNotFound(function.id, path, server.own)
    return server


def check_tools(function: Function, ran: str, dialect: Dialect, body: Body) -> Server:
    """Return the server that an instance runs. Raises CannotServe for a body that it does not support."""
    server = server_of(function, ran)
    if not server.tools and _ENDPOINT.get(dialect) == "chat" and _requests_tools(body):
        raise CannotServe(
            f"'{function.id}' runs on {ran or function.server}, which does not parse tool calls: "
            "leave `tools` out, or set another `server` for it",
            param="tools",
        )
    return server


def _requests_tools(body: Body) -> bool:
    fields = body if isinstance(body, bytes) else body.select(_Tools.__struct_fields__)
    try:
        params = msgspec.json.decode(fields, type=_Tools)
    except msgspec.DecodeError:
        return False
    return bool(params.tools) and params.tool_choice != "none"
