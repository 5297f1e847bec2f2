"""What may be asked of the server behind a function. Pure.

Refused here, in so many words, is what a worker would answer with an error of its own, or worse: with something
that looks like an answer.
"""

from typing import Any

import msgspec

from cortex.functions.servers import Server, server_of
from cortex.functions.spec import Function
from cortex.router.dialects.core.errors import Dialect
from cortex.router.errors import CannotServe

_ENDPOINT: dict[Dialect, str] = {
    "chat": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
    "rerank": "rerank",
}
_WORD = {"chat": "chat", "completions": "completions", "embeddings": "embeddings", "rerank": "rerank"}


class _Tools(msgspec.Struct, frozen=True):
    """What tells whether a worker's body asks for tool calls."""

    tools: list[msgspec.Raw] | None = None
    tool_choice: Any = None


def check_dialect(function: Function, dialect: Dialect) -> None:
    """Raise CannotServe for a dialect that no worker of a function answers."""
    serves = server_of(function).dialects
    if _ENDPOINT[dialect] not in serves:
        kinds = ", ".join(word for name, word in _WORD.items() if name in serves) or "nothing"
        raise CannotServe(f"'{function.id}' serves {kinds}, not {_WORD[_ENDPOINT[dialect]]}")


def check_tools(function: Function, ran: str, dialect: Dialect, body: bytes) -> Server:
    """Return the server an instance runs. Raises CannotServe for a body that it would not understand."""
    server = server_of(function, ran)
    if not server.tools and dialect in ("chat", "responses", "messages") and _asks_for_tools(body):
        raise CannotServe(
            f"'{function.id}' runs on {ran or function.server}, which does not parse tool calls: "
            "leave `tools` out, or set another `server` for it",
            param="tools",
        )
    return server


def _asks_for_tools(body: bytes) -> bool:
    try:
        asked = msgspec.json.decode(body, type=_Tools)
    except msgspec.DecodeError:
        return False
    return bool(asked.tools) and asked.tool_choice != "none"
